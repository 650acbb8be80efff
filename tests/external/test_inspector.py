"""The official Inspector's command line, over HTTP to the tunnel and over stdio to the bridge."""

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.external.conftest import Behind, Laptop, npm, run, running

pytestmark = pytest.mark.timeout(300)

READY = r"ready on http://127\.0\.0\.1:(\d+)/mcp"


@pytest.fixture
async def laptop(behind: Behind, tmp_path: Path) -> AsyncIterator[Laptop]:
    """A tunnel to the demo's service."""
    command = [sys.executable, "-m", "tunnel.demo.orchestration", "--port", "0"]
    async with running(command, tmp_path / "service.log", dict(os.environ), READY) as port:
        yield await behind(port)


@pytest.fixture(params=["http", "stdio"])
def server(request: pytest.FixtureRequest, laptop: Laptop, tmp_path: Path) -> list[str]:
    """What the Inspector is told of the server."""
    if request.param == "http":
        entry: dict[str, Any] = {"type": "streamable-http", "url": laptop.url}
    else:
        program, *arguments = laptop.bridge
        entry = {"command": program, "args": arguments, "env": laptop.environment}
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"catalyst": entry}}))
    return ["--config", str(file), "--server", "catalyst"]


async def inspect(server: list[str], *arguments: str) -> Any:
    """Run one method and return its result."""
    command = [*npm("@modelcontextprotocol/inspector"), "--cli", *server]
    code, stdout, stderr = await run([*command, "--method", *arguments])
    assert code == 0, stdout + stderr
    return json.loads(stdout)


async def test_lists_reads_and_calls(server: list[str]) -> None:
    tools = (await inspect(server, "tools/list"))["tools"]
    assert {"start_trading_cycle", "run_backtest"} <= {tool["name"] for tool in tools}

    read = await inspect(server, "resources/read", "--uri", "catalyst://system/health")
    assert json.loads(read["contents"][0]["text"])["status"] == "ok"

    arguments = ["--tool-name", "start_trading_cycle", "--tool-arg", "mode=normal", "note=seen"]
    called = await inspect(server, "tools/call", *arguments)
    assert called["structuredContent"]["note"] == "seen"
