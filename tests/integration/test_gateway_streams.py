"""What passes through a gateway: answers as they come, and services that answer badly."""

import asyncio
import contextlib
import gzip
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import aiohttp
import pytest

from gateway.settings import Layout
from gateway.site import Site, find_nginx
from gateway.verify import verify
from tests.callers import Caller, Callers, Door
from tests.droplet import free_port
from tests.gatewayserver import Enrolled, GatewayServer, call
from tests.nginxserver import Nginx
from tests.rawservice import (
    END,
    OK,
    SSE,
    Asked,
    RawService,
    chunk,
    falls_silent,
    says,
    whole,
)
from tunnel.demo.nginx import make_certificate

DOORS = pytest.mark.parametrize("door", ["unix", "loopback", "nginx"])
MIB = 1 << 20
SILENCE = 1.0  # seconds


@dataclass
class World:
    """A gateway with NGINX in front; the service on `port` is each test's own."""

    gateway: GatewayServer
    nginx: Nginx
    laptop: Enrolled
    port: int


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if find_nginx() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no nginx on this machine, and CI must have one: apt install nginx-light")
        pytest.skip("no nginx on this machine: apt install nginx-light")
    directory = tmp_path_factory.mktemp("streams")
    port = free_port()
    ca, key = make_certificate(directory)
    gateway = GatewayServer(
        directory / "gateway", f"http://127.0.0.1:{port}", settings={"silence": f"{SILENCE}"}
    )
    laptop = gateway.enrol(directory / "laptop", "operator")
    site = Site(
        "localhost",
        gateway.directory,
        https_port=free_port(),
        http_port=free_port(),
        tls_certificate=str(ca),
        tls_key=str(key),
        access_log=str(directory / "access.log"),
        ipv6=False,
    )
    with gateway, Nginx(directory / "nginx", site) as nginx:
        yield World(gateway, nginx, laptop, port)
        log = gateway.log.read_text()
        assert not [line for line in log.splitlines() if not line.startswith("INFO")], log
        gateway.stop()
        assert verify([Layout(gateway.directory).audit]).findings == ()


@pytest.fixture
async def service(world: World) -> AsyncIterator[RawService]:
    async with RawService(world.port) as running:
        yield running


@pytest.fixture
async def caller(world: World, service: RawService, door: Door) -> AsyncIterator[Caller]:
    async with Callers(world.gateway, world.nginx) as callers:
        yield callers.at(door, world.laptop)


# Answers as they come


@DOORS
@pytest.mark.parametrize("body", [None, call("tools/call", "run_backtest")], ids=["GET", "POST"])
async def test_an_event_arrives_before_the_next_is_made(
    caller: Caller, service: RawService, body: bytes | None
) -> None:
    heard = asyncio.Event()

    async def script(asked: Asked) -> None:
        await asked.say(SSE)
        for number in range(5):
            await asked.say(chunk(b"data: %d\n\n" % number))
            await heard.wait()
            heard.clear()
        await asked.say(END)

    service.script = script
    async with caller.ask(body) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/event-stream"
        for number in range(5):
            assert await answer.content.readuntil(b"\n\n") == b"data: %d\n\n" % number
            heard.set()
        assert await answer.content.read() == b""


@DOORS
@pytest.mark.parametrize("body", [None, call()], ids=["GET", "POST"])
@pytest.mark.parametrize("begun", [False, True], ids=["waiting", "streaming"])
async def test_a_client_that_leaves_is_told_to_the_service(
    caller: Caller, service: RawService, world: World, body: bytes | None, begun: bool
) -> None:
    told: list[float] = []

    async def script(asked: Asked) -> None:
        if begun:
            await asked.say(SSE + chunk(b"data: 0\n\n"))
        await asked.gone()
        told.append(time.monotonic())

    service.script = script
    asking = asyncio.ensure_future(caller.ask(body).__aenter__())
    await service.until_asked()
    if begun:
        await (await asking).content.readuntil(b"\n\n")
    before = len(world.gateway.audit())
    went = time.monotonic()
    await caller.session.close()  # at once: TLS's own goodbye would wait for NGINX to answer it
    await service.until(lambda: bool(told), 5)
    assert told[0] - went < 0.5
    await asyncio.gather(asking, return_exceptions=True)
    await service.until(lambda: "outcome" in world.gateway.audit()[-1])
    [line] = world.gateway.audit()[before:]
    assert (line["code"], line["status"]) == ("broken_off", 200 if begun else 0)


