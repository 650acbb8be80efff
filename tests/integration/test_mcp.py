"""The whole road: the MCP SDK's client, the tunnel, a real sshd, a real FastMCP service."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("fastmcp", reason="needs the demo extra")
pytest.importorskip("mcp", reason="needs the MCP SDK")

from mcp import Client, MCPError

from tests.conftest import Running, Start
from tests.droplet import Sshd, free_port
from tests.faults import Relay
from tunnel.settings import Address

ERAS = pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
RESOURCES = {
    "catalyst://system/health",
    "catalyst://positions/active",
    "catalyst://scan/results",
    "catalyst://news/sentiment",
    "catalyst://performance/metrics",
}


class Orchestration:
    """The demo's service in a process of its own, always on the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tunnel.demo.orchestration", "--port", str(self.port)),
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            line = await self._process.stdout.readline()
        assert re.search(rb" ready on ", line)

    async def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
            self._process = None


@pytest.fixture
async def service() -> AsyncIterator[Orchestration]:
    orchestration = Orchestration()
    await orchestration.start()
    yield orchestration
    await orchestration.stop()


@pytest.fixture
async def run(start: Start, service: Orchestration) -> Running:
    return await start(ssh={"target": Address("127.0.0.1", service.port)}, hold=20.0)


async def read(client: Client, uri: str) -> Any:
    [content] = (await client.read_resource(uri)).contents
    return json.loads(content.text)  # type: ignore[union-attr]


@ERAS
async def test_every_resource_and_tool_within_the_limits(run: Running, era: str) -> None:
    loop = asyncio.get_running_loop()
    async with Client(f"{run.url}/mcp", mode=era) as client:
        assert {str(one.uri) for one in (await client.list_resources()).resources} == RESOURCES
        for uri in sorted(RESOURCES):
            began = loop.time()
            first = await read(client, uri)
            assert loop.time() - began < 0.5
            assert (await read(client, uri))["as_of"] > first["as_of"]  # not cached
        began = loop.time()
        answer = await client.call_tool("start_trading_cycle", {"mode": "conservative"})
        assert loop.time() - began < 1.0
        assert answer.structured_content is not None
        cycle = answer.structured_content["id"]
        assert (await read(client, "catalyst://positions/active"))["count"] == 1
        found = await client.call_tool("get_cycle", {"cycle_id": cycle})
        assert found.structured_content is not None
        assert found.structured_content["status"] == "running"
        began = loop.time()
        await client.call_tool("stop_trading", {"reason": "emergency"})
        assert loop.time() - began < 1.0
        assert (await read(client, "catalyst://system/health"))["trading"] == "stopped"


@ERAS
async def test_progress_arrives_while_the_tool_runs(run: Running, era: str) -> None:
    await see_progress(run, era)


async def see_progress(run: Running, era: str) -> None:
    """Call a tool that tells of its progress, and see some of it before the end."""
    seen: list[float] = []
    first = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        first.set()

    async with asyncio.timeout(20), Client(f"{run.url}/mcp", mode=era) as client:
        calling = asyncio.ensure_future(
            client.call_tool(
                "run_backtest",
                {"steps": 4, "seconds_per_step": 0.5},
                progress_callback=on_progress,
            )
        )
        await first.wait()
        assert not calling.done()  # three of four steps are to come
        await calling
    assert seen == [1, 2, 3, 4]


@ERAS
async def test_reads_go_on_through_cuts(run: Running, relay: Relay, sshd: Sshd, era: str) -> None:
    async with Client(f"{run.url}/mcp", mode=era) as client:
        for cut in (relay.reset_all, relay.drop_all, sshd.kill_sessions):
            await read(client, "catalyst://system/health")
            reading = asyncio.ensure_future(read(client, "catalyst://system/health"))
            await asyncio.sleep(0)
            cut()
            assert (await reading)["status"] == "ok"


async def test_reads_go_on_through_a_restart_of_sshd(run: Running, sshd: Sshd) -> None:
    async with Client(f"{run.url}/mcp", mode="2026-07-28") as client:
        sshd.stop()
        reading = asyncio.ensure_future(read(client, "catalyst://system/health"))
        await run.until(lambda: run.tunnel.snapshot().held == 1)
        sshd.start()
        assert (await reading)["status"] == "ok"


async def test_the_service_stops_and_comes_back(run: Running, service: Orchestration) -> None:
    await service.stop()
    async with run.client.get(f"{run.url}/system/health") as answer:
        assert answer.status == 502
        assert (await answer.json())["error"]["code"] == "target_refused"
    await service.start()
    async with run.client.get(f"{run.url}/system/health") as answer:
        assert answer.status == 200
    async with Client(f"{run.url}/mcp") as client:
        assert (await read(client, "catalyst://system/health"))["status"] == "ok"


@ERAS
async def test_a_tool_call_that_is_cut_is_told_with_its_id(
    run: Running, relay: Relay, era: str
) -> None:
    async with Client(f"{run.url}/mcp", mode=era) as client:
        arguments = {"steps": 10, "seconds_per_step": 1.0}
        calling = asyncio.ensure_future(client.call_tool("run_backtest", arguments))
        await run.until(lambda: run.tunnel.snapshot().running >= 1)
        await asyncio.sleep(0.3)  # the service has the call: its stream or silence has begun
        relay.reset_all()
        with pytest.raises(MCPError) as told:
            await asyncio.wait_for(calling, 10)
        assert told.value.error.code == -32015
        assert "may have run" in told.value.error.message
        # The client lives on, and the service was asked once.
        assert (await read(client, "catalyst://system/health"))["status"] == "ok"
    async with run.client.get(f"{run.url}/system/executions") as answer:
        assert (await answer.json())["run_backtest"] == 1


async def test_calls_under_cuts_run_at_most_once(run: Running, relay: Relay) -> None:
    """Each call is answered, or told that nobody knows; none is executed twice."""
    answered: set[str] = set()
    unknown: set[str] = set()
    stop = asyncio.Event()

    async def calls(lane: int) -> None:
        async with Client(f"{run.url}/mcp", mode="2026-07-28") as client:
            for number in range(25):
                note = f"{lane}-{number}"
                try:
                    arguments = {"mode": "normal", "note": note}
                    await client.call_tool("start_trading_cycle", arguments)
                    answered.add(note)
                except MCPError as exc:
                    assert exc.error.code == -32015, exc
                    unknown.add(note)

    async def cuts() -> None:
        while not stop.is_set():
            goal = len(answered | unknown) + 1
            while len(answered | unknown) < goal and not stop.is_set():
                await asyncio.sleep(0.005)
            relay.reset_all()

    cutting = asyncio.ensure_future(cuts())
    await asyncio.gather(*(calls(lane) for lane in range(4)))
    stop.set()
    await cutting
    async with run.client.get(f"{run.url}/system/cycles") as answer:
        notes = [cycle["note"] for cycle in await answer.json()]
    assert len(notes) == len(set(notes))
    assert answered <= set(notes)
    assert set(notes) <= answered | unknown
