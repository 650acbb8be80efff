"""Other makers' programs at a real tunnel: `catalyst-tunnel up`, a real sshd, a real MCP server.

Not collected unless named: `make external` installs what it needs and runs it.
"""

import asyncio
import contextlib
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("mcp", reason="needs the MCP SDK")

from tests import tools
from tests.droplet import Sshd, free_port

ROOT = Path(__file__).parents[2]
START = 30.0  # seconds


@dataclass(frozen=True)
class Laptop:
    """A tunnel that is up: `url` leads through it, `direct` straight to the server behind it."""

    url: str
    direct: str
    config: Path

    @property
    def bridge(self) -> list[str]:
        """The command of its stdio bridge."""
        return [sys.executable, "-m", "tunnel", "stdio", "--config", str(self.config)]

    @property
    def environment(self) -> dict[str, str]:
        """What its processes are told besides."""
        return {"CATALYST_HOME": str(self.config.parent), "PYTHONPATH": str(ROOT)}


@contextlib.asynccontextmanager
async def running(
    command: Sequence[str], log: Path, env: Mapping[str, str], ready: str
) -> AsyncIterator[int]:
    """Run a server until the end of the block; the port that it tells in words like `ready`."""
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=said, stderr=said, stdin=asyncio.subprocess.DEVNULL, cwd=ROOT, env=env
        )
    try:
        async with asyncio.timeout(START):
            while (found := re.search(ready, log.read_text(errors="replace"))) is None:
                assert process.returncode is None, log.read_text(errors="replace")
                await asyncio.sleep(0.05)
        yield int(found[1])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


Behind = Callable[[int], Awaitable[Laptop]]


@pytest.fixture
async def behind(sshd: Sshd, tmp_path: Path) -> AsyncIterator[Behind]:
    """Start a tunnel to a server on a port: `laptop = await behind(port)`."""
    async with contextlib.AsyncExitStack() as stack:

        async def up(port: int) -> Laptop:
            home = tmp_path / "laptop"
            home.mkdir()
            listen = free_port()
            config = home / "config.toml"
            config.write_text(
                f"""\
[tunnel]
listen = "127.0.0.1:{listen}"
paths = ["ssh"]

[ssh]
host = "127.0.0.1"
port = {sshd.port}
user = "{sshd.user}"
identity = "{sshd.identity}"
known_hosts = "{sshd.known_hosts}"
target = "127.0.0.1:{port}"
"""
            )
            laptop = Laptop(
                f"http://localhost:{listen}/mcp", f"http://127.0.0.1:{port}/mcp", config
            )
            command = [sys.executable, "-m", "tunnel", "up", "--config", str(config)]
            environment = {**os.environ, **laptop.environment}
            words = rf"(?s).*:({listen})\b"
            await stack.enter_async_context(running(command, home / "log", environment, words))
            async with asyncio.timeout(START):
                await asyncio.to_thread(_until_answered, laptop.url)
            return laptop

        yield up


def _until_answered(url: str) -> None:
    """A request is held until the link is up; what the server says to a bare GET is no matter."""
    with contextlib.suppress(urllib.error.HTTPError):
        urllib.request.urlopen(url, timeout=START).close()


async def run(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, within: float = 120.0
) -> tuple[int, str, str]:
    """Run a program to its end: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(), within)
    except BaseException:
        process.kill()
        raise
    return process.returncode or 0, stdout.decode(), stderr.decode()


def npm(package: str) -> list[str]:
    """The command of an npm package; the test is skipped, in words, where it cannot be had."""
    try:
        return tools.node_program(package)
    except tools.MissingToolError as missing:
        pytest.skip(str(missing))
