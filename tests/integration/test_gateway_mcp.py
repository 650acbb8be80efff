"""Both whole roads: the MCP SDK's client, tunnel, NGINX or sshd, gateway and FastMCP."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastmcp", reason="needs the demo extra")
pytest.importorskip("mcp", reason="needs the MCP SDK")

from mcp import Client, MCPError

from tests.cli.test_cli import tunnel
from tests.conftest import Running
from tests.droplet import Sshd, Target
from tests.integration.test_mcp import RESOURCES, Orchestration, see_progress, service
from tests.stack import Stack, make_stack

__all__ = ["service"]

MODES = pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
ROADS = pytest.mark.parametrize("road", ["https", "ssh"])
METRICS = "catalyst://performance/metrics"


@pytest.fixture
async def stack(sshd: Sshd, service: Orchestration, tmp_path: Path) -> AsyncIterator[Stack]:
    async with make_stack(tmp_path, sshd, Target(port=service.port)) as far:
        yield far


@pytest.fixture
async def run(stack: Stack, road: str) -> Running:
    return await stack.tunnel(paths=(road,), gateway=True)


async def read(client: Client, uri: str) -> Any:
    [content] = (await client.read_resource(uri)).contents
    return json.loads(content.text)  # type: ignore[union-attr]


@ROADS
@MODES
async def test_an_operator_lists_reads_and_calls(
    run: Running, stack: Stack, road: str, mode: str
) -> None:
    async with Client(f"{run.url}/mcp", mode=mode) as client:
        assert {str(one.uri) for one in (await client.list_resources()).resources} == RESOURCES
        tools = {tool.name for tool in (await client.list_tools()).tools}
        assert {"start_trading_cycle", "stop_trading"} <= tools
        for uri in RESOURCES:
            assert "as_of" in await read(client, uri)
        answer = await client.call_tool("start_trading_cycle", {"mode": "normal", "note": "à 1"})
        assert answer.structured_content is not None
        assert answer.structured_content["note"] == "à 1"
        await client.call_tool("stop_trading", {"reason": "emergency"})
        assert (await read(client, "catalyst://system/health"))["trading"] == "stopped"
    lines = [line for line in stack.gateway.audit() if "decision" in line]
    assert {(line["decision"], line["way"]) for line in lines} == {("allow", road)}
    called = [line["tool"] for line in lines if "tool" in line]
    assert called == ["start_trading_cycle", "stop_trading"]


@ROADS
@MODES
async def test_progress_arrives_while_the_tool_runs(run: Running, mode: str) -> None:
    await see_progress(run, mode)


@ROADS
@MODES
async def test_what_the_client_cancels_the_service_cancels(run: Running, mode: str) -> None:
    first = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        first.set()

    async with asyncio.timeout(20), Client(f"{run.url}/mcp", mode=mode) as client:
        arguments = {"steps": 600, "seconds_per_step": 0.1}
        running = asyncio.ensure_future(
            client.call_tool("run_backtest", arguments, progress_callback=on_progress)
        )
        await first.wait()
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        async with asyncio.timeout(3):
            while (await read(client, METRICS))["backtests_cancelled"] == 0:
                await asyncio.sleep(0.02)


@ROADS
@MODES
async def test_an_observer_reads_and_is_told_why_it_may_not_call(
    stack: Stack, road: str, mode: str
) -> None:
    observer = await asyncio.to_thread(
        stack.gateway.enrol, stack.directory / "observer", "observer"
    )
    run = await stack.tunnel(client=observer, paths=(road,), gateway=True)
    async with Client(f"{run.url}/mcp", mode=mode) as client:
        assert (await read(client, "catalyst://system/health"))["status"] == "ok"
        with pytest.raises(MCPError) as told:
            await client.call_tool("stop_trading", {"reason": "curiosity"})
        assert told.value.error.code == -32003
        assert told.value.error.message == "Your role may not call this tool."
        assert (await read(client, "catalyst://system/health"))["trading"] != "stopped"


@ROADS
async def test_roles_as_they_are_met_in_a_terminal(stack: Stack, road: str) -> None:
    async def says(run: Running, *arguments: str) -> tuple[int, str, str]:
        done = await asyncio.to_thread(tunnel, *arguments, home=run.home)
        return done.returncode, done.stdout, done.stderr

    operator = await stack.tunnel(paths=(road,), gateway=True)
    code, out, _ = await says(operator, "call", "stop_trading", "reason=emergency")
    assert (code, json.loads(out)["reason"]) == (0, "emergency")
    enrolled = await asyncio.to_thread(
        stack.gateway.enrol, stack.directory / "observer", "observer"
    )
    observer = await stack.tunnel(client=enrolled, paths=(road,), gateway=True)
    code, out, _ = await says(observer, "read", "catalyst://system/health")
    assert (code, json.loads(out)["stop_reason"]) == (0, "emergency")
    code, out, told = await says(observer, "call", "stop_trading", "reason=curiosity")
    assert (code, out) == (1, "")
    assert "Your role may not call this tool." in told
    let_through = [line["tool"] for line in stack.gateway.audit() if "tool" in line]
    assert let_through == ["stop_trading"]
