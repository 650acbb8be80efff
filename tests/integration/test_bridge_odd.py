"""The bridge between a service that answers anything but MCP, and a client that says anything."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from tests.bridges import Laptop, laptop, modern
from tests.rawservice import (
    END,
    SSE,
    Asked,
    RawService,
    Script,
    chunk,
    falls_silent,
    says,
    whole,
)
from tests.stdioclient import Json, StdioClient

__all__ = ["laptop"]

TYPE = b"Content-Type: application/json"
SESSION = b"Mcp-Session-Id: s1"
HELLO: Json = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "raw", "version": "1"},
}
CALL: Json = {"name": "a", "arguments": {}}


def event(message: object, *, id: str = "") -> bytes:
    head = f"id: {id}\n" if id else ""
    return chunk(f"{head}data: {json.dumps(message)}\n\n".encode())


def result(asked: Asked, content: Json) -> Json:
    return {"jsonrpc": "2.0", "id": json.loads(asked.body)["id"], "result": content}


class Session:
    """The script of a service of sessions that answers calls by another script."""

    def __init__(self, call: Script) -> None:
        self.call = call
        self.streams: list[Asked] = []

    async def __call__(self, asked: Asked) -> None:
        if asked.method == "GET":
            self.streams.append(asked)
            await asked.say(SSE)
            await asked.gone()
        elif asked.method == "DELETE":
            await asked.say(whole(b""))
        else:
            await self._post(asked)

    async def _post(self, asked: Asked) -> None:
        match json.loads(asked.body).get("method"):
            case "initialize":
                await asked.say(whole(json.dumps(result(asked, HELLO)).encode(), TYPE, SESSION))
            case "tools/call":
                await self.call(asked)
            case _:
                await asked.say(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
async def raw(laptop: Laptop) -> AsyncIterator[RawService]:
    async with RawService() as service:
        await laptop.up(service.port)
        yield service


@pytest.fixture
async def client(laptop: Laptop, raw: RawService) -> StdioClient:
    """A client that has begun a session."""
    raw.script = Session(falls_silent)
    client = await laptop.bridge()
    assert (await client.initialize())["result"]["serverInfo"]["name"] == "raw"
    return client


def calls(raw: RawService) -> int:
    return sum(b'"tools/call"' in one.body for one in raw.asked)


def answers(status: int, body: bytes, *fields: bytes) -> Script:
    head = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n" % (status, len(body))
    return says(head + b"".join(one + b"\r\n" for one in fields) + b"\r\n" + body)


async def half_an_event(asked: Asked) -> None:
    await asked.say(SSE + chunk(b'data: {"jsonrpc": "2.0", "id"') + END)


async def resets(asked: Asked) -> None:
    asked.abort()


async def someone_elses(asked: Asked) -> None:
    other = {"jsonrpc": "2.0", "id": "another", "result": {}}
    await asked.say(SSE + event(other) + END)


async def not_a_number(asked: Asked) -> None:
    caller = json.dumps(json.loads(asked.body)["id"]).encode()
    body = b'{"jsonrpc": "2.0", "id": ' + caller + b', "result": {"x": NaN}}'
    await asked.say(whole(body, TYPE))


async def not_a_number_in_an_event(asked: Asked) -> None:
    caller = json.dumps(json.loads(asked.body)["id"]).encode()
    text = b'data: {"jsonrpc": "2.0", "id": ' + caller + b', "result": {"x": NaN}}\n\n'
    await asked.say(SSE + chunk(text) + END)


async def an_error_that_is_not_json(asked: Asked) -> None:
    body = b'{"error": {"code": -1, "message": "x", "data": NaN}}'
    await asked.say(b"HTTP/1.1 500 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


HTML = b"<html><h1>Welcome</h1></html>"
CASES: dict[str, tuple[Script, int, str]] = {
    "401": (answers(401, b""), -32004, "does not accept who is asking"),
    "403": (answers(403, HTML), -32003, "not allowed"),
    "405": (answers(405, b""), -32012, "takes no POST"),
    "413": (answers(413, HTML), -32010, "too large"),
    "429": (answers(429, b"", b"Retry-After: 5"), -32007, "Too many requests"),
    "502": (answers(502, HTML), -32012, "cannot be reached"),
    "503": (answers(503, HTML), -32013, "not available now"),
    "504": (answers(504, HTML), -32016, "has not answered in time"),
    "418": (answers(418, b"teapot"), -32600, "418"),
    "302": (answers(302, b"", b"Location: /login"), -32600, "302"),
    "HTML": (answers(200, HTML, b"Content-Type: text/html"), -32603, "no message"),
    "202": (answers(202, b""), -32603, "no message"),
    "204": (says(b"HTTP/1.1 204 X\r\n\r\n"), -32603, "no message"),
    "empty JSON": (answers(200, b"", TYPE), -32603, "cannot be read"),
    "half of JSON": (answers(200, b'{"jsonrpc": ', TYPE), -32603, "cannot be read"),
    "NaN": (not_a_number, -32603, "NaN"),
    "NaN in an event": (not_a_number_in_an_event, -32603, "NaN"),
    "NaN in an error": (an_error_that_is_not_json, -32600, "500"),
    "a list": (answers(200, b"[1, 2]", TYPE), -32603, "cannot be read"),
    "no message": (answers(200, b'{"id": []}', TYPE), -32603, "cannot be read"),
    "odd method": (answers(200, b'{"jsonrpc":"2.0","method":[1]}', TYPE), -32603, "cannot be"),
    "somebody else's": (
        answers(200, b'{"jsonrpc":"2.0","id":"z","result":{}}', TYPE),
        -32603,
        "no",
    ),
    "somebody else's event": (someone_elses, -32015, "may have run"),
    "half an event": (half_an_event, -32015, "may have run"),
    "not HTTP": (says(b"SSH-2.0-OpenSSH_9.2\r\n"), -32015, "may have run"),
    "a reset": (resets, -32015, "may have run"),
}


async def test_every_call_is_answered_in_words_and_made_once(
    client: StdioClient, raw: RawService
) -> None:
    script = raw.script
    assert isinstance(script, Session)
    for name, (call, code, words) in CASES.items():
        script.call = call
        before = calls(raw)
        error = (await client.ask("tools/call", CALL))["error"]
        assert error["code"] == code, name
        assert words in error["message"], name
        assert error["message"].endswith("."), name
        assert calls(raw) == before + 1, name
    assert not client.noise


async def test_an_error_without_an_id_is_the_answer(client: StdioClient, raw: RawService) -> None:
    error = {"code": -32602, "message": "No.", "data": [1]}
    body = json.dumps({"jsonrpc": "2.0", "id": None, "error": error}).encode()
    assert isinstance(raw.script, Session)
    for call in (
        answers(400, body, TYPE),
        answers(200, body, TYPE),
        says(SSE + event(json.loads(body)) + END),
    ):
        raw.script.call = call
        assert (await client.ask("tools/call", CALL))["error"] == error


async def test_what_is_unreadable_beside_the_answer_does_not_matter(
    client: StdioClient, raw: RawService
) -> None:
    async def call(asked: Asked) -> None:
        broken = chunk(b": a comment\n\ndata: {broken\n\ndata: [5]\n\nevent: x\ndata\n\n")
        await asked.say(SSE + broken + event(result(asked, {"fine": True})) + END)

    assert isinstance(raw.script, Session)
    raw.script.call = call
    assert (await client.ask("tools/call", CALL))["result"] == {"fine": True}


@pytest.mark.parametrize("when", ["", "retry: 1\n"])
@pytest.mark.parametrize("lost", ["ended", "reset"])
async def test_a_call_goes_on_where_its_stream_ended(
    client: StdioClient, raw: RawService, lost: str, when: str
) -> None:
    """MCP 2025-11-25: an event with an id, and the answer on another stream."""
    script = raw.script
    assert isinstance(script, Session)
    begun: list[Asked] = []

    async def call(asked: Asked) -> None:
        begun.append(asked)
        await asked.say(SSE + chunk(f"id: e1\n{when}data:\n\n".encode()))
        await (asked.say(END) if lost == "ended" else resets(asked))

    async def serve(asked: Asked) -> None:
        if ("Last-Event-ID", "e1") in asked.fields:
            assert asked.method == "GET"
            assert ("Mcp-Session-Id", "s1") in asked.fields
            await asked.say(SSE + event(result(begun[0], {"late": True}), id="e2") + END)
        else:
            await script(asked)

    script.call = call
    raw.script = serve
    assert (await client.ask("tools/call", CALL))["result"] == {"late": True}
    assert len(begun) == 1


async def test_a_call_whose_stream_is_gone_for_good_has_an_unknown_outcome(
    client: StdioClient, raw: RawService
) -> None:
    script = raw.script
    assert isinstance(script, Session)
    script.call = says(SSE + chunk(b"id: e1\ndata:\n\n") + END)

    async def serve(asked: Asked) -> None:
        if ("Last-Event-ID", "e1") in asked.fields:
            await asked.say(b"HTTP/1.1 400 X\r\nContent-Length: 0\r\n\r\n")
        else:
            await script(asked)

    raw.script = serve
    error = (await client.ask("tools/call", CALL))["error"]
    assert error["data"]["code"] == "outcome_unknown"
    assert calls(raw) == 1
    assert any(("Last-Event-ID", "e1") in one.fields for one in raw.asked)


@pytest.mark.parametrize(
    "script",
    [falls_silent, answers(200, HTML, b"Content-Type: text/html"), answers(401, b""), resets],
    ids=["silence", "HTML", "401", "resets"],
)
async def test_a_client_is_greeted_whatever_is_there(
    laptop: Laptop, raw: RawService, script: Script
) -> None:
    raw.script = script
    client = await laptop.bridge()
    hello = await client.initialize(within=20)
    assert hello["result"]["serverInfo"]["name"] == "catalyst-tunnel"
    assert "not been reached" in hello["result"]["instructions"]
    assert (await client.ask("tools/list", within=20))["result"] == {"tools": []}
    assert client.alive


class Stateless:
    """The script of a stateless service that answers calls by another script."""

    def __init__(self, call: Script) -> None:
        self.call = call

    async def __call__(self, asked: Asked) -> None:
        if asked.body and json.loads(asked.body)["method"] == "server/discover":
            found = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
            await asked.say(whole(json.dumps(result(asked, found)).encode(), TYPE))
        else:
            await self.call(asked)


async def test_a_stateless_service_cannot_ask_in_the_middle_of_a_call(
    laptop: Laptop, raw: RawService
) -> None:
    """It has nobody to ask; the call that runs meanwhile is answered as if it had not."""

    async def call(asked: Asked) -> None:
        question = {"jsonrpc": "2.0", "id": 0, "method": "roots/list"}
        await asked.say(SSE + event(question) + event(result(asked, {"done": True})) + END)

    raw.script = Stateless(call)
    client = await laptop.bridge()
    assert (await client.ask("tools/call", modern(CALL)))["result"] == {"done": True}
    assert client.asked == []


async def test_a_call_that_ran_and_says_header_mismatch_is_not_made_again(
    laptop: Laptop, raw: RawService
) -> None:
    """Only with status 400 does that mean that nothing was done (MCP 2026-07-28, Transports)."""
    error = {"code": -32020, "message": "Mine."}

    async def call(asked: Asked) -> None:
        told = {"jsonrpc": "2.0", "id": json.loads(asked.body)["id"], "error": error}
        await asked.say(SSE + event(told) + END)

    raw.script = Stateless(call)
    client = await laptop.bridge()
    assert (await client.ask("tools/call", modern(CALL)))["error"] == error
    assert calls(raw) == 1


@pytest.mark.parametrize("place", ["a ", "a\x01"])
async def test_a_place_that_no_header_can_hold_is_none(
    client: StdioClient, raw: RawService, place: str
) -> None:
    assert isinstance(raw.script, Session)
    raw.script.call = says(SSE + chunk(f"id: {place}\nretry: 1\ndata:\n\n".encode()) + END)
    error = (await client.ask("tools/call", CALL))["error"]
    assert error["data"]["code"] == "outcome_unknown"
    assert calls(raw) == 1


# The client's side


async def test_bad_lines_are_answered_and_the_bridge_lives_on(
    client: StdioClient, raw: RawService
) -> None:
    client.write(b"hello")
    client.write(b"\xff\xfe{}")
    client.write(b"")
    client.write(b"[]")
    client.write(b'{"jsonrpc": "2.0", "id": null, "method": "ping"}')
    client.write(b'{"jsonrpc": "2.0", "id": 9, "result": {}}')
    client.write(b'{"jsonrpc": "2.0", "method": "notifications/cancelled"}')
    client.write(
        b'{"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": []}}'
    )
    client.write(b'{"jsonrpc": "2.0", "method": "no/such/notification"}')
    assert (await client.ask("ping"))["result"] == {}
    codes = [json.loads(line)["error"]["code"] for line in client.noise]
    assert codes == [-32700, -32700, -32600, -32600]
    assert all(json.loads(line)["id"] is None for line in client.noise)


async def test_lines_without_an_end_in_sight(client: StdioClient) -> None:
    hundred = b'{"jsonrpc":"2.0","id":7001,"method":"tools/call","params":{"x":"%b"}}'
    client.write(hundred % (b"x" * (100 << 20)))
    last = b'{"method":"tools/call","params":{"x":"%b"},"jsonrpc":"2.0","id":"last"}'
    client.write(last % (b"x" * (33 << 20)))
    assert (await client.ask("ping", within=50))["result"] == {}
    told = [json.loads(line) for line in client.noise]
    assert [one["id"] for one in told] == [7001, "last"]
    assert all(one["error"]["code"] == -32600 for one in told)
    assert "100 MiB" in told[0]["error"]["message"]
    assert "32 MiB are taken" in told[0]["error"]["message"]


async def test_an_id_that_runs_already_is_refused_and_the_first_one_goes_on(
    client: StdioClient, raw: RawService
) -> None:
    caller, answer = client.request("tools/call", CALL)
    await raw.until(lambda: calls(raw) == 1)
    text = {"jsonrpc": "2.0", "id": caller, "method": "tools/call", "params": CALL}
    client.write(json.dumps(text).encode())
    error = (await asyncio.wait_for(answer, 20))["error"]
    assert error["code"] == -32600
    assert "was not sent" in error["message"]
    assert calls(raw) == 1


async def test_a_client_that_reads_late_gets_everything_and_is_waited_for(
    client: StdioClient, raw: RawService
) -> None:
    """More than the bridge keeps comes on a stream that it does not read ahead of its client."""
    piece = event({"jsonrpc": "2.0", "method": "notifications/x", "params": {"x": "y" * 999_900}})
    count = 128  # MB: twice what the SSH channel, the bridge and the kernel hold on the way
    sent = 0

    async def call(asked: Asked) -> None:
        nonlocal sent
        await asked.say(SSE)
        for _ in range(count):
            await asked.say(piece)
            sent += 1
        await asked.say(event(result(asked, {})) + END)

    assert isinstance(raw.script, Session)
    raw.script.call = call
    stdout = client._running.stdout
    assert stdout is not None
    transport = stdout._transport  # type: ignore[attr-defined]
    transport.pause_reading()
    stdout._paused = True  # type: ignore[attr-defined]
    _, answer = client.request("tools/call", CALL)
    last = -1
    try:
        async with asyncio.timeout(20):
            while sent == 0 or sent != last:
                last = sent
                await asyncio.sleep(0.5)
        assert sent < count
    finally:
        stdout._paused = False  # type: ignore[attr-defined]
        transport.resume_reading()
    assert (await asyncio.wait_for(answer, 30))["result"] == {}
    assert len(client.notifications) == count


async def test_what_the_service_asks_twice_by_one_id_is_answered_apart(
    client: StdioClient, raw: RawService
) -> None:
    """A restarted service counts anew: an old answer must not reach a new question."""
    script = raw.script
    assert isinstance(script, Session)
    question = {"jsonrpc": "2.0", "id": 0, "method": "elicitation/create"}
    client.answering = False

    async def call(asked: Asked) -> None:
        await asked.say(SSE + event({**question, "params": {"message": "Sell all?"}}))
        await asked.gone()

    script.call = call
    client.request("tools/call", CALL)
    await client.until(lambda: len(client.asked) == 1)
    gone = b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"
    states = {"gone": True}

    async def forgotten(asked: Asked) -> None:
        if b'"again"' in asked.body and states["gone"]:
            states["gone"] = False
            await asked.say(gone)
        else:
            await script(asked)

    raw.script = forgotten
    client.request("tools/call", {**CALL, "arguments": {"again": 1}})
    await client.until(lambda: len(client.asked) == 2)
    first, second = (one["id"] for one in client.asked)
    assert first != second
    cancelled = [one for one in client.notifications if one["method"].endswith("/cancelled")]
    assert [one["params"]["requestId"] for one in cancelled] == [first]
    for caller, action in ((first, "accept"), (second, "decline")):
        text = {"jsonrpc": "2.0", "id": caller, "result": {"action": action}}
        client.write(json.dumps(text).encode())
    said = b'"action"'
    await raw.until(lambda: any(said in one.body for one in raw.asked))
    assert (await client.ask("ping"))["result"] == {}
    told = [json.loads(one.body) for one in raw.asked if said in one.body]
    assert told == [{"jsonrpc": "2.0", "id": 0, "result": {"action": "decline"}}]
