"""What a gateway keeps: its audit log and its state, and what it does without them."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from gateway.audit import LONGEST_TEXT
from gateway.settings import Layout
from gateway.state import Rate
from gateway.state_redis import RedisState
from tests.callers import Door, Far, open_far
from tests.gatewayserver import GatewayServer, call
from tests.rawservice import SSE, Asked, chunk, falls_silent, whole
from tests.redisserver import RedisServer, find_redis

STOP = call(name="stop_trading")
MIB = 1 << 20
DOORS: tuple[Door, ...] = ("unix", "loopback")
MARKER = "m4rk-of-an-argument"


@pytest.fixture
async def far(tmp_path: Path) -> AsyncIterator[Far]:
    async with open_far(tmp_path) as opened:
        yield opened


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A Redis server, of whom a gateway asked something a minute ago."""
    if find_redis() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("CI must have redis-server: apt install redis-server")
        pytest.skip("no redis-server on this machine: apt install redis-server")
    with RedisServer(tmp_path / "redis") as server:
        state = RedisState(server.url)
        await state.open()
        await state.admit("somebody", Rate(1, 1), None, time.time() - 60)
        await state.close()
        yield server


@pytest.fixture
async def shared(redis: RedisServer, tmp_path: Path) -> AsyncIterator[Far]:
    """A gateway that keeps its state in Redis."""
    async with open_far(tmp_path, state=json.dumps(redis.url)) as opened:
        yield opened


@contextlib.contextmanager
def another(far: Far, redis: RedisServer, directory: Path) -> Iterator[GatewayServer]:
    """A second gateway with the same clients and the same state."""
    upstream = f"http://127.0.0.1:{far.service.port}"
    second = GatewayServer(directory, upstream, settings={"state": json.dumps(redis.url)})
    shutil.copy(far.layout.registry, directory)
    with second:
        yield second


async def faults(far: Far) -> list[str]:
    status, text = await far.about("/ready")
    told = json.loads(text)
    assert (status, told["ready"]) == ((200, True) if not told["faults"] else (503, False))
    found: list[str] = told["faults"]
    return found


def verify(gateway: GatewayServer) -> None:
    """Check the log as an operator does."""
    assert gateway.run("audit", "verify").returncode == 0


# The audit log


@pytest.mark.parametrize("door", DOORS)
async def test_it_is_on_record_before_the_service_hears_of_it(far: Far, door: Door) -> None:
    seen: list[list[dict[str, object]]] = []

    async def script(asked: Asked) -> None:
        seen.append(far.gateway.audit())
        await asked.say(whole(b"yes"))

    far.service.script = script
    before = len(far.gateway.audit())
    assert await far.at(door).status(call()) == 200
    [allowed] = seen[0][before:]
    assert (allowed["decision"], allowed["client"], allowed["tool"]) == (
        "allow",
        "laptop",
        "get_cycle",
    )
    await far.until_decided("allow")
    [_, outcome] = far.gateway.audit()[before:]
    assert (outcome["outcome"], outcome["status"]) == (allowed["seq"], 200)


async def test_every_request_has_its_lines(far: Far) -> None:
    unix, loopback, nobody = far.at("unix"), far.at("loopback"), far.at("unix", far.neighbour)
    before = len(far.gateway.audit())
    asked = [
        *(unix.status(call()) for _ in range(20)),
        *(loopback.status(call()) for _ in range(20)),
        *(unix.status(path="/secret") for _ in range(10)),
        *(
            nobody.status(call(), fields=unix.identity() | nobody.client.identity())
            for _ in "12345"
        ),
    ]
    statuses = await asyncio.gather(*asked)
    assert sorted(statuses) == [200] * 40 + [401] * 5 + [403] * 10
    await far.service.until(lambda: len(far.gateway.audit()) - before >= 95)
    lines = far.gateway.audit()[before:]
    allowed = [line["seq"] for line in lines if line.get("decision") == "allow"]
    ended = [line["outcome"] for line in lines if "outcome" in line]
    denied = [line["code"] for line in lines if line.get("decision") == "deny"]
    assert len(allowed) == 40
    assert sorted(ended) == allowed
    assert sorted(denied) == ["binding_mismatch"] * 5 + ["path_denied"] * 10