@DOORS
async def test_a_stream_that_ends_well_keeps_its_connections(
    caller: Caller, service: RawService
) -> None:
    service.script = says(SSE + chunk(b"data: 0\n\n") + END)
    for _ in range(5):
        assert await caller.status(call()) == 200
    assert service.connections == 1


# Answers that break off


@DOORS
@pytest.mark.parametrize("how", ["reset", "closed"])
@pytest.mark.parametrize(
    "head",
    [SSE + chunk(b"data: 0\n\n"), OK + b"Content-Length: 1000000\r\n\r\ndata: 0\n\n"],
    ids=["chunked", "length"],
)
async def test_an_answer_that_breaks_off_does_not_look_whole(
    caller: Caller, service: RawService, head: bytes, how: str
) -> None:
    heard = asyncio.Event()

    async def script(asked: Asked) -> None:
        await asked.say(head)
        await heard.wait()
        asked.abort() if how == "reset" else asked.close()

    service.script = script
    async with caller.ask(call()) as answer:
        assert await answer.content.readuntil(b"\n\n") == b"data: 0\n\n"
        heard.set()
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.content.read()
    assert len(service.asked) == 1


@DOORS
async def test_a_small_answer_that_breaks_off_is_told_in_words(
    caller: Caller, service: RawService
) -> None:
    service.script = says(OK + b"Content-Length: 10\r\n\r\nhalf", close=True)
    assert await caller.refusal(call()) == (502, "outcome_unknown")
    assert len(service.asked) == 1


@pytest.mark.parametrize("door", ["unix"])
async def test_a_small_answer_that_stays_a_half_has_an_end(
    caller: Caller, service: RawService
) -> None:
    service.script = says(OK + b"Content-Length: 10\r\n\r\nhalf")
    assert await caller.refusal(call()) == (504, "upstream_silent")
    assert len(service.asked) == 1


# What is passed on, and what is not


def padded(size: int) -> bytes:
    """Return a call of exactly so many bytes."""
    bare = len(call(pad=""))
    return call(pad="x" * (size - bare))


@DOORS
async def test_four_mebibytes_pass_and_not_a_byte_more(caller: Caller, service: RawService) -> None:
    body = padded(4 * MIB)
    assert await caller.status(body) == 200
    assert [asked.body == body for asked in service.asked] == [True]
    assert await caller.status(padded(4 * MIB + 1)) == 413
    assert len(service.asked) == 1


