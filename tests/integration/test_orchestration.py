"""The demo Orchestration Service as a process of its own, and the SDK's client over HTTP."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastmcp", reason="needs the demo extra")
pytest.importorskip("mcp", reason="needs the MCP SDK")

from mcp import Client, MCPError
from mcp.types import TextContent, TextResourceContents

ROOT = Path(__file__).parents[2]
DEADLINE = 15.0
"""Seconds that any one thing may take on a slow machine."""
ERAS = pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
URIS = [
    "catalyst://system/health",
    "catalyst://positions/active",
    "catalyst://scan/results",
    "catalyst://news/sentiment",
    "catalyst://performance/metrics",
]
TOOLS = {"start_trading_cycle", "stop_trading", "get_cycle", "run_backtest"}


def launch(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tunnel.demo.orchestration", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@dataclass
class Orchestration:
    """A running service. Once `stop` has returned, `stdout` and `stderr` hold what it said."""

    process: "subprocess.Popen[str]"
    ready: str
    stdout: str = ""
    stderr: str = ""

    @classmethod
    def start(cls) -> "Orchestration":
        process = launch("--port", "0")
        assert process.stdout is not None
        guard = threading.Timer(DEADLINE, process.kill)
        guard.start()
        ready = process.stdout.readline()
        guard.cancel()
        return cls(process, ready)

    @property
    def url(self) -> str:
        return self.ready.split()[-1]

    def get(self, path: str) -> tuple[int, http.client.HTTPMessage, Any]:
        """A plain GET: status, headers, decoded JSON."""
        address = urlsplit(self.url)
        assert address.hostname is not None
        link = http.client.HTTPConnection(address.hostname, address.port, timeout=DEADLINE)
        with closing(link):
            link.request("GET", path)
            response = link.getresponse()
            return response.status, response.headers, json.loads(response.read())

    def executions(self) -> dict[str, int]:
        counts: dict[str, int] = self.get("/system/executions")[2]
        return counts

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Send the signal; seconds until the process had ended."""
        started = time.monotonic()
        self.process.send_signal(number)
        try:
            self.stdout, self.stderr = self.process.communicate(timeout=DEADLINE)
        finally:
            self.process.kill()
        return time.monotonic() - started


@pytest.fixture(scope="module")
def orchestration() -> Iterator[Orchestration]:
    running = Orchestration.start()
    yield running
    running.stop()


async def read(client: Client, uri: str) -> dict[str, Any]:
    [content] = (await client.read_resource(uri)).contents
    assert isinstance(content, TextResourceContents)
    assert content.mime_type == "application/json"
    value: dict[str, Any] = json.loads(content.text)
    return value


