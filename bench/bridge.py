"""The stdio side: what a bridge costs, what it stands, and that it doubles and loses nothing."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import psutil

from bench import scenarios, soak
from bench.bridges import BRIDGES, FEW, Bridge, present
from bench.processes import JobError
from bench.stage import Stage, stage
from tests.stdioclient import REVISION, GoneError

Cell = dict[str, Any]
WARMUP = 20
ECHO = {"name": "echo", "arguments": {"text": "tick"}}
FAILURES = (JobError, GoneError, RuntimeError, OSError, TimeoutError, psutil.Error)


async def measure(
    directory: Path, names: Collection[str], say: Callable[[str], None], *, quick: bool
) -> Cell:
    """Run what is named; a cell for each, {"error": why} where it could not be measured."""
    results: Cell = {}
    for name in names:
        say(name)
        try:
            breakable, act = PARTS[name]
            async with stage(directory / name, breakable=breakable) as made:
                bridges, missing = present(made, FEW if quick else BRIDGES)
                cell = await act(made, bridges, quick)
        except FAILURES as error:
            results[name] = {"error": str(error) or type(error).__name__}
        else:
            results[name] = {"contenders": cell, "missing": missing}
    return results


# What it costs


async def start(made: Stage, bridges: list[Bridge], quick: bool) -> Cell:
    """Seconds from the start of the process to the answers: to initialize, then to tools/list."""
    rounds = 3 if quick else 7

    async def once(bridge: Bridge) -> Cell:
        async with bridge.start() as client:
            await client.initialize()
            first = monotonic() - client.began
            answer = await client.ask("tools/list")
            if "result" not in answer:
                raise JobError(f"tools/list: {answer['error']['message']}")
            return {"initialize": first, "list": monotonic() - client.began}

    return await _turns(bridges, rounds, once)


async def latency(made: Stage, bridges: list[Bridge], quick: bool) -> Cell:
    """p50 (s) of a tool call, and how much more that is than over HTTP to the same address."""
    rounds, calls = (1, 100) if quick else (5, 200)

    async def once(bridge: Bridge) -> Cell:
        times: dict[str, list[float]] = {"through": [], "http": []}
        async with HttpClient(made.port) as plain, bridge.session() as client:
            ways = {"through": lambda: client.ask("tools/call", ECHO), "http": plain.echo}
            for number in range(WARMUP + calls):
                # In turn, call by call: what else the machine does meets both alike.
                for way, ask in ways.items():
                    took = await _timed(ask)
                    if number >= WARMUP:
                        times[way].append(took)
        through, http = median(times["through"]), median(times["http"])
        return {"p50": through, "http": http, "added": through - http}

    return await _turns(bridges, rounds, once)


async def memory(made: Stage, bridges: list[Bridge], quick: bool) -> Cell:
    """RSS (bytes) of the process, and of all that it has started, after so many calls."""
    calls = 200 if quick else 1_000

    async def once(bridge: Bridge) -> Cell:
        async with bridge.session() as client:
            for _ in range(calls):
                await client.ask("tools/call", ECHO)
            used = [one.memory_info().rss for one in client.family()]
            return {"rss": sum(used), "calls": calls}

    return await _turns(bridges, 1, once)


async def _turns(
    bridges: list[Bridge], rounds: int, once: Callable[[Bridge], Awaitable[Cell]]
) -> Cell:
    """By bridge: figures as lists, with an entry for each round; or why there are none."""
    taken: dict[str, list[Cell]] = {bridge.name: [] for bridge in bridges}
    failed: Cell = {}
    for _ in range(rounds):
        for bridge in bridges:
            if bridge.name in failed:
                continue
            try:
                taken[bridge.name].append(await once(bridge))
            except FAILURES as error:
                failed[bridge.name] = {"error": str(error) or type(error).__name__}
    return {
        name: failed.get(name) or {key: [one[key] for one in samples] for key in samples[0]}
        for name, samples in taken.items()
    }


async def _timed(ask: Callable[[], Awaitable[Any]]) -> float:
    """Seconds that a call takes; JobError where it is not answered with a result."""
    began = monotonic()
    answer = await ask()
    took = monotonic() - began
    if "result" not in answer:
        raise JobError(f"a call failed: {answer}")
    return took


class HttpClient:
    """One kept connection with an MCP session on it: as little as HTTP can cost a client."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._session = ""
        self._last = 0

    async def __aenter__(self) -> "HttpClient":
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        hello = {"protocolVersion": REVISION, "capabilities": {}}
        await self.ask("initialize", {**hello, "clientInfo": {"name": "bench", "version": "1"}})
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def echo(self) -> Cell:
        """The trivial call; returns its answer."""
        return await self.ask("tools/call", ECHO)

    async def ask(self, method: str, params: Cell) -> Cell:
        """Send a request and return its answer, which the service sends as one event."""
        self._last += 1
        message = {"jsonrpc": "2.0", "id": self._last, "method": method, "params": params}
        body = json.dumps(message, separators=(",", ":")).encode()
        fields = [
            f"POST /mcp HTTP/1.1\r\nHost: localhost:{self._port}",
            "Content-Type: application/json\r\nAccept: application/json, text/event-stream",
            f"MCP-Protocol-Version: {REVISION}\r\nContent-Length: {len(body)}",
            *([f"Mcp-Session-Id: {self._session}"] if self._session else []),
        ]
        self._writer.write("\r\n".join([*fields, "", ""]).encode() + body)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        if " 200 " not in head.partition("\r\n")[0]:
            raise JobError(f"over HTTP: {head.partition(chr(13))[0]}")
        if not self._session:
            self._session = head.partition("mcp-session-id: ")[2].partition("\r\n")[0]
        if "transfer-encoding: chunked" in head:
            content = await self._chunks()
        else:
            length = head.partition("content-length: ")[2].partition("\r\n")[0]
            content = await self._reader.readexactly(int(length))
        [told] = [
            line.removeprefix(b"data: ")
            for line in content.splitlines()
            if line.startswith((b"data: {", b"{"))
        ]
        answer: Cell = json.loads(told)
        return answer

    async def _chunks(self) -> bytes:
        parts = []
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            parts.append((await self._reader.readexactly(size + 2))[:-2])
        await self._reader.readexactly(2)
        return b"".join(parts)


Part = Callable[[Stage, list[Bridge], bool], Awaitable[Cell]]

PARTS: dict[str, tuple[bool, Part]] = {
    "stdio-start": (False, start),
    "stdio-latency": (False, latency),
    "stdio-memory": (False, memory),
    "scenarios": (True, scenarios.run),
    "soak": (True, soak.run),
}
"""By name: whether links are broken, and what to do."""