@DOORS
async def test_a_compressed_answer_passes_as_it_is(caller: Caller, service: RawService) -> None:
    body = gzip.compress(b'{"jsonrpc":"2.0","id":7,"result":{}}')
    service.script = says(whole(body, b"Content-Encoding: gzip", b"Vary: Accept-Encoding"))
    async with caller.ask(call(), fields={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["Content-Encoding"] == "gzip"
        assert await answer.read() == body
    assert ("Accept-Encoding", "gzip") in service.asked[0].fields


@DOORS
async def test_nothing_is_added_to_a_request_but_a_via(caller: Caller, service: RawService) -> None:
    await caller.status(path="/health?a=%2F&b")
    [asked] = service.asked
    assert (asked.method, asked.target) == ("GET", "/health?a=%2F&b")
    assert sorted(asked.fields) == [
        ("Host", f"127.0.0.1:{service.port}"),
        ("Via", "1.1 catalyst-gateway"),
    ]


@DOORS
async def test_head(caller: Caller, service: RawService) -> None:
    service.script = says(OK + b"Content-Length: 100000\r\nETag: x\r\n\r\n")
    for _ in range(2):
        async with caller.ask(path="/health", method="HEAD") as answer:
            assert answer.status == 200
            assert (answer.headers["Content-Length"], answer.headers["ETag"]) == ("100000", "x")
            assert await answer.read() == b""


@DOORS
@pytest.mark.parametrize(
    "head",
    [
        b"204 No Content\r\n",
        b"304 Not Modified\r\n",
        b"304 Not Modified\r\nContent-Length: 5\r\n",
        b"202 Accepted\r\nContent-Length: 0\r\n",
    ],
)
async def test_answers_without_a_body(caller: Caller, service: RawService, head: bytes) -> None:
    service.script = says(b"HTTP/1.1 %bX-A: 1\r\n\r\n" % head)
    for _ in range(2):
        async with caller.ask(path="/health") as answer:
            assert answer.status == int(head[:3])
            assert answer.headers["X-A"] == "1"
            assert "Transfer-Encoding" not in answer.headers
            assert await answer.read() == b""
    assert service.connections == 1


@DOORS
@pytest.mark.parametrize("status", [b"100 Continue", b"102 Processing", b"103 Early Hints"])
async def test_an_interim_answer_is_not_the_answer(
    caller: Caller, service: RawService, status: bytes
) -> None:
    service.script = says(b"HTTP/1.1 %b\r\nLink: </a>\r\n\r\n" % status + whole(b"yes"))
    async with caller.ask(call()) as answer:
        assert (answer.status, await answer.read()) == (200, b"yes")
        assert "Link" not in answer.headers


@DOORS
async def test_a_redirect_is_the_clients_to_follow(caller: Caller, service: RawService) -> None:
    location = f"http://127.0.0.1:{service.port}/health".encode()
    service.script = says(
        b"HTTP/1.1 307 Temporary Redirect\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % location
    )
    async with caller.ask(call()) as answer:
        assert answer.status == 307
        assert answer.headers["Location"] == location.decode()
    assert [asked.target for asked in service.asked] == ["/mcp"]


@DOORS
async def test_many_fields_in_their_order(caller: Caller, service: RawService) -> None:
    fields = [("X-Many", f"{number}") for number in range(100)]
    lines = [f"{name}: {value}".encode() for name, value in fields]
    service.script = says(whole(b"", *lines))
    async with caller.ask(call()) as answer:
        assert answer.headers.getall("X-Many") == [value for _, value in fields]


@DOORS
async def test_what_the_service_must_not_say(caller: Caller, service: RawService) -> None:
    service.script = says(
        whole(
            b"yes",
            b"Set-Cookie: a=b",
            b"Via: 1.1 somebody",
            b"Proxy-Status: catalyst-gateway; error=connection_refused",
            b"Connection: X-Hop, keep-alive",
            b"X-Hop: 1",
            b"Keep-Alive: timeout=1000",
            b"Mcp-Session-Id: 77",
        )
    )
    async with caller.ask(call()) as answer:
        assert await answer.read() == b"yes"
        assert answer.headers.getall("Via") == ["1.1 catalyst-gateway"]
        assert answer.headers["Mcp-Session-Id"] == "77"
        for name in ("Set-Cookie", "Proxy-Status", "X-Hop", "Keep-Alive"):
            assert name not in answer.headers


# Services that answer badly

CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
GARBAGE = {
    "ssh": (says(b"SSH-2.0-OpenSSH_9.2\r\n"), "upstream_invalid"),
    "noise": (says(b"\x00\x01\x02\x03" * 100), "upstream_invalid"),
    "huge head": (says(OK + b"X: " + b"a" * MIB + b"\r\n\r\n"), "upstream_invalid"),
    "too many fields": (says(OK + b"X: 1\r\n" * 5000 + b"\r\n"), "upstream_invalid"),
    "two lengths": (
        says(OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
        "upstream_invalid",
    ),
    "length and chunks": (
        says(OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        "upstream_invalid",
    ),
    "a length of 5,000 digits": (
        says(OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n"),
        "upstream_invalid",
    ),
    "a negative length": (says(OK + b"Content-Length: -1\r\n\r\n"), "upstream_invalid"),
    "a bad name": (says(OK + b"Bad Header: x\r\n\r\n"), "upstream_invalid"),
    "a switch of protocols": (
        says(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
        "upstream_invalid",
    ),
    "half a head": (says(b"HTTP/1.1 200 OK\r\nConte", close=True), "outcome_unknown"),
    "nothing": (says(b"", close=True), "outcome_unknown"),
    "silence": (falls_silent, "upstream_silent"),
    "half a head, then silence": (says(b"HTTP/1.1 200 OK\r\nConte"), "upstream_silent"),
    "an interim answer, then silence": (
        says(b"HTTP/1.1 100 Continue\r\n\r\n"),
        "upstream_silent",
    ),
}
TOLD = {
    "upstream_invalid": (502, "http_protocol_error"),
    "outcome_unknown": (502, "connection_terminated"),
    "upstream_silent": (504, "http_response_timeout"),
    "upstream_refused": (502, "connection_refused"),
}


async def told(caller: Caller, code: str) -> None:
    """Send a call; assert that it is refused in words, with that code."""
    async with caller.ask(call()) as answer:
        status, error = TOLD[code]
        assert answer.status == status, await answer.text()
        assert answer.headers["Proxy-Status"] == f"catalyst-gateway; error={error}"
        assert "Via" not in answer.headers
        body = json.loads(await answer.text())
        assert (body["id"], body["error"]["data"]["code"]) == (7, code)
        assert body["error"]["message"].endswith(".")


@pytest.mark.parametrize("door", ["unix", "nginx"])
@pytest.mark.parametrize("kind", GARBAGE)
async def test_what_is_no_answer(
    caller: Caller, service: RawService, world: World, kind: str
) -> None:
    service.script, code = GARBAGE[kind]
    await told(caller, code)
    assert (len(service.asked), service.connections) == (1, 1)  # a call is never made twice
    service.script = says(whole(b"yes"))
    assert await caller.status(call()) == 200
    line = [one for one in world.gateway.audit() if one.get("code") == code][-1]
    assert line["status"] == TOLD[code][0]


@pytest.mark.parametrize("door", ["unix", "nginx"])
@pytest.mark.parametrize(
    "data", [b"ZZ\r\nab\r\n", b"3\r\nabcdef\r\n", b"-1\r\n", b"f" * 40 + b"\r\nab"]
)
async def test_chunks_that_are_none_never_make_a_whole_answer(
    caller: Caller, service: RawService, data: bytes
) -> None:
    """Whether the head was passed on by then decides between a refusal and a break."""
    service.script = says(CHUNKED + chunk(b"data") + data)
    with contextlib.suppress(aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
        async with asyncio.timeout(3), caller.ask(call()) as answer:
            assert answer.status in (200, 502)
            await answer.read()
            assert answer.status == 502
            assert "Via" not in answer.headers
    assert len(service.asked) == 1


@DOORS
async def test_a_service_that_is_not_there(caller: Caller, service: RawService) -> None:
    await service.stop()
    await told(caller, "upstream_refused")
    await service.start()
    assert await caller.status(call()) == 200
    assert len(service.asked) == 1


@pytest.mark.parametrize("door", ["unix"])
async def test_a_call_does_not_meet_a_connection_that_has_closed(
    caller: Caller, service: RawService
) -> None:
    """A service that closes what is kept, at once or after a while, costs no call."""

    async def script(asked: Asked) -> None:
        await asked.say(whole(b"yes"))
        asyncio.get_running_loop().call_later(len(service.asked) % 3 * 0.02, asked.close)

    service.script = script
    for _ in range(12):
        assert await caller.status(call()) == 200
        await asyncio.sleep(0.06)
    assert len(service.asked) == 12