async def test_no_secret_and_no_argument_is_written_anywhere(far: Far) -> None:
    sent: list[str] = []

    def fields(door: Door) -> dict[str, str]:
        found = far.at(door).identity()
        sent.append(found["Authorization"].rpartition(" ")[2])
        return found

    body = call(text=MARKER)
    for door in DOORS:
        caller = far.at(door)
        assert await caller.status(body, fields=fields(door)) == 200
        wrong = {"Authorization": f"Bearer {far.laptop.token(bound=door != 'unix')}"}
        sent.append(wrong["Authorization"].rpartition(" ")[2])
        assert await caller.status(body, fields=wrong) == 401
        assert await caller.status(body[:-1], fields=fields(door)) == 400
        unheard = {**fields(door), "Mcp-Name": MARKER}
        assert await caller.status(body, fields=unheard) == 400
        assert await caller.status(path=f"/health?{MARKER}", fields=fields(door)) == 200
        assert await caller.status(path=f"/{MARKER}", fields=fields(door)) == 403
        assert await caller.status(body, path=f"/{MARKER}", fields=fields(door)) == 403

    async def dies(asked: Asked) -> None:
        await asked.say(MARKER.encode())
        asked.abort()

    far.service.script = dies
    assert await far.at("unix").status(body, fields=fields("unix")) == 502
    reader, writer = await asyncio.open_unix_connection(str(far.gateway.socket))
    writer.write(f"{MARKER} {sent[0]}\r\n\r\n".encode())
    assert b" 400 " in await reader.readline()
    writer.close()
    await asyncio.to_thread(far.gateway.stop)
    process = far.gateway._process
    assert process is not None
    assert process.stdout is not None
    texts = [process.stdout.read().encode()]
    # issued/ is where certificates are kept, by the command that issues them.
    files = [one for one in far.gateway.directory.rglob("*") if one.parent.name != "issued"]
    texts += [file.read_bytes() for file in files if file.is_file()]
    line = far.laptop.certificate.splitlines()[-3]  # of its signature
    secrets = [MARKER, line, quote(line, safe="")]
    for token in sent:
        secrets += token.split(".")[1:]  # the header is the same for all, and tells the kid
    assert len(secrets) > 30
    assert far.laptop.name.encode() in b"".join(texts)
    for secret in secrets:
        assert not [text for text in texts if secret.encode() in text], secret


async def test_a_name_of_a_mebibyte_is_neither_kept_nor_told(far: Far) -> None:
    unix = far.at("unix")
    process = psutil.Process(far.gateway.pid)
    for number in range(48):
        if number == 8:  # by then buffers have grown as they do
            before = process.memory_info().rss
        assert await unix.status(call(name=f"{number}" + "x" * 2 * MIB)) == 200
        await asyncio.sleep(0.18)  # large bodies have a rate of their own
    assert process.memory_info().rss - before < 64 * MIB
    tools = [line["tool"] for line in far.gateway.audit() if "tool" in line]
    assert {len(tool) for tool in tools} == {LONGEST_TEXT}


async def test_killed_under_load_it_leaves_a_log_that_holds(far: Far) -> None:
    async def ask_on() -> None:
        caller = far.at("unix")
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await caller.status(call())

    asking = [asyncio.ensure_future(ask_on()) for _ in range(4)]
    await far.service.until_asked(50)
    far.gateway.kill()
    await asyncio.gather(*asking, return_exceptions=True)
    allowed = sum(line.get("decision") == "allow" for line in far.gateway.audit())
    assert allowed >= len(far.service.asked)
    far.gateway.start()
    assert await far.at("unix").status(call()) == 200
    await asyncio.to_thread(verify, far.gateway)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the gateway's state."""
    directory = tmp_path / "gateway" / "state"
    directory.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=512k,mode=0700", "tmpfs", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path) -> Path:
    """Leave no space on a disk, and return the file that has it."""
    filler = directory / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 512):
            pass
    return filler