async def call(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    assert isinstance(result.structured_content, dict)
    return result.structured_content


async def refused(client: Client, tool: str, **arguments: Any) -> str:
    result = await client.call_tool(tool, arguments)
    assert result.is_error
    [content] = result.content
    assert isinstance(content, TextContent)
    return content.text


async def test_the_sdk_client_picks_the_stateless_era_by_itself(
    orchestration: Orchestration,
) -> None:
    async with asyncio.timeout(DEADLINE), Client(orchestration.url) as client:
        assert client.protocol_version == "2026-07-28"
    async with asyncio.timeout(DEADLINE), Client(orchestration.url, mode="legacy") as client:
        assert client.protocol_version == "2025-11-25"


@ERAS
async def test_it_lists_what_it_offers(orchestration: Orchestration, era: str) -> None:
    async with asyncio.timeout(DEADLINE), Client(orchestration.url, mode=era) as client:
        resources = (await client.list_resources()).resources
        tools = (await client.list_tools()).tools
    assert [str(resource.uri) for resource in resources] == URIS
    assert all(resource.description for resource in resources)
    assert {tool.name for tool in tools} == TOOLS
    assert all(tool.description for tool in tools)


@ERAS
@pytest.mark.parametrize("uri", URIS)
async def test_every_resource_is_read_anew(
    orchestration: Orchestration, era: str, uri: str
) -> None:
    async with asyncio.timeout(DEADLINE), Client(orchestration.url, mode=era) as client:
        first = await read(client, uri)
        second = await read(client, uri)
    assert second["as_of"] == first["as_of"] + 1
    assert second.keys() == first.keys()


@ERAS
async def test_a_started_cycle_shows_moves_and_stops(
    orchestration: Orchestration, era: str
) -> None:
    async with asyncio.timeout(DEADLINE), Client(orchestration.url, mode=era) as client:
        before = await read(client, "catalyst://performance/metrics")
        cycle = await call(client, "start_trading_cycle", mode="aggressive", note=f"shows {era}")
        assert (cycle["mode"], cycle["note"]) == ("aggressive", f"shows {era}")

        found = await call(client, "get_cycle", cycle_id=cycle["id"])
        assert (found["status"], found["note"]) == ("running", f"shows {era}")
        metrics = await read(client, "catalyst://performance/metrics")
        assert metrics["cycles_started"] == before["cycles_started"] + 1

        prices = []
        for _ in range(2):
            held = (await read(client, "catalyst://positions/active"))["positions"]
            prices.append([p["price_cents"] for p in held if p["cycle_id"] == cycle["id"]])
        assert len(prices[0]) == 3
        assert all(old != new for old, new in zip(*prices, strict=True))

        stopped = await call(client, "stop_trading", reason="drill")
        assert cycle["id"] in stopped["stopped"]
        assert (await read(client, "catalyst://positions/active"))["positions"] == []
        health = await read(client, "catalyst://system/health")
        assert (health["trading"], health["stop_reason"]) == ("stopped", "drill")


@ERAS
async def test_progress_arrives_in_order(orchestration: Orchestration, era: str) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append((progress, total, message))

    async with asyncio.timeout(DEADLINE), Client(orchestration.url, mode=era) as client:
        result = await client.call_tool(
            "run_backtest",
            {"steps": 3, "seconds_per_step": 0.02},
            progress_callback=on_progress,
        )
    assert result.structured_content == {"steps": 3, "profit_cents": 411}
    assert seen == [(step, 3, f"session {step} of 3") for step in (1, 2, 3)]


@ERAS
async def test_progress_comes_before_the_result_and_leaving_cancels(
    orchestration: Orchestration, era: str
) -> None:
    first = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        first.set()

    async with asyncio.timeout(DEADLINE), Client(orchestration.url, mode=era) as client:
        before = (await read(client, "catalyst://performance/metrics"))["backtests_cancelled"]
        running = asyncio.create_task(
            client.call_tool(
                "run_backtest",
                {"steps": 600, "seconds_per_step": 0.1},
                progress_callback=on_progress,
            )
        )
        await first.wait()
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        while (await read(client, "catalyst://performance/metrics"))[
            "backtests_cancelled"
        ] == before:
            await asyncio.sleep(0.01)


@ERAS
async def test_every_call_is_executed_exactly_once(orchestration: Orchestration, era: str) -> None:
    notes = [f"once {era} {number}" for number in range(16)]
    before = orchestration.executions()
    async with asyncio.timeout(DEADLINE), Client(orchestration.url, mode=era) as client:
        cycles = await asyncio.gather(
            *(call(client, "start_trading_cycle", mode="normal", note=note) for note in notes)
        )
    assert [cycle["note"] for cycle in cycles] == notes
    assert len({cycle["id"] for cycle in cycles}) == len(notes)
    after = orchestration.executions()
    assert after.keys() == TOOLS
    assert after == {
        **before,
        "start_trading_cycle": before["start_trading_cycle"] + len(notes),
    }
    recorded = [cycle["note"] for cycle in orchestration.get("/system/cycles")[2]]
    assert sorted(note for note in recorded if note in notes) == sorted(notes)


@ERAS
@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("start_trading_cycle", {"mode": "reckless"}, "conservative"),
        ("start_trading_cycle", {}, "mode"),
        ("start_trading_cycle", {"mode": "normal", "note": "x" * 201}, "200"),
        ("stop_trading", {"reason": ""}, "reason"),
        ("get_cycle", {}, "cycle_id"),
        ("run_backtest", {"steps": 0, "seconds_per_step": 0}, "steps"),
        ("run_backtest", {"steps": 1, "seconds_per_step": -1}, "seconds_per_step"),
        ("close_everything", {}, "Unknown tool"),
    ],
)
async def test_bad_arguments_are_refused_and_run_nothing(
    orchestration: Orchestration, era: str, tool: str, arguments: dict[str, Any], words: str
) -> None:
    before = orchestration.executions()
    async with asyncio.timeout(DEADLINE), Client(orchestration.url, mode=era) as client:
        assert words in await refused(client, tool, **arguments)
    assert orchestration.executions() == before


