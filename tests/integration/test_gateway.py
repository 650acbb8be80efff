"""A gateway that runs: told of changes, of revocations, to stop; flooded; asked how it is."""

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import clients
from gateway.verify import verify
from tests.callers import Caller, Far, open_far
from tests.gatewayserver import GatewayServer, call
from tests.rawservice import SSE, Asked, chunk, whole

STOP = call(name="stop_trading")


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[Far]:
    async with open_far(tmp_path) as opened:
        yield opened


@dataclass
class Kept:
    """One connection to the Unix socket, which is kept as long as the gateway lets it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, far: Far) -> Self:
        return cls(*await asyncio.open_unix_connection(str(far.gateway.socket)))

    async def ask(self, caller: Caller, body: bytes) -> tuple[int, bytes, bytes]:
        """Return status, head and body of the answer; they all tell their length here."""
        fields = caller.identity() | {"Host": "localhost", "Content-Type": "application/json"}
        lines = [f"{name}: {value}" for name, value in fields.items()]
        first = ["POST /mcp HTTP/1.1", f"Content-Length: {len(body)}"]
        self.writer.write("\r\n".join([*first, *lines, "", ""]).encode() + body)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        return int(head[9:12]), head, await self.reader.readexactly(length)


async def streaming(asked: Asked) -> None:
    """A script: an event stream that stays open, and a plain answer to plain calls."""
    if asked.method == "GET" or b"run_backtest" in asked.body:
        await asked.say(SSE + chunk(b"data: 0\n\n"))
        await asked.gone()
    else:
        await asked.say(whole(b"yes"))


async def open_stream(caller: Caller, body: bytes | None = None) -> aiohttp.ClientResponse:
    answer: aiohttp.ClientResponse = await caller.ask(body)
    assert await answer.content.readuntil(b"\n\n") == b"data: 0\n\n"
    return answer


async def ready(far: Far) -> tuple[int, list[str]]:
    status, text = await far.about("/ready")
    told = json.loads(text)
    assert told["ready"] == (status == 200)
    return status, told["faults"]


# Changes while it runs


async def test_a_new_client_is_let_in_at_once(far: Far, tmp_path: Path) -> None:
    newcomer = far.gateway.enrol(tmp_path / "newcomer", "observer")
    for door in ("unix", "loopback"):
        assert await far.at(door, newcomer).status(path="/health") == 200
        assert await far.at(door, newcomer).refusal(call()) == (403, "tool_denied")


def put(file: Path, text: str) -> None:
    """Write a file at one stroke, as a careful editor does."""
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o600)
    fresh.replace(file)


def broken(text: str) -> Callable[[Path], None]:
    return lambda file: put(file, text)


@pytest.mark.parametrize("name", ["registry.json", "gateway.toml"])
@pytest.mark.parametrize(
    "spoil",
    [broken("{"), broken("[gateway]\ndomain = 7"), broken('{"clients": 1}'), Path.unlink],
    ids=["half", "other", "another", "gone"],
)
async def test_what_cannot_be_loaded_leaves_the_old_in_force(
    far: Far, name: str, spoil: Callable[[Path], None]
) -> None:
    file = far.gateway.directory / name
    good = file.read_text()
    unix = far.at("unix")
    with far.gateway.reloading():
        spoil(file)
    assert await unix.status(call()) == 200
    status, [fault] = await ready(far)
    assert status == 503
    assert str(file) in fault
    assert f"ERROR kept what was loaded before: {file}" in far.gateway.log.read_text()
    with far.gateway.reloading():
        put(file, good)
    assert await ready(far) == (200, [])
    assert await unix.status(call()) == 200


async def test_no_request_fails_while_settings_and_registry_change(far: Far) -> None:
    paths = (far.at("unix"), far.at("loopback"), far.at("unix", far.neighbour))
    over = asyncio.Event()

    async def ask_on(caller: Caller) -> list[int]:
        found = []
        while not over.is_set():
            found.append(await caller.status(call()))
            await asyncio.sleep(0.05)
        return found

    asking = [asyncio.ensure_future(ask_on(caller)) for caller in paths]
    registry = far.layout.registry

    def change(number: int) -> None:
        with far.gateway.reloading():
            if number % 2:
                far.gateway.change("streams", str(100 + number))
            else:
                put(registry, registry.read_text() + " ")

    for number in range(20):
        await asyncio.to_thread(change, number)
    over.set()
    found = [status for one in asking for status in await one]
    assert len(found) > 100
    assert set(found) == {200}


async def test_hangup_is_for_whoever_rotates_the_log(far: Far) -> None:
    log = far.layout.audit
    assert await far.at("unix").status(call()) == 200
    old = log.with_name("audit.1")
    log.rename(old)
    far.gateway.signal(signal.SIGHUP)
    await far.service.until(log.exists)
    assert await far.at("unix").status(call()) == 200
    first, *_ = far.gateway.audit()
    assert first["event"] == "rotated"
    await asyncio.to_thread(far.gateway.stop)
    assert verify([old, log]).findings == ()


async def test_hangup_makes_it_look_at_once(far: Far) -> None:
    text = far.layout.registry.read_text()
    with far.gateway.reloading():
        put(far.layout.registry, f"{text} ")
        far.gateway.signal(signal.SIGHUP)
    assert await ready(far) == (200, [])


async def test_changed_limits_are_in_force(far: Far) -> None:
    unix = far.at("unix")
    body = call(pad="x" * 200)
    assert await unix.status(body) == 200
    with far.gateway.reloading():
        far.gateway.change("body", "200")
    assert await unix.refusal(body) == (413, "body_too_large")
    assert await unix.refusal(body, chunked=True) == (413, "body_too_large")
    assert await unix.status(call()) == 200
    with far.gateway.reloading():
        far.gateway.change("operator", '["get_cycle"]')
    assert await unix.refusal(STOP) == (403, "tool_denied")
    assert await unix.status(call()) == 200


async def test_a_change_that_needs_a_start_is_told(far: Far) -> None:
    with far.gateway.reloading():
        far.gateway.change("streams", "65")
    assert "next start" not in far.gateway.log.read_text()
    with far.gateway.reloading():
        far.gateway.change("silence", "299.0")
    await far.service.until(lambda: "take effect at the next start" in far.gateway.log.read_text())


# Revocation


async def test_a_revocation_ends_what_runs_and_nothing_else(far: Far) -> None:
    far.service.script = streaming
    backtest = call(name="run_backtest")
    ours = [
        await open_stream(far.at(door, far.laptop), body)
        for door in ("unix", "loopback")
        for body in (None, backtest)
    ]
    theirs = [await open_stream(far.at(door, far.neighbour)) for door in ("unix", "loopback")]
    began = time.monotonic()
    await asyncio.to_thread(clients.revoke, far.layout, "laptop")

    async def end(stream: aiohttp.ClientResponse) -> float:
        with pytest.raises(aiohttp.ClientPayloadError):
            await stream.content.read()
        return time.monotonic() - began

    took = await asyncio.gather(*(end(stream) for stream in ours))
    assert max(took) < 0.5
    ended = await far.until_decided("client_revoked", 4)
    allowed = {line["seq"]: line for line in far.gateway.audit() if "decision" in line}
    assert {allowed[line["outcome"]]["client"] for line in ended} == {"laptop"}
    for door in ("unix", "loopback"):
        before = len(far.gateway.audit())
        assert await far.at(door).refusal(call()) == (401, "unauthorized")
        assert len(await far.until_decided("client_revoked", after=before)) == 1
    for asked in far.service.asked:
        if not asked.closed:
            await asked.say(chunk(b"data: 1\n\n"))
    for stream in theirs:
        assert await stream.content.readuntil(b"\n\n") == b"data: 1\n\n"


# The end


async def test_told_to_stop_it_finishes_what_runs(far: Far) -> None:
    unix = far.at("unix")
    go = asyncio.Event()

    async def script(asked: Asked) -> None:
        if asked.method == "GET":
            await streaming(asked)
        elif b"slow" in asked.body:
            await go.wait()
        await asked.say(whole(b"yes"))

    far.service.script = script
    kept = await Kept.open(far)
    assert (await kept.ask(unix, call()))[0] == 200
    standing = await open_stream(unix)
    slow = asyncio.ensure_future(unix.status(call(name="slow")))
    await far.service.until_asked(3)
    far.gateway.signal(signal.SIGTERM)
    with pytest.raises(aiohttp.ClientPayloadError):
        await standing.content.read()
    status, head, body = await kept.ask(unix, call())
    assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
    assert b"\r\nRetry-After: 1\r\n" in head
    assert b"Proxy-Status: catalyst-gateway; error=proxy_internal_error\r\n" in head
    assert await kept.reader.read() == b""
    for door in ("unix", "loopback"):
        with pytest.raises(aiohttp.ClientConnectorError):
            await far.at(door).status(call())
    assert far.gateway.running
    go.set()
    assert await slow == 200
    assert await asyncio.to_thread(far.gateway.wait) == 0
    assert len(far.service.asked) == 3
    far.gateway.start()
    assert await far.at("unix").status(call()) == 200


async def test_what_outlasts_the_time_to_stop_is_cut(far: Far) -> None:
    with far.gateway.reloading():
        far.gateway.change("drain", "0.5")
    far.service.script = streaming
    stream = await open_stream(far.at("unix"), call(name="run_backtest"))
    far.gateway.signal(signal.SIGTERM)
    began = time.monotonic()
    with pytest.raises(aiohttp.ClientPayloadError):
        await stream.content.read()
    assert 0.4 < time.monotonic() - began < 1.5
    assert await asyncio.to_thread(far.gateway.wait) == 0
    assert len(far.decided("stopping")) == 1
    far.gateway.start()
    assert await far.at("loopback").status(call()) == 200


async def test_killed_it_forgets_no_token(far: Far) -> None:
    loopback = far.at("loopback")
    used = far.laptop.over_ssh()
    assert await loopback.status(call(), fields=used) == 200
    far.gateway.kill()
    far.gateway.start()
    loopback = far.at("loopback")
    assert await loopback.refusal(call(), fields=used) == (401, "unauthorized")
    assert len(await far.until_decided("token_replayed")) == 1
    assert await loopback.status(call()) == 200
    assert len(far.service.asked) == 2


# Limits


async def test_a_flood_is_its_own_problem(far: Far) -> None:
    with far.gateway.reloading():
        far.gateway.change("burst", "5")
    with far.gateway.reloading():
        far.gateway.change("requests_per_second", "2")
    unix, other = far.at("unix"), far.at("loopback", far.neighbour)
    codes = [await unix.status(call()) for _ in range(20)]
    assert codes.count(200) in (5, 6)
    async with unix.ask(call()) as answer:
        assert answer.status == 429
        assert answer.headers["Retry-After"] == "1"
        assert answer.headers["Proxy-Status"] == "catalyst-gateway; error=http_request_denied"
        assert (await answer.json())["error"]["data"]["code"] == "rate_limited"
    # Neither the others nor an emergency wait for it.
    assert await other.status(call()) == 200
    assert [await unix.status(STOP) for _ in range(5)] == [200] * 5
    async with asyncio.timeout(3):
        while await unix.status(call()) != 200:
            await asyncio.sleep(0.1)
    assert len(far.decided("rate_limited")) > 14


async def test_streams_have_a_limit_and_stop_trading_has_its_own(far: Far) -> None:
    with far.gateway.reloading():
        far.gateway.change("streams", "2")
    far.service.script = streaming
    unix = far.at("unix")
    first, _second = await open_stream(unix), await open_stream(unix)
    assert await unix.refusal(call()) == (429, "too_many_streams")
    assert await far.at("loopback").refusal(call()) == (429, "too_many_streams")
    assert await unix.status(STOP) == 200
    assert await far.at("unix", far.neighbour).status(call()) == 200
    first.close()
    await far.until_decided("broken_off")
    assert await unix.status(call()) == 200


async def test_under_a_flood_an_emergency_is_answered_in_time(far: Far) -> None:
    """Forty connections that ask without a pause, far above their rate."""
    flood, over = far.at("unix"), asyncio.Event()

    async def ask_on() -> None:
        while not over.is_set():
            await flood.status(call())

    flooding = [asyncio.ensure_future(ask_on()) for _ in range(40)]
    stop, other = far.at("loopback"), far.at("loopback", far.neighbour)
    await far.until_decided("rate_limited")
    for caller, body in ((stop, STOP), (other, call())):
        for _ in range(5):
            began = time.monotonic()
            assert await caller.status(body) == 200
            assert time.monotonic() - began < 1.0
    over.set()
    await asyncio.gather(*flooding)


# What an operator sees


async def test_what_is_told_on_the_loopback_port_alone(far: Far) -> None:
    assert await far.about("/health") == (200, "ok\n")
    assert await ready(far) == (200, [])
    assert far.service.asked == []
    session = far.at("unix").session
    for path in ("/health", "/ready", "/metrics"):
        async with session.get(f"http://localhost{path}") as answer:
            assert answer.status == 401
    assert await far.at("loopback").status(path="/health") == 200  # with a token: the service's
    assert [asked.target for asked in far.service.asked] == ["/health"]
    assert await far.at("loopback").refusal(path="/metrics") == (403, "path_denied")


async def test_metrics_say_what_happened(far: Far) -> None:
    unix = far.at("unix")
    far.service.script = streaming
    assert [await unix.status(call()) for _ in range(3)] == [200] * 3
    assert await unix.refusal(b"{") == (400, "message_invalid")
    assert await far.at("loopback").status(call()) == 200
    await open_stream(unix)
    status, text = await far.about("/metrics")
    assert status == 200
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    decisions = "catalyst_gateway_decisions_total"
    assert samples[decisions, "allow", "https"] == 3
    assert samples[decisions, "allow", "ssh"] == 1
    assert samples[decisions, "https", "message_invalid"] == 1
    assert samples["catalyst_gateway_running",] == 1
    assert samples["catalyst_gateway_faults",] == 0
    assert samples["catalyst_gateway_request_seconds_count",] == 5


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:5001"])
def test_no_other_address_than_loopback_is_listened_on(tmp_path: Path, listen: str) -> None:
    gateway = GatewayServer(tmp_path / "gateway", "http://127.0.0.1:1")
    gateway.change("listen", f'"{listen}"')
    done = gateway.run("serve", check=False)
    assert done.returncode == 2
    assert "must be a loopback address" in done.stderr


async def test_bodies_that_are_slow_to_judge_do_not_hold_up_stop_trading(
    tmp_path: Path,
) -> None:
    """Four megabytes of nested objects take a third of a second to read."""
    async with open_far(tmp_path) as far:
        bulky = b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"x":['
        bulky += b",".join([b"{}"] * 1_300_000) + b"]}}"
        over = asyncio.Event()
        answers: list[int] = []

        async def flood() -> None:
            caller = far.at("unix")
            while not over.is_set():
                answers.append(await caller.status(bulky))

        floods = [asyncio.ensure_future(flood()) for _ in range(3)]
        loop, waits = asyncio.get_running_loop(), []
        try:
            while len(answers) < 3 or len(waits) < 20:
                began = loop.time()
                assert await far.at("unix").status(call(name="stop_trading")) == 200
                waits.append(loop.time() - began)
                await asyncio.sleep(0.25)
        finally:
            over.set()
            await asyncio.gather(*floods, return_exceptions=True)
        assert 429 in answers or 200 in answers
        assert sorted(waits)[len(waits) // 2] < 0.1
