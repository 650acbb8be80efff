"""What the bridges play on: service, sshd, a relay between, `catalyst-tunnel up` on localhost."""

import asyncio
import contextlib
import json
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from typing import Any

from bench import processes
from bench.contenders import Catalyst, Far
from bench.processes import Announced, JobError, Process
from tests.droplet import Sshd, free_port

HEALED = 30.0  # seconds that everything may take to be well again


class Up(Catalyst):
    """With the settings that `init` writes."""

    name = "catalyst up"
    hold = 30.0


class Stage:
    """All that lies between a bridge's URL and the service; each part can be broken and healed."""

    road: Announced | None = None

    def __init__(self, directory: Path, sshd: Sshd) -> None:
        self.directory = directory
        self._sshd = sshd
        self._service_port = free_port()
        self._service: Process | None = None
        self._up: Up | None = None

    @property
    def up(self) -> Up:
        assert self._up is not None
        return self._up

    @property
    def port(self) -> int:
        """The local one."""
        return self.up.port

    @property
    def url(self) -> str:
        """Where MCP is, for those who speak HTTP."""
        return f"http://localhost:{self.port}/mcp"

    @property
    def config(self) -> Path:
        return self.up.directory / "config.toml"

    @property
    def environment(self) -> dict[str, str]:
        """What `up` and whatever belongs to it are told besides."""
        return {"CATALYST_HOME": str(self.up.directory)}

    async def build(self, stack: AsyncExitStack, *, breakable: bool) -> None:
        """Start everything, and stop it with the stack; a relay only where links are broken.

        The relay acknowledges as late as TCP may, and sshd waits for that: 40 ms a call.
        """
        stack.push_async_callback(self.stop_service)
        await self.start_service()
        ssh_port = self._sshd.port
        if breakable:
            road = processes.relay(ssh_port, 0.0, self.directory)
            self.road = await stack.enter_async_context(road)
            ssh_port = self.road.port
        port = self._service_port
        self._up = Up(Far(self._sshd, ssh_port, port, port, self.directory))
        self.up.launch()
        stack.push_async_callback(self.up.stop)
        await self.healthy()

    async def healthy(self) -> None:
        """Undo what is broken, and wait until the service answers at the local address."""
        if self.road is not None:
            await self.restore()
        await self.start_service()
        await self.start_up()
        limit = monotonic() + HEALED
        while True:
            with contextlib.suppress(OSError, ValueError):
                await asyncio.to_thread(_get, self.port, "/health")
                return
            if monotonic() > limit:
                raise JobError(f"the tunnel does not get well; see {self.up.log}")
            await asyncio.sleep(0.05)

    async def reset(self) -> None:
        """Reset what connections there are; others can be made at once."""
        assert self.road is not None
        await self.road.tell("reset")

    async def cut(self) -> None:
        """Take the droplet off the network: connections are reset, and none can be made."""
        assert self.road is not None
        await self.road.tell("refuse")
        await self.road.tell("reset")

    async def restore(self) -> None:
        """Put it back."""
        assert self.road is not None
        await self.road.tell("accept")

    async def start_up(self) -> None:
        """Start `up`, if it does not run."""
        process = self.up.process
        assert process is not None
        if process.process is None:
            await process.start()

    async def stop_up(self) -> None:
        """Stop `up`: nothing is on the local address."""
        await self.up.stop()

    async def start_service(self) -> None:
        """Start the service on its port, if it does not run; it has forgotten everything."""
        if self._service is not None:
            return
        command = [sys.executable, "-m", "bench.orchestration"]
        command += ["--port", str(self._service_port)]
        self._service = Process(command, self.directory / "service.log")
        await self._service.start(talks=True)
        if " ready on " not in (said := await self._service.line()):
            raise JobError(f"the service said {said!r}; see {self._service.log}")

    async def stop_service(self) -> None:
        """End the service at once."""
        if self._service is not None:
            service, self._service = self._service, None
            await service.kill()

    async def counted(self) -> dict[str, Any]:
        """What the service has counted since it started; asked without any tunnel."""
        told: dict[str, Any] = json.loads(
            await asyncio.to_thread(_get, self._service_port, "/bench")
        )
        return told


@contextlib.asynccontextmanager
async def stage(directory: Path, *, breakable: bool) -> AsyncIterator[Stage]:
    """Build a stage in `directory`; raises JobError, RuntimeError, OSError."""
    directory.mkdir(parents=True)
    async with AsyncExitStack() as stack:
        sshd = stack.enter_context(Sshd(directory / "sshd"))
        made = Stage(directory, sshd)
        await made.build(stack, breakable=breakable)
        yield made


def _get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        body: bytes = answer.read()
    return body
