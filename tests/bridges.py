"""The stdio bridge as a process, with a real sshd behind it, and with or without an `up`."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Running, Start
from tests.droplet import Sshd
from tests.eraservice import Era, EraService
from tests.faults import Relay
from tests.stdioclient import MODERN, Json, StdioClient
from tunnel.settings import Address

ROOT = Path(__file__).parents[1]

CONFIG = """\
[tunnel]
paths = ["ssh"]
{tunnel}

[ssh]
host = "127.0.0.1"
port = {ssh}
user = "{sshd.user}"
identity = "{sshd.identity}"
known_hosts = "{known_hosts}"
target = "127.0.0.1:{target}"
"""

META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "bridges", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {
        "elicitation": {"form": {}},
        "sampling": {},
        "roots": {},
    },
}
"""What a stateless client says with each request."""


def modern(params: Json | None = None, **meta: Any) -> Json:
    """Return the params of a stateless request."""
    return {**(params or {}), "_meta": {**META, **meta}}


@dataclass
class Laptop:
    """A home with settings, and the bridges that were started on it."""

    home: Path
    sshd: Sshd
    relay: Relay
    start: Start
    _exits: contextlib.AsyncExitStack

    def settings(self, target: int, *, tunnel: str = "") -> None:
        """Write the settings: through the relay to a service on a port of the droplet."""
        known_hosts = self.home / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{self.relay.port} {self.sshd.host_key}\n")
        (self.home / "config.toml").write_text(
            CONFIG.format(
                tunnel=tunnel,
                ssh=self.relay.port,
                sshd=self.sshd,
                known_hosts=known_hosts,
                target=target,
            )
        )

    async def up(self, target: int, **own: Any) -> Running:
        """Start a tunnel on this home, in this event loop."""
        ssh = {"target": Address("127.0.0.1", target)}
        return await self.start(ssh=ssh, home=self.home, **own)

    async def bridge(self) -> StdioClient:
        """Start a bridge."""
        command = [sys.executable, "-m", "tunnel", "stdio", "--config", self.home / "config.toml"]
        env = {"PYTHONPATH": str(ROOT)}
        client = StdioClient(command, env=env, log=self.home / "stderr")
        client.capabilities = {"elicitation": {}, "sampling": {}, "roots": {}}
        return await self._exits.enter_async_context(client)

    def log(self) -> str:
        """Return what the bridges have logged."""
        return (self.home / "logs" / "stdio.log").read_text()

    @property
    def parameters(self) -> dict[str, Any]:
        """What the SDK's client starts a bridge by."""
        arguments = ["-m", "tunnel", "stdio", "--config", str(self.home / "config.toml")]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        return {"command": sys.executable, "args": arguments, "env": env}


@pytest.fixture
async def laptop(sshd: Sshd, relay: Relay, start: Start, tmp_path: Path) -> AsyncIterator[Laptop]:
    home = tmp_path / "laptop"
    home.mkdir()
    async with contextlib.AsyncExitStack() as exits:
        yield Laptop(home, sshd, relay, start, exits)


@pytest.fixture
async def service(request: pytest.FixtureRequest) -> AsyncIterator[EraService]:
    """A service of the era that the test is parametrized with, or of both."""
    era: Era = getattr(request, "param", "both")
    async with EraService(era) as one:
        yield one


def text_of(answer: Json) -> str:
    """Return the text in the result of a tool call."""
    assert "result" in answer, answer
    text = answer["result"]["content"][0]["text"]
    assert isinstance(text, str)
    return text


async def within(seconds: float, *work: Any) -> list[Any]:
    """Return what several waits come to, together."""
    async with asyncio.timeout(seconds):
        return await asyncio.gather(*work)