@ERAS
async def test_the_desk_refuses_in_words(orchestration: Orchestration, era: str) -> None:
    async with asyncio.timeout(DEADLINE), Client(orchestration.url, mode=era) as client:
        missing = await refused(client, "get_cycle", cycle_id="cycle-9999")
        assert missing == "There is no cycle 'cycle-9999'."
        long = await refused(client, "run_backtest", steps=100, seconds_per_step=7)
        assert long == "A backtest may last 600 seconds at most."
        with pytest.raises(MCPError, match="catalyst://nowhere") as unknown:
            await client.read_resource("catalyst://nowhere")
    assert unknown.value.error.code == -32602


def test_the_plain_routes_answer_json_that_nobody_may_cache(orchestration: Orchestration) -> None:
    answers = {}
    for path in ("/health", "/system/health", "/system/executions", "/system/cycles"):
        status, headers, answers[path] = orchestration.get(path)
        assert status == 200
        assert headers["Content-Type"] == "application/json"
        assert headers["Cache-Control"] == "no-store"
    assert answers["/health"] == {"status": "ok"}
    assert answers["/system/executions"].keys() == TOOLS
    again = orchestration.get("/system/health")[2]
    assert again["status"] == "ok"
    assert again["as_of"] == answers["/system/health"]["as_of"] + 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without asking it")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@ERAS
async def test_a_signal_ends_it_promptly_with_streams_open(
    era: str, number: signal.Signals
) -> None:
    running = await asyncio.to_thread(Orchestration.start)
    first = asyncio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        first.set()

    async with asyncio.timeout(DEADLINE), Client(running.url, mode=era) as client:
        await client.list_tools()
        busy = asyncio.create_task(
            client.call_tool(
                "run_backtest",
                {"steps": 600, "seconds_per_step": 0.1},
                progress_callback=on_progress,
            )
        )
        await first.wait()
        seconds = await asyncio.to_thread(running.stop, number)
        with pytest.raises(MCPError):
            await busy
    assert running.process.returncode == 0
    assert seconds < 2
    assert running.ready.startswith("orchestration ready on http://127.0.0.1:")
    assert (running.stdout, running.stderr) == ("", "")


def fails(*arguments: str, **environment: str) -> str:
    """What it says on stderr when it exits with 2, having said nothing on stdout."""
    process = launch(*arguments, **environment)
    try:
        out, err = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert (process.returncode, out) == (2, "")
    return err


def test_a_busy_port_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = fails("--port", str(port))
    assert words == f"Cannot listen on 127.0.0.1 port {port}: Address already in use.\n"


def test_an_address_of_another_machine_is_said_in_one_line() -> None:
    words = fails("--host", "192.0.2.1", "--port", "0")
    assert words.startswith("Cannot listen on 192.0.2.1 port 0: ")
    assert words.count("\n") == 1


@pytest.mark.parametrize("host", ["a..b", "fe80::1%nowhere"])
def test_a_bad_host_is_said_in_one_line(host: str) -> None:
    words = fails("--host", host, "--port", "0")
    assert words.startswith(f"Cannot listen on {host} port 0: ")
    assert words.count("\n") == 1


@pytest.mark.parametrize("port", ["70000", "-1", "http"])
def test_a_bad_port_is_a_usage_error(port: str) -> None:
    assert "is not a number from 0 to 65535" in fails(f"--port={port}")


def test_a_missing_extra_is_said_in_one_line(tmp_path: Path) -> None:
    shadow = tmp_path / "fastmcp.py"
    shadow.write_text("raise ModuleNotFoundError(\"No module named 'fastmcp'\")\n")
    words = fails("--port", "0", PYTHONPATH=str(tmp_path))
    assert "pip install 'catalyst-tunnel[demo]'" in words
    assert words.count("\n") == 1
