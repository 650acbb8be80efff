"""Services that answer oddly, or stop in the middle: what the client gets, byte for byte."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.conftest import Running, Start
from tests.faults import Relay
from tunnel.settings import Address

LARGE = 1_000_000  # bytes of a body that the service does not wait for
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\n"
SSE = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CALL = {"jsonrpc": "2.0", "id": 4, "method": "tools/call", "params": {}}
READ = {"jsonrpc": "2.0", "id": 4, "method": "resources/read", "params": {}}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:") and (length := int(line.split(b":")[1])) < LARGE:
            head += await reader.readexactly(length)
    return head


class Service:
    """Answers each request to anything but /health by a script; counts them."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await read_request(reader)
                if b" /health " in request:
                    writer.write(OK + b"Content-Length: 0\r\n\r\n")
                    continue
                self.asked += 1
                await self.script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def tunnel_to(start: Start, script: Script) -> AsyncIterator[tuple[Running, Service]]:
    service = Service(script)
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    yield await start(ssh={"target": Address("127.0.0.1", port)}), service
    server.close()


def says(data: bytes, *, close: bool = False) -> Script:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return script


async def raw(run: Running, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(run.url.rpartition(":")[2]))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 15)
    except ConnectionResetError:
        return b"reset"
    finally:
        writer.close()


def get(path: bytes = b"/", method: bytes = b"GET") -> bytes:
    return method + b" " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "close", "code"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, "upstream_invalid"),
        (b"\x00\x01\x02\x03" * 100, False, "upstream_invalid"),
        (OK + b"X: " + b"a" * (1 << 20) + b"\r\n\r\n", False, "upstream_invalid"),
        (OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", False, "upstream_invalid"),
        (OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", False, "upstream_invalid"),
        (OK + b"Bad Header: x\r\n\r\n", False, "upstream_invalid"),
        (b"HTTP/1.1 200 OK\r\nConte", True, "upstream_closed"),
        (b"", True, "upstream_closed"),
    ],
    ids=["ssh", "noise", "1-MiB-head", "two-lengths", "long-length", "name", "half", "nothing"],
)
async def test_what_is_no_answer(start: Start, answer: bytes, close: bool, code: str) -> None:
    async with tunnel_to(start, says(answer, close=close)) as (run, service):
        async with run.client.get(f"{run.url}/") as got:
            assert got.status == 502
            assert (await got.json())["error"]["code"] == code
        asked = service.asked
        async with run.client.post(f"{run.url}/", json=CALL) as got:
            assert got.status == 502
            assert (await got.json())["error"]["data"]["code"] == "outcome_unknown"
        assert service.asked == asked + 1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", b"HTTP/1.1 204 No Content\r\nX-A: 1\r\n"),
        (b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\n\r\n', b'304 Not Modified\r\nETag: "x"\r\n'),
        (b"HTTP/1.1 299 Odd reason\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 299 Odd reason\r\n"),
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok",
            b"103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n",
        ),
        (
            OK + b"Set-Cookie: a=1\r\nset-cookie: b=2\r\nContent-Length: 2\r\n\r\nok",
            b"Set-Cookie: a=1\r\nset-cookie: b=2\r\n",
        ),
        (
            OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x00\x01",
            b"\r\n\r\n\x1f\x8b\x00\x01",
        ),
    ],
    ids=["204", "304", "reason", "interim", "duplicates", "encoded"],
)
async def test_odd_answers_pass(start: Start, answer: bytes, expected: bytes) -> None:
    async with tunnel_to(start, says(answer)) as (run, _):
        assert expected in await raw(run, get())


async def test_an_answer_without_length_ends_with_its_connection(start: Start) -> None:
    async with tunnel_to(start, says(OK + b"X: 1\r\n\r\nuntil the end", close=True)) as (run, _):
        async with run.client.get(f"{run.url}/") as got:
            assert await got.text() == "until the end"


async def test_head_has_no_body(start: Start) -> None:
    async with tunnel_to(start, says(OK + b"Content-Length: 500\r\n\r\n")) as (run, _):
        got = await raw(run, get(method=b"HEAD"))
        assert b"Content-Length: 500" in got
        assert got.endswith(b"\r\n\r\n")


async def test_an_answer_cut_short_is_never_taken_for_a_whole_one(start: Start) -> None:
    for half in (
        OK + b"Content-Length: 10\r\n\r\nhalf",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nha",
    ):
        async with tunnel_to(start, says(half, close=True)) as (run, _):
            with pytest.raises(aiohttp.ClientError):
                async with run.client.post(f"{run.url}/", json=CALL) as got:
                    await got.read()


async def test_an_early_refusal_of_a_large_upload_arrives(start: Start) -> None:
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(refusal)
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.close()

    async with tunnel_to(start, script) as (run, _):
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000000\r\n\r\n"
        got = await raw(run, head + b"x" * 500_000)
        assert got.startswith(b"HTTP/1.1 413")
        assert got.endswith(b"too large")


async def test_expect_100_continue_is_answered_here(start: Start) -> None:
    async with tunnel_to(start, says(OK + b"Content-Length: 2\r\n\r\nok")) as (run, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(run.url.rpartition(":")[2]))
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
        writer.write(head + b"Content-Type: application/json\r\nExpect: 100-continue\r\n\r\n")
        line = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert line.startswith(b"HTTP/1.1 100")
        writer.write(b"{}")
        assert (await asyncio.wait_for(reader.readline(), 10)) == b"HTTP/1.1 200 OK\r\n"
        writer.close()


