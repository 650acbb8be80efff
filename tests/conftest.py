"""What most tests stand on: a real sshd, a service behind it, and a tunnel in this event loop."""

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.droplet import Sshd, Target, find_sshd
from tests.faults import Relay
from tunnel.settings import Address, ForwardRule, Settings, Ssh
from tunnel.up import Tunnel

# A shell starts what runs in its background with SIGINT ignored, and so would ours be.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one process; mark those that end ssh sessions.

    A registrar ends those sessions of an account that it did not note, another test's for one: so
    they run with no others beside them.
    """
    for item in items:
        names = vars(getattr(item, "module", None) or object).values()
        item.add_marker(pytest.mark.xdist_group(item.path.name))
        if any(getattr(one, "__module__", "") in _ENDING for one in names):
            item.add_marker(pytest.mark.sessions)


_ENDING = {"tests.registrarserver", "tests.keystack"}


@pytest.fixture(scope="session")
def _sshd_program() -> Path:
    program = find_sshd()
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no sshd on this machine, and CI must have one: apt install openssh-server")
        pytest.skip("no sshd on this machine: apt install openssh-server")
    return program


@pytest.fixture
def sshd(_sshd_program: Path, tmp_path: Path) -> Iterator[Sshd]:
    with Sshd(tmp_path / "droplet") as server:
        yield server


@pytest.fixture
async def target() -> AsyncIterator[Target]:
    async with Target() as service:
        yield service


@pytest.fixture
async def relay(sshd: Sshd) -> AsyncIterator[Relay]:
    """The network between laptop and droplet."""
    async with Relay(sshd.host, sshd.port) as between:
        yield between


@dataclass
class Running:
    """A tunnel that runs in this event loop, and a client for it."""

    tunnel: Tunnel
    url: str
    client: aiohttp.ClientSession
    task: asyncio.Task[None]
    settings: Settings
    home: Path

    def port_of(self, name: str) -> int:
        """Return the local port of a raw forward."""
        listen = next(one.listen for one in self.tunnel.snapshot().forwards if one.name == name)
        return int(listen[0].rpartition(":")[2])

    async def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        """Wait until `condition()` holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.01)

    async def until_state(self, state: str, seconds: float = 15.0) -> None:
        """Wait until the ssh path is in `state`."""
        await self.until(lambda: self.tunnel.snapshot().paths[0].state == state, seconds)


async def run_tunnel(
    exits: contextlib.AsyncExitStack,
    settings: Settings,
    home: Path,
    uniform: Callable[[float, float], float] = lambda low, high: low,
) -> Running:
    """Start a tunnel in this event loop; `exits` ends it."""
    tunnel = Tunnel(settings, home, uniform)
    ready = asyncio.Event()
    task = asyncio.ensure_future(tunnel.run(ready.set))
    await asyncio.wait_for(ready.wait(), 5)
    session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40))
    port = tunnel.snapshot().listen[0].rpartition(":")[2]
    running = Running(tunnel, f"http://localhost:{port}", session, task, settings, home)

    async def end() -> None:
        await session.close()
        tunnel.stop()
        await task

    exits.push_async_callback(end)
    return running


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(sshd: Sshd, target: Target, relay: Relay, tmp_path: Path) -> AsyncIterator[Start]:
    """Start tunnels: `await start(hold=1.0, ssh={"user": "nobody"})`; through the relay.

    The jitter is taken out unless `uniform` is given: a retry comes as early as it may.
    """
    stack = contextlib.AsyncExitStack()
    numbers = itertools.count(1)
    known_hosts = tmp_path / "known_hosts"
    known_hosts.write_text(
        f"[127.0.0.1]:{relay.port} {sshd.host_key}\n[127.0.0.1]:{sshd.port} {sshd.host_key}\n"
    )
    base = Settings(
        file=tmp_path / "home" / "config.toml",
        ssh=Ssh(
            host="127.0.0.1",
            port=relay.port,
            user=sshd.user,
            identity=sshd.identity,
            known_hosts=known_hosts,
            target=Address(target.host, target.port),
        ),
        listen=Address("127.0.0.1", 0),
        forwards=(ForwardRule("raw", Address("127.0.0.1", 0), Address(target.host, target.port)),),
    )

    async def begin(
        *,
        ssh: dict[str, Any] | None = None,
        up: bool = True,
        home: Path | None = None,
        uniform: Callable[[float, float], float] = lambda low, high: low,
        **own: Any,
    ) -> Running:
        file = (home or tmp_path / f"home{next(numbers)}") / "config.toml"
        settings = replace(base, file=file, ssh=replace(base.ssh, **(ssh or {})), **own)
        home = settings.file.parent
        running = await run_tunnel(stack, settings, home, uniform)
        if up:
            await running.until_state("up")
        return running

    async with stack:
        yield begin