@pytest.mark.parametrize("kept", ["redis", "sqlite"])
async def test_nothing_is_passed_on_that_cannot_be_put_on_record(
    redis: RedisServer, small_disk: Path, tmp_path: Path, kept: str
) -> None:
    state = json.dumps(redis.url if kept == "redis" else "sqlite")
    settings = {} if kept == "sqlite" else {"state": state}
    async with open_far(tmp_path, **settings) as far:
        unix = far.at("unix")
        assert await unix.status(call()) == 200
        assert await faults(far) == []
        filler = fill(small_disk)
        passed = 1
        async with asyncio.timeout(20):
            while await unix.status(call()) == 200:  # into what is left of the log's last page
                passed += 1
        codes = set()
        for _ in range(8):
            for door in DOORS:
                status, code = await far.at(door).refusal(call())
                assert status == 503
                codes.add(code)
            assert (await unix.refusal(STOP))[0] == 503
        expected = {"audit_unavailable"}
        assert codes == expected if kept == "redis" else codes <= {*expected, "state_unavailable"}
        assert len(far.service.asked) == passed
        told = await faults(far)
        assert told != []
        assert any("No space left on device" in fault or "full" in fault for fault in told)
        filler.unlink()
        assert await unix.status(call()) == 200
        assert await far.at("loopback").status(call()) == 200
        assert await faults(far) == []
        await asyncio.to_thread(verify, far.gateway)


# State


async def test_a_token_is_used_up_at_every_gateway(
    shared: Far, redis: RedisServer, tmp_path: Path
) -> None:
    with another(shared, redis, tmp_path / "second") as second:
        for first, then in ((shared.gateway, second), (second, shared.gateway)):
            token = shared.laptop.over_ssh()
            one = shared.callers.at("loopback", shared.laptop, first)
            two = shared.callers.at("loopback", shared.laptop, then)
            assert await one.status(call(), fields=token) == 200
            assert await two.refusal(call(), fields=token) == (401, "unauthorized")
            assert then.until_audit("token_replayed")["client"] == "laptop"
        tokens = [shared.laptop.over_ssh() for _ in range(20)]
        both = [
            shared.callers.at("loopback", shared.laptop, one) for one in (second, shared.gateway)
        ]
        statuses = await asyncio.gather(
            *(caller.status(call(), fields=token) for token in tokens for caller in both)
        )
        assert sorted(statuses) == [200] * 20 + [401] * 20
    assert len(shared.service.asked) == 22


async def test_the_rate_is_shared(shared: Far, redis: RedisServer, tmp_path: Path) -> None:
    with another(shared, redis, tmp_path / "second") as second:
        for gateway in (shared.gateway, second):
            for key, value in (("burst", "10"), ("requests_per_second", "0.1")):
                with gateway.reloading():
                    gateway.change(key, value)
        both = [shared.callers.at("unix", shared.laptop, one) for one in (shared.gateway, second)]
        assert [await both[number % 2].status(call()) for number in range(10)] == [200] * 10
        for caller in both:
            assert await caller.refusal(call()) == (429, "rate_limited")
        others = shared.callers.at("unix", shared.neighbour, second)
        assert await others.status(call()) == 200


