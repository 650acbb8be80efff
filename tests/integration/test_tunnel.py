"""The main job over a real sshd: what goes through, and what happens when the link does not."""

import asyncio
import gc
import hashlib
import json
import socket
import struct
import time

import aiohttp
import asyncssh
import pytest

from tests.conftest import Running, Start
from tests.droplet import Sshd, Target
from tests.faults import Relay
from tunnel import paths, sockets


def call(method: str, caller: int | str = 1, **params: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": caller, "method": method, "params": params}


async def test_a_request_passes_unchanged(start: Start) -> None:
    run = await start()
    body = bytes(range(256)) * 100
    headers = {"X-Odd-Case": "kept", "Mcp-Session-Id": "s1", "X-Empty": ""}
    target = "/echo/a%2Fb/../c?q=1&q=%20&x"
    async with run.client.request(
        "PUT", aiohttp.client.URL(run.url + target, encoded=True), data=body, headers=headers
    ) as answer:
        assert answer.status == 200
        seen = await answer.json()
    assert seen["method"] == "PUT"
    assert seen["target"] == target
    pairs = dict(seen["headers"])
    assert pairs["X-Odd-Case"] == "kept"
    assert pairs["Mcp-Session-Id"] == "s1"
    assert pairs["X-Empty"] == ""
    assert pairs["Host"] == run.url.removeprefix("http://")
    assert seen["sha256"] == hashlib.sha256(body).hexdigest()
    assert not {"via", "x-forwarded-for", "forwarded"} & {name.lower() for name in pairs}


async def raw(run: Running, request: bytes) -> bytes:
    """Send bytes and return everything that comes until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(run.url.rpartition(":")[2]))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


async def test_the_answer_passes_unchanged(start: Start) -> None:
    run = await start()
    got = await raw(run, b"GET /one HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    head = got.partition(b"\r\n\r\n")[0].lower()
    assert head.startswith(b"http/1.1 200 ok")
    for invented in (b"\r\ndate:", b"\r\nserver:", b"\r\nvia:"):
        assert invented not in head


async def test_events_pass_as_they_come(start: Start) -> None:
    run = await start()
    arrivals = []
    async with run.client.get(f"{run.url}/sse/5/60") as answer:
        assert answer.content_type == "text/event-stream"
        async for _ in answer.content:
            arrivals.append(time.monotonic())
    assert arrivals[-1] - arrivals[0] > 0.15  # not gathered: the service spends 240 ms on them


async def test_forty_megabytes_up_and_a_gigabyte_worth_of_backpressure_down(start: Start) -> None:
    run = await start()
    body = b"x" * (40 << 20)
    async with run.client.post(f"{run.url}/echo", data=body) as answer:
        seen = await answer.json()
    assert seen["length"] == len(body)
    async with run.client.get(f"{run.url}/bulk/100") as answer:
        size = 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
    assert size == 100 << 20


async def test_both_loopbacks_are_served(start: Start) -> None:
    run = await start()
    assert len(run.tunnel.snapshot().listen) == (2 if socket.has_ipv6 else 1)
    port = run.url.rpartition(":")[2]
    for host in ("127.0.0.1", "[::1]"):
        async with run.client.get(f"http://{host}:{port}/one") as answer:
            assert answer.status == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example:5000"}, "host_forbidden"),
        ({"Host": "localhost.evil.example"}, "host_forbidden"),
        ({"Origin": "https://evil.example"}, "origin_forbidden"),
        ({"Origin": "null"}, "origin_forbidden"),
    ],
)
async def test_web_pages_are_kept_out(
    start: Start, target: Target, headers: dict[str, str], code: str
) -> None:
    run = await start()
    async with run.client.post(f"{run.url}/count", json=call("tools/call"), headers=headers) as got:
        assert got.status == 403
        assert (await got.json())["error"]["code"] == code
    async with run.client.get(f"{run.url}/count") as got:
        assert (await got.text()).strip() == "1"  # the first that reached the service


async def test_requests_wait_for_the_first_connection(
    start: Start, relay: Relay, target: Target
) -> None:
    relay.refuse()
    run = await start(up=False)
    waiting = asyncio.ensure_future(run.client.get(f"{run.url}/one"))
    await run.until(lambda: run.tunnel.snapshot().held == 1)
    relay.accept()
    answer = await waiting
    assert answer.status == 200
    answer.release()


async def test_waiting_ends_in_words(start: Start, relay: Relay) -> None:
    relay.refuse()
    run = await start(up=False, hold=0.3)
    async with run.client.post(f"{run.url}/mcp", json=call("tools/call", "abc")) as answer:
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        assert answer.content_type == "application/json"
        told = await answer.json()
    assert told["id"] == "abc"
    assert told["error"]["data"]["code"] == "hold_expired"
    assert "safe to call again" in told["error"]["message"]
    async with run.client.get(f"{run.url}/one") as answer:
        assert (await answer.json())["error"]["code"] == "hold_expired"


async def test_a_service_that_is_stopped_and_comes_back(start: Start, target: Target) -> None:
    run = await start()
    await target.stop()
    async with run.client.post(f"{run.url}/mcp", json=call("tools/call", 7)) as answer:
        assert answer.status == 502
        told = await answer.json()
    assert (told["id"], told["error"]["data"]["code"]) == (7, "target_refused")
    await target.start()
    async with run.client.get(f"{run.url}/one") as answer:
        assert answer.status == 200


async def test_a_silent_service(start: Start) -> None:
    run = await start(silence=0.3)
    async with run.client.get(f"{run.url}/silent") as answer:
        assert answer.status == 504
        assert (await answer.json())["error"]["code"] == "upstream_silent"


async def test_a_service_that_closes_instead_of_answering(start: Start, target: Target) -> None:
    run = await start()
    async with run.client.get(f"{run.url}/close") as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["code"] == "upstream_closed"
    async with run.client.post(f"{run.url}/close", json=call("tools/call")) as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["data"]["code"] == "outcome_unknown"


async def test_a_read_moves_to_the_next_connection(start: Start, sshd: Sshd) -> None:
    run = await start()
    waiting = asyncio.ensure_future(run.client.get(f"{run.url}/silent"))
    await run.until(lambda: run.tunnel.snapshot().running == 1)
    await asyncio.sleep(0.05)
    sshd.kill_sessions()
    await run.until(lambda: run.tunnel.snapshot().paths[0].connects == 2)
    await asyncio.sleep(0.1)
    assert not waiting.done()  # asked again, and waiting for its answer there
    waiting.cancel()


async def test_a_call_in_flight_is_told_and_never_repeated(
    start: Start, sshd: Sshd, target: Target
) -> None:
    run = await start()
    waiting = asyncio.ensure_future(
        run.client.post(f"{run.url}/silent", json=call("tools/call", 9, name="start"))
    )
    await run.until(lambda: run.tunnel.snapshot().running == 1)
    await asyncio.sleep(0.1)
    sshd.kill_sessions()
    answer = await waiting
    told = await answer.json()
    assert answer.status == 502
    assert (told["id"], told["error"]["data"]["code"]) == (9, "outcome_unknown")
    assert told["error"]["code"] == -32015


async def test_twenty_cuts_under_load_lose_no_read(start: Start, relay: Relay) -> None:
    run = await start()
    stop = asyncio.Event()
    failed: list[object] = []
    done = 0

    async def reads(number: int) -> None:
        nonlocal done
        while not stop.is_set():
            try:
                request = call("resources/read", number)
                async with run.client.post(f"{run.url}/echo", json=request) as answer:
                    if answer.status != 200:
                        failed.append(await answer.text())
                    await answer.read()
                    done += 1
            except aiohttp.ClientError as exc:
                failed.append(exc)
            await asyncio.sleep(0.01)

    tasks = [asyncio.ensure_future(reads(number)) for number in range(4)]
    for cut in range(20):
        seen = done
        await run.until(lambda seen=seen: done > seen + 4)  # type: ignore[misc]
        relay.reset_all() if cut % 2 else relay.drop_all()
    stop.set()
    await asyncio.gather(*tasks)
    assert failed == []


async def test_a_dead_link_is_noticed_under_traffic_and_its_calls_survive(
    start: Start, relay: Relay, target: Target
) -> None:
    """Silence for longer than our patience: reads move on, calls get their answer when it ends."""
    run = await start()
    first = relay.connections[0]
    relay.stall()
    began = time.monotonic()
    body = call("tools/call", 3, name="start")
    waiting = asyncio.ensure_future(run.client.post(f"{run.url}/count", json=body))
    await run.until(lambda: run.tunnel.snapshot().paths[0].state != "up")
    assert time.monotonic() - began < 5.0
    relay.resume()
    answer = await waiting
    assert (answer.status, (await answer.text()).strip()) == (200, "1")
    await run.until_state("up")
    async with run.client.get(f"{run.url}/count") as again:
        assert (await again.text()).strip() == "2"  # it ran once
    await run.until(lambda: first not in relay.connections)  # the old connection is not kept


async def test_a_dead_link_is_noticed_when_idle(start: Start, relay: Relay) -> None:
    run = await start()
    relay.stall()
    began = time.monotonic()
    await run.until(lambda: run.tunnel.snapshot().paths[0].state != "up", 12)
    assert time.monotonic() - began < 10.0


async def test_a_link_that_nothing_happens_to_stays(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "PROBE_EVERY", 0.05)
    run = await start()
    probes = 0
    probe = run.tunnel._paths.all[0].probe

    async def counted() -> paths.Health:
        nonlocal probes
        probes += 1
        return await probe()

    monkeypatch.setattr(run.tunnel._paths.all[0], "probe", counted)
    async with run.client.get(f"{run.url}/sse/20/40") as stream:
        text = await stream.text()
    assert text.count("data:") == 20
    await run.until(lambda: probes >= 5)
    assert run.tunnel.snapshot().paths[0].connects == 1


async def test_a_stopping_tunnel_does_not_listen_again(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sockets, "LOOK_EVERY", 0.02)
    run = await start()
    running = asyncio.ensure_future(
        run.client.post(f"{run.url}/sse/10/40", json=call("tools/call"))
    )
    await (await running).content.readany()
    run.tunnel.stop()
    port = int(run.url.rpartition(":")[2])
    await asyncio.sleep(0.2)
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection("127.0.0.1", port)
    assert run.tunnel.snapshot().listen  # status can still tell


async def test_a_client_that_leaves_ends_the_request_behind(start: Start, target: Target) -> None:
    run = await start()
    waiting = asyncio.ensure_future(run.client.get(f"{run.url}/silent"))
    await run.until(lambda: run.tunnel.snapshot().running == 1)
    waiting.cancel()
    await run.until(lambda: run.tunnel.snapshot().running == 0)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b""),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * (1 << 20) + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", b"400"),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nabc",
            b"400",
        ),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"CONNECT evil:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"501"),
    ],
    ids=["noise", "tls", "no-host", "1-MiB-header", "two-hosts", "smuggling", "length", "connect"],
)
async def test_bad_requests_are_refused_without_echo(
    start: Start, request_: bytes, status: bytes
) -> None:
    run = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(run.url.rpartition(":")[2]))
    writer.write(request_)
    writer.write_eof()
    try:
        got = await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        got = b""
    writer.close()
    if status:
        assert got.split(b" ")[1] == status
        assert b"aaaa" not in got
        assert b"GARBAGE" not in got
    async with run.client.get(f"{run.url}/one") as answer:
        assert answer.status == 200  # nobody else is harmed


async def test_half_a_request_does_not_reach_the_service(start: Start, target: Target) -> None:
    run = await start()
    _reader, writer = await asyncio.open_connection("127.0.0.1", int(run.url.rpartition(":")[2]))
    writer.write(b"POST /count HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: 100\r\n\r\n{")
    await writer.drain()
    await run.until(lambda: run.tunnel.snapshot().running == 1)
    writer.close()
    await run.until(lambda: run.tunnel.snapshot().running == 0)
    async with run.client.get(f"{run.url}/count") as answer:
        assert (await answer.text()).strip() == "1"


async def test_a_pipelined_pair_is_answered_in_order(start: Start) -> None:
    run = await start()
    one = b"GET /one HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /two HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    got = await raw(run, one + one + last)
    assert got.count(b"HTTP/1.1 200 OK") == 3


async def test_raw_forward_with_half_close_and_reset(start: Start, target: Target) -> None:
    run = await start()
    reader, writer = await asyncio.open_connection("127.0.0.1", run.port_of("raw"))
    writer.write(b"GET /one HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    writer.write_eof()
    got = await asyncio.wait_for(reader.read(), 10)
    assert got.startswith(b"HTTP/1.1 200")
    writer.close()
    # A client that breaks off takes its channel along.
    sock = socket.create_connection(("127.0.0.1", run.port_of("raw")))
    sock.send(b"GET /silent HTTP/1.1\r\nHost: x\r\n\r\n")
    await run.until(lambda: run.tunnel.snapshot().forwards[0].open == 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    await run.until(lambda: run.tunnel.snapshot().forwards[0].open == 0)


async def test_raw_forward_waits_for_the_link(start: Start, relay: Relay) -> None:
    relay.refuse()
    run = await start(up=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", run.port_of("raw"))
    writer.write(b"GET /one HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    await run.until(lambda: run.tunnel.snapshot().forwards[0].open == 1)
    relay.accept()
    got = await asyncio.wait_for(reader.read(), 10)
    assert got.startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_burst_of_connections_leaves_nothing_behind(start: Start, sshd: Sshd) -> None:
    """Ten thousand connections that come and go while channels are being opened for them."""
    run = await start()
    port = run.port_of("raw")

    async def knock() -> None:
        _reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.abort()

    for _ in range(20):
        await asyncio.gather(*(knock() for _ in range(500)))
    await run.until(lambda: run.tunnel.snapshot().forwards[0].open == 0, 30)
    async with run.client.get(f"{run.url}/one") as answer:
        assert answer.status == 200
    # What sshd holds open: its own few files, the connection, a spare or two. No channel is left.
    (session,) = [one for one in sshd.sessions() if not one.children()]
    await run.until(lambda: session.num_fds() < 24, 20)


async def test_connections_that_were_replaced_are_not_kept_in_memory(
    start: Start, relay: Relay
) -> None:
    run = await start()
    for connects in range(2, 12):
        relay.reset_all()
        await run.until(lambda goal=connects: run.tunnel.snapshot().paths[0].connects >= goal)  # type: ignore[misc]
    await run.until_state("up")

    def kept() -> int:
        gc.collect()
        return sum(isinstance(one, asyncssh.SSHClientConnection) for one in gc.get_objects())

    await run.until(lambda: kept() == 1)


async def test_status_and_down_over_the_control_channel(start: Start) -> None:
    from tunnel.control import ask

    run = await start()
    status = await ask(run.home, "status")
    assert status["up"] is True
    assert status["paths"][0]["answered"] is True
    assert 0 < status["paths"][0]["latency"] < 5
    json.dumps(status)
    assert await ask(run.home, "down") == {"stopping": True}
    await asyncio.wait_for(run.task, 10)


async def test_what_waits_or_runs_is_told_when_the_tunnel_stops(start: Start, relay: Relay) -> None:
    run = await start()
    body = call("tools/call", 5)
    running = asyncio.ensure_future(run.client.post(f"{run.url}/silent", json=body))
    await run.until(lambda: run.tunnel.snapshot().running == 1)
    await asyncio.sleep(0.1)
    began = time.monotonic()
    run.tunnel.stop()
    told = await (await running).json()
    assert (told["id"], told["error"]["data"]["code"]) == (5, "outcome_unknown")
    assert time.monotonic() - began < 7

    relay.refuse()
    waiting = await start(up=False)
    held = asyncio.ensure_future(waiting.client.post(f"{waiting.url}/count", json=body))
    await waiting.until(lambda: waiting.tunnel.snapshot().held == 1)
    began = time.monotonic()
    waiting.tunnel.stop()
    told = await (await held).json()
    assert told["error"]["data"]["code"] == "stopping"
    assert time.monotonic() - began < 1


async def test_running_requests_are_finished_when_told_to_stop(start: Start) -> None:
    run = await start()
    # Fast enough to end within the grace that running requests are given.
    stream = asyncio.ensure_future(run.client.post(f"{run.url}/sse/10/50", json=call("tools/call")))
    answer = await stream
    run.tunnel.stop()
    text = await answer.text()
    assert text.count("data:") == 10
    with pytest.raises(aiohttp.ClientConnectionError):
        await run.client.get(f"{run.url}/one")
