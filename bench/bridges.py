"""Who is compared on the stdio side: each is a program that a client starts and speaks MCP to."""

import contextlib
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

from bench.stage import Stage
from tests.stdioclient import StdioClient
from tests.tools import MissingToolError, node_program, python_program


class Bridge:
    """A way from stdio to the service, and every client that was started for it."""

    name: ClassVar[str]

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.clients: list[StdioClient] = []
        self._command = self.command()

    def command(self) -> list[str]:
        """The program and its arguments; raises MissingToolError."""
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        """What it is told besides."""
        return {}

    @contextlib.asynccontextmanager
    async def start(self) -> AsyncIterator[StdioClient]:
        """Start it; what it says on stderr goes to a log of its own."""
        log = self.stage.directory / f"{self.name.replace(' ', '-')}.log"
        client = StdioClient(self._command, env=self.environment(), log=log)
        self.clients.append(client)
        async with client:
            yield client

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[StdioClient]:
        """Start it, and open a session."""
        async with self.start() as client:
            await client.initialize()
            yield client


class CatalystStdio(Bridge):
    """`catalyst-tunnel stdio`, by the script that Claude Desktop is told to start."""

    name = "catalyst stdio"

    def command(self) -> list[str]:
        script = shutil.which("catalyst-tunnel", path=str(Path(sys.executable).parent))
        program = [script] if script else [sys.executable, "-m", "tunnel"]
        return [*program, "stdio", "--config", str(self.stage.config)]

    def environment(self) -> dict[str, str]:
        return self.stage.environment


class McpProxy(Bridge):
    """mcp-proxy, from PyPI."""

    name = "mcp-proxy"

    def command(self) -> list[str]:
        program = python_program("mcp-proxy")
        return [*program, "--transport", "streamablehttp", self.stage.url]


class McpRemote(Bridge):
    """mcp-remote, from npm."""

    name = "mcp-remote"

    def command(self) -> list[str]:
        return [*node_program("mcp-remote"), self.stage.url, "--transport", "http-only"]

    def environment(self) -> dict[str, str]:
        return {"MCP_REMOTE_CONFIG_DIR": str(self.stage.directory / "mcp-remote")}


class Supergateway(Bridge):
    """supergateway, from npm."""

    name = "supergateway"

    def command(self) -> list[str]:
        program = node_program("supergateway")
        return [*program, "--streamableHttp", self.stage.url, "--logLevel", "none"]


class FastmcpRun(Bridge):
    """`fastmcp run URL`."""

    name = "fastmcp run"

    def command(self) -> list[str]:
        script = shutil.which("fastmcp", path=str(Path(sys.executable).parent))
        if script is None:
            raise MissingToolError("fastmcp is not installed: pip install -e '.[dev]'")
        return [script, "run", self.stage.url, "--no-banner"]


BRIDGES: list[type[Bridge]] = [CatalystStdio, McpProxy, McpRemote, Supergateway, FastmcpRun]
FEW: list[type[Bridge]] = [CatalystStdio, McpProxy]


def present(stage: Stage, wanted: list[type[Bridge]]) -> tuple[list[Bridge], dict[str, str]]:
    """Those of them that are there, and of the others why they are not."""
    there, missing = [], {}
    for kind in wanted:
        try:
            there.append(kind(stage))
        except MissingToolError as why:
            missing[kind.name] = str(why)
    return there, missing