@pytest.mark.parametrize("how", ["stopped", "frozen"])
async def test_without_its_state_it_lets_nothing_through(
    shared: Far, redis: RedisServer, how: str
) -> None:
    doors = [shared.at("unix"), shared.at("loopback")]
    assert [await caller.status(call()) for caller in doors] == [200, 200]
    redis.stop(keep_data=True) if how == "stopped" else redis.freeze()
    for caller in doors:
        for body in (call(), STOP):
            began = time.monotonic()
            async with caller.ask(body) as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "1"
                assert (await answer.json())["error"]["data"]["code"] == "state_unavailable"
            assert time.monotonic() - began < 2.5
    [fault] = await faults(shared)
    assert str(redis.port) in fault
    assert fault in shared.gateway.log.read_text()
    assert len(shared.service.asked) == 2
    redis.start() if how == "stopped" else redis.resume()
    assert await doors[0].status(call()) == 200
    assert await faults(shared) == []


async def test_an_emergency_does_not_wait_for_the_state_where_the_operator_says_so(
    shared: Far, redis: RedisServer, tmp_path: Path
) -> None:
    observer = shared.gateway.enrol(tmp_path / "observer", "observer")
    for key, value in (("observer", '["stop_trading"]'), ("stop_without_state", "true")):
        with shared.gateway.reloading():
            shared.gateway.change(key, value)
    assert await shared.at("unix", observer).status(STOP) == 200
    redis.stop()
    for door in DOORS:
        operator, other = (shared.at(door, one) for one in (shared.laptop, observer))
        before = len(shared.gateway.audit())
        assert await operator.status(STOP) == 200
        [line] = [one for one in shared.gateway.audit()[before:] if "without" in one]
        assert (line["decision"], line["without"], line["tool"]) == (
            "allow",
            "state",
            "stop_trading",
        )
        assert await operator.refusal(call()) == (503, "state_unavailable")
        assert await other.refusal(STOP) == (503, "state_unavailable")
        assert await operator.refusal(path="/health") == (503, "state_unavailable")
    assert len(shared.service.asked) == 3
    redis.start()
    assert await shared.at("unix").status(STOP) == 200
    assert "without" not in shared.gateway.audit()[-1]
    assert await shared.at("unix").status(call()) == 200


async def test_what_runs_goes_on_without_the_state(shared: Far, redis: RedisServer) -> None:
    go = asyncio.Event()

    async def script(asked: Asked) -> None:
        await asked.say(SSE + chunk(b"data: 0\n\n"))
        await go.wait()
        await asked.say(chunk(b"data: 1\n\n"))
        await falls_silent(asked)

    shared.service.script = script
    async with shared.at("unix").ask() as answer:
        assert await answer.content.readuntil(b"\n\n") == b"data: 0\n\n"
        redis.stop()
        assert await shared.at("unix").refusal(call()) == (503, "state_unavailable")
        go.set()
        assert await answer.content.readuntil(b"\n\n") == b"data: 1\n\n"


async def test_a_state_file_that_is_taken_away_is_noticed(far: Far) -> None:
    loopback, unix = far.at("loopback"), far.at("unix")
    assert await loopback.status(call()) == 200
    for file in far.layout.state.glob("state.db*"):
        file.unlink()
    assert await loopback.refusal(call()) == (503, "state_unavailable")
    [fault] = await faults(far)
    assert "state.db" in fault
    assert "restart the gateway" in fault
    async with asyncio.timeout(5):  # on https it is for the rates, which are kept once a second
        while await unix.status(call()) == 200:
            await asyncio.sleep(0.1)
    assert await unix.refusal(call()) == (503, "state_unavailable")
    assert await asyncio.to_thread(far.gateway.stop) == 0
    far.gateway.start()
    assert await far.at("unix").status(call()) == 200
    assert await faults(far) == []


async def test_it_does_not_start_without_its_state(redis: RedisServer, tmp_path: Path) -> None:
    gateway = GatewayServer(
        tmp_path / "gateway", "http://127.0.0.1:1", settings={"state": json.dumps(redis.url)}
    )
    redis.stop()
    done = await asyncio.to_thread(gateway.run, "serve", check=False)
    assert done.returncode == 2
    assert str(redis.port) in done.stderr
    assert not Layout(gateway.directory).socket.exists()