async def test_a_call_whose_stream_breaks_between_events_is_told_on_it(start: Start) -> None:
    progress = b'data: {"jsonrpc": "2.0", "method": "notifications/progress"}\r\n\r\n'
    async with tunnel_to(start, says(SSE + chunk(progress), close=True)) as (run, service):
        async with run.client.post(f"{run.url}/mcp", json=CALL) as got:
            text = await got.text()
        *_, last = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
        told = json.loads(last)
        assert (told["id"], told["error"]["data"]["code"]) == (4, "outcome_unknown")
        assert service.asked == 1


async def test_a_call_whose_stream_breaks_inside_an_event_is_cut(start: Start) -> None:
    half = b'data: {"jsonrpc": "2.0", "id": 4, "resu'
    async with tunnel_to(start, says(SSE + chunk(half), close=True)) as (run, _):
        with pytest.raises(aiohttp.ClientPayloadError):
            async with run.client.post(f"{run.url}/mcp", json=CALL) as got:
                await got.read()


async def test_a_stream_that_breaks_after_the_answer_just_ends(start: Start) -> None:
    answer = b'data: {"jsonrpc": "2.0", "id": 4, "result": {}}\n\n'
    async with tunnel_to(start, says(SSE + chunk(answer), close=True)) as (run, _):
        async with run.client.post(f"{run.url}/mcp", json=CALL) as got:
            assert (await got.read()) == answer


async def test_a_read_whose_stream_broke_before_its_first_event_is_asked_again(
    start: Start, relay: Relay
) -> None:
    begun = asyncio.Event()
    answer = b'data: {"jsonrpc": "2.0", "id": 4, "result": {}}\n\n'

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not begun.is_set():
            writer.write(SSE)
            begun.set()
        else:
            writer.write(SSE + chunk(answer) + b"0\r\n\r\n")

    async with tunnel_to(start, script) as (run, service):
        reading = asyncio.ensure_future(run.client.post(f"{run.url}/mcp", json=READ))
        await begun.wait()
        await asyncio.sleep(0.05)
        relay.reset_all()
        assert await (await reading).read() == answer
        assert service.asked == 2


async def test_a_standing_stream_ends_cleanly_when_the_link_breaks(
    start: Start, relay: Relay
) -> None:
    async with tunnel_to(start, says(SSE + chunk(b": hello\n\n"))) as (run, _):
        async with run.client.get(f"{run.url}/mcp") as got:
            assert await got.content.readany() == b": hello\n\n"
            relay.reset_all()
            assert await got.content.read() == b""


async def test_a_chunked_answer_with_a_length_is_what_its_chunks_are(start: Start) -> None:
    both = OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(b"hello")
    async with tunnel_to(start, says(both + b"0\r\n\r\n")) as (run, _):
        got = await raw(run, get())
        assert b"content-length" not in got.lower()
        assert b"hello" in got


@pytest.mark.parametrize("body", [CALL, None], ids=["json", "stream"])
async def test_connection_cannot_name_away_what_frames_a_message(
    start: Start, body: object
) -> None:
    seen: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")

    async with tunnel_to(start, script) as (run, _):
        read = globals()["read_request"]

        async def note(reader: asyncio.StreamReader) -> bytes:
            seen.append(await read(reader))
            return seen[-1]

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(globals(), "read_request", note)
            content = json.dumps(body).encode() if body else b"hello"
            kind = b"application/json" if body else b"text/plain"
            got = await raw(
                run,
                b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Type: " + kind + b"\r\n"
                b"Connection: close, Content-Length, Host, Content-Type, Mcp-Session-Id\r\n"
                b"Mcp-Session-Id: 1\r\nContent-Length: %d\r\n\r\n" % len(content) + content,
            )
        assert b" 200 OK" in got
        request = next(one for one in seen if one.startswith(b"POST"))
        assert request.endswith(content)
        assert b"Mcp-Session-Id: 1" in request


async def test_an_old_client_gets_no_interim_answers_and_no_trailers(start: Start) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\n\r\n"
    trailers = chunk(b"hello") + b"0\r\nX-Trailer: 1\r\n\r\n"
    answer = hints + OK + b"Transfer-Encoding: chunked\r\n\r\n" + trailers
    async with tunnel_to(start, says(answer)) as (run, _):
        got = await raw(run, b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert b"103" not in got
        assert b"X-Trailer" not in got
        assert got.endswith(b"\r\n\r\nhello")


async def test_a_cut_answer_to_an_old_client_is_a_reset_and_no_end(start: Start) -> None:
    half = OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"hello")
    async with tunnel_to(start, says(half, close=True)) as (run, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(run.url.rpartition(":")[2]))
        writer.write(b"POST / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()


async def test_a_service_that_speaks_out_of_turn_harms_nobody(start: Start) -> None:
    """What follows an answer must not be taken for the answer to somebody else."""
    one = OK + b"Content-Length: 2\r\n\r\nok"
    async with tunnel_to(start, says(one + OK + b"Content-Length: 6\r\n\r\npoison")) as (run, _):
        for _ in range(5):
            async with run.client.get(f"{run.url}/") as got:
                assert await got.read() == b"ok"
