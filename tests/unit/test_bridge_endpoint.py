"""Which endpoint the next request takes, with stand-ins for what is behind them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import pytest

from tests.rawservice import Asked, RawService
from tunnel.bridge import endpoint
from tunnel.bridge.endpoint import Endpoint, Endpoints
from tunnel.control import ControlServer, control_file
from tunnel.http import ConnectionGoneError, HttpConnection
from tunnel.problems import ProblemError
from tunnel.settings import SettingsError


class Own:
    """Paths of our own, to a raw service."""

    host = b"own"

    def __init__(self, port: int) -> None:
        self.port = port
        self.closed: list[float] = []
        self.fault: OSError | None = None

    async def connect(self) -> HttpConnection:
        if self.fault is not None:
            raise self.fault
        loop = asyncio.get_running_loop()
        _, http = await loop.create_connection(
            lambda: HttpConnection("client"), "127.0.0.1", self.port
        )
        return http

    async def close(self, grace: float) -> None:
        self.closed.append(grace)


@dataclass
class World:
    """A home, the endpoints on it, and two services to reach: by a tunnel and by ourselves."""

    file: Path
    ours: RawService
    theirs: RawService
    made: list[Own] = field(default_factory=list)
    fault: SettingsError | None = None

    def make(self, file: Path) -> Endpoint:
        if self.fault is not None:
            raise self.fault
        self.made.append(Own(self.ours.port))
        return self.made[-1]

    @contextlib.asynccontextmanager
    async def up(self, *, listen: list[str] | None = None) -> AsyncIterator[dict[str, Any]]:
        """Have a tunnel run on this home; what it says to `who` can be changed."""
        addresses = [f"127.0.0.1:{self.theirs.port}"] if listen is None else listen
        said: dict[str, Any] = {"pid": 1, "listen": addresses}

        async def who() -> dict[str, Any]:
            return said

        control = ControlServer(self.file.parent, {"who": who})
        await control.start()
        try:
            yield said
        finally:
            control.stop()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with RawService() as ours, RawService() as theirs:
        yield World(tmp_path / "config.toml", ours, theirs)


@pytest.fixture
async def endpoints(world: World) -> AsyncIterator[Endpoints]:
    endpoints = Endpoints(world.file, world.make)
    yield endpoints
    await endpoints.close(0.0)


async def resets(asked: Asked) -> None:
    asked.abort()


async def ask(endpoints: Endpoints) -> bytes:
    """Make one exchange, and return whose it was: what was said in Host."""
    http, host = await endpoints.connect()
    try:
        request = h11.Request(method=b"GET", target=b"/", headers=[(b"Host", host)])
        http.write(request, h11.EndOfMessage())
        while not isinstance(await http.receive(), h11.EndOfMessage):
            pass
    finally:
        endpoints.give_back(http)
    return host


async def test_without_a_tunnel_ours_is_made_once(world: World, endpoints: Endpoints) -> None:
    assert [await ask(endpoints) for _ in range(3)] == [b"own"] * 3
    assert len(world.made) == 1
    assert world.ours.connections == 1  # kept
    both = await asyncio.gather(endpoints.connect(), endpoints.connect())
    for http, _ in both:
        endpoints.give_back(http)  # unused: it is closed
    assert await ask(endpoints) == b"own"
    assert len(world.made) == 1


async def test_a_tunnel_that_runs_comes_first(world: World, endpoints: Endpoints) -> None:
    async with world.up():
        assert await ask(endpoints) == b"127.0.0.1:%d" % world.theirs.port
    assert world.made == []


async def test_a_tunnel_may_come_and_go(world: World, endpoints: Endpoints) -> None:
    assert await ask(endpoints) == b"own"
    for number in (1, 2):
        async with world.up():
            assert await ask(endpoints) != b"own"
            await asyncio.sleep(0)
            assert world.made[number - 1].closed == [endpoint.SEE_OUT]  # calls may still run
        assert await ask(endpoints) == b"own"
        assert len(world.made) == number + 1


async def test_one_that_was_killed_left_its_file(world: World, endpoints: Endpoints) -> None:
    async with world.up():
        await ask(endpoints)
        left = control_file(world.file.parent).read_bytes()
    control_file(world.file.parent).write_bytes(left)
    control_file(world.file.parent).chmod(0o600)
    await world.theirs.stop()
    assert await ask(endpoints) == b"own"


async def test_one_that_was_killed_left_its_port_to_another_program(
    world: World, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "PROVEN", 0.0)
    async with world.up():
        assert await ask(endpoints) != b"own"
        left = control_file(world.file.parent)
        text, info = left.read_bytes(), left.stat()
        kept = left.rename(left.with_name("kept"))
    kept.rename(left)  # the very file, as a kill leaves it
    assert (left.read_bytes(), left.stat().st_ino) == (text, info.st_ino)
    await world.theirs.stop()
    await world.theirs.start()
    before = len(world.theirs.asked)
    assert await ask(endpoints) == b"own"
    assert len(world.theirs.asked) == before


async def test_after_one_connection_has_ended_no_other_is_trusted(
    world: World, endpoints: Endpoints
) -> None:
    """A process that is killed loses its connections one after another, and its port last."""
    async with world.up():
        running, _ = await endpoints.connect()
        assert await ask(endpoints) != b"own"  # and is kept
        file = control_file(world.file.parent)
        left = file.rename(file.with_name("kept"))
    left.rename(file)
    before = len(world.theirs.asked)
    world.theirs.script = resets
    running.write(
        h11.Request(method=b"GET", target=b"/", headers=[(b"Host", b"x")]), h11.EndOfMessage()
    )
    with pytest.raises((ConnectionGoneError, h11.RemoteProtocolError)):
        await running.receive()
    endpoints.give_back(running)
    assert await ask(endpoints) == b"own"
    assert len(world.theirs.asked) == before + 1


async def test_one_that_ends_between_two_looks(world: World, endpoints: Endpoints) -> None:
    """The file is as before, and nothing listens any longer."""
    async with world.up():
        await ask(endpoints)
        await world.theirs.stop()
        assert await ask(endpoints) == b"own"


@pytest.mark.parametrize("listen", [[], [None], ["nonsense"], ["127.0.0.1:x"]])
async def test_one_that_cannot_say_where_it_listens_is_asked_again(
    world: World, endpoints: Endpoints, listen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "LOOK", 0.01)
    async with world.up(listen=listen) as said:
        assert await ask(endpoints) == b"own"
        watching = asyncio.ensure_future(endpoints.watch())
        said["listen"] = [f"127.0.0.1:{world.theirs.port}"]
        async with asyncio.timeout(10):
            while await ask(endpoints) == b"own":
                await asyncio.sleep(0.01)
        watching.cancel()


async def test_requests_do_not_wait_for_one_that_does_not_answer(
    world: World, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "LOOK", 0.0)
    monkeypatch.setattr(endpoint, "WHO", 3600.0)
    assert await ask(endpoints) == b"own"
    asked = asyncio.Event()

    async def never(home: Path, command: str) -> dict[str, Any]:
        asked.set()
        await asyncio.Event().wait()
        return {}

    monkeypatch.setattr(endpoint, "ask", never)
    control_file(world.file.parent).parent.mkdir()
    control_file(world.file.parent).write_text("{}")
    watching = asyncio.ensure_future(endpoints.watch())
    async with asyncio.timeout(10):
        await asked.wait()
        assert await ask(endpoints) == b"own"
    watching.cancel()


async def test_faulty_settings_are_told_and_may_be_mended(
    world: World, endpoints: Endpoints
) -> None:
    world.fault = SettingsError(["hold must be a number."])
    with pytest.raises(ProblemError, match="hold must be a number") as caught:
        await ask(endpoints)
    assert caught.value.problem.code == "settings_faulty"
    world.fault = None
    assert await ask(endpoints) == b"own"


async def test_no_more_sockets_are_told_and_not_waited_for(
    world: World, endpoints: Endpoints
) -> None:
    await ask(endpoints)
    for one in endpoints._idle:
        one.http.abort()
    world.made[0].fault = OSError(24, "Too many open files")
    async with asyncio.timeout(10):
        with pytest.raises(ProblemError) as caught:
            for _ in range(3):
                await endpoints.connect()
    assert caught.value.problem.code == "busy"
    world.made[0].fault = None
    assert await ask(endpoints) == b"own"


async def test_a_kept_connection_that_has_ended_is_not_used(
    world: World, endpoints: Endpoints
) -> None:
    await ask(endpoints)
    await world.ours.stop()
    [kept] = endpoints._idle
    await world.ours.until(lambda: kept.http.spoilt)
    await world.ours.start()
    assert await ask(endpoints) == b"own"
    assert world.ours.connections == 2


async def test_one_that_was_not_read_to_its_end_is_not_kept(
    world: World, endpoints: Endpoints
) -> None:
    http, host = await endpoints.connect()
    http.write(
        h11.Request(method=b"GET", target=b"/", headers=[(b"Host", host)]), h11.EndOfMessage()
    )
    await http.receive()
    endpoints.give_back(http)
    assert http.transport is not None
    assert http.transport.is_closing()
    assert endpoints._idle == []


async def test_the_end_ends_what_was_begun_here(world: World, endpoints: Endpoints) -> None:
    await ask(endpoints)
    http, _ = await endpoints.connect()
    await endpoints.close(1.0)
    assert world.made[0].closed == [0.0]
    assert http.transport is not None
    assert http.transport.is_closing()
    endpoints.give_back(http)
