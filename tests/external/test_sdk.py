"""The MCP SDK's client over stdio to the bridge, and over HTTP to the tunnel, in every mode."""

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError, StdioServerParameters

from tests.droplet import free_port
from tests.external.conftest import Behind, Laptop, npm, running

pytestmark = pytest.mark.timeout(120)

ORCHESTRATION = r"ready on http://127\.0\.0\.1:(\d+)/mcp"
EVERYTHING = r"on port (\d+)"


@pytest.fixture
async def laptop(behind: Behind, tmp_path: Path) -> AsyncIterator[Laptop]:
    """A tunnel to the demo's service."""
    command = [sys.executable, "-m", "tunnel.demo.orchestration", "--port", "0"]
    async with running(command, tmp_path / "log", dict(os.environ), ORCHESTRATION) as port:
        yield await behind(port)


def client(laptop: Laptop, way: str, mode: Any) -> Client:
    if way == "http":
        return Client(laptop.url, mode=mode)
    program, *arguments = laptop.bridge
    stdio = StdioServerParameters(
        command=program, args=arguments, env={**os.environ, **laptop.environment}
    )
    return Client(stdio, mode=mode)


@pytest.mark.parametrize("mode", ["legacy", "auto", "2026-07-28"])
@pytest.mark.parametrize("way", ["http", "stdio"])
async def test_lists_reads_calls_and_hears(laptop: Laptop, way: str, mode: str) -> None:
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with client(laptop, way, mode) as session:
        names = {tool.name for tool in (await session.list_tools()).tools}
        assert {"start_trading_cycle", "run_backtest"} <= names
        [content] = (await session.read_resource("catalyst://system/health")).contents
        assert json.loads(content.text)["status"] == "ok"  # type: ignore[union-attr]
        started = await session.call_tool("start_trading_cycle", {"mode": "normal", "note": mode})
        assert started.structured_content is not None
        assert started.structured_content["note"] == mode
        unknown = await session.call_tool("get_cycle", {"cycle_id": "none"})
        assert unknown.is_error
        with pytest.raises(MCPError):
            await session.read_resource("catalyst://no/such")
        arguments = {"steps": 3, "seconds_per_step": 0.05}
        await session.call_tool("run_backtest", arguments, progress_callback=on_progress)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("way", ["http", "stdio"])
async def test_the_reference_server(behind: Behind, tmp_path: Path, way: str) -> None:
    """npm's server-everything, which is neither ours nor made with Python."""
    command = [*npm("@modelcontextprotocol/server-everything"), "streamableHttp"]
    environment = {**os.environ, "PORT": str(free_port())}
    async with running(command, tmp_path / "log", environment, EVERYTHING) as port:
        async with client(await behind(port), way, "legacy") as session:
            assert "echo" in {tool.name for tool in (await session.list_tools()).tools}
            told = await session.call_tool("echo", {"message": "all the way"})
            assert "all the way" in told.content[0].text  # type: ignore[union-attr]
            resource = (await session.list_resources()).resources[0]
            assert (await session.read_resource(str(resource.uri))).contents
