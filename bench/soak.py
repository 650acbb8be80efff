"""Four copies of a bridge at once, as Claude Desktop starts them, and a link that is cut."""

import asyncio
from collections import Counter
from time import monotonic
from typing import Any

from bench.bridges import FEW, Bridge
from bench.processes import JobError
from bench.stage import Stage
from tests.stdioclient import GoneError, StdioClient

Cell = dict[str, Any]
COPIES = 4
CUT_EVERY = 5.0  # seconds
PAUSE = 0.1  # seconds that a call takes on the service, so that some are always under way
ANSWERED = 60.0  # seconds after which an id counts as unanswered


async def run(made: Stage, bridges: list[Bridge], quick: bool) -> Cell:
    """By bridge: what became of the calls. The peers that matter least are not waited for."""
    calls, seconds = (200, 12.0) if quick else (1_000, 60.0)
    few = {kind.name for kind in FEW}
    told: Cell = {}
    for bridge in bridges:
        if bridge.name not in few:
            continue
        await made.stop_service()  # a service that starts anew counts anew
        await made.healthy()
        try:
            told[bridge.name] = await _soak(made, bridge, calls // COPIES, seconds)
        except (JobError, GoneError, OSError, TimeoutError) as error:
            told[bridge.name] = {"error": str(error) or type(error).__name__}
    return told


class Tally:
    """What the copies have seen."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.unanswered = 0
        self.failures: dict[str, Counter[str]] = {"read": Counter(), "call": Counter()}
        self.answered: set[str] = set()  # notes of calls that were answered with a result
        self.longest = 0.0


async def _soak(made: Stage, bridge: Bridge, each: int, seconds: float) -> Cell:
    tally = Tally()
    cuts = 0

    async def cut() -> None:
        nonlocal cuts
        while True:
            await asyncio.sleep(CUT_EVERY)
            await made.reset()
            cuts += 1

    cutting = asyncio.create_task(cut())
    try:
        async with asyncio.TaskGroup() as group:
            for copy in range(COPIES):
                group.create_task(_copy(bridge, copy, each, seconds, tally))
    except* (GoneError, OSError, TimeoutError) as several:
        raise several.exceptions[0] from None
    finally:
        cutting.cancel()
    notes = Counter((await made.counted())["notes"])
    return {
        "cuts": cuts,
        "sent": dict(tally.sent),
        "unanswered": tally.unanswered,
        "failed_reads": tally.failures["read"].total(),
        "read_failures": dict(tally.failures["read"]),
        "call_failures": dict(tally.failures["call"]),
        "executed": notes.total(),
        "executed_twice": sum(count > 1 for count in notes.values()),
        "not_executed": len(tally.answered - notes.keys()),
        "longest": tally.longest,
    }


async def _copy(bridge: Bridge, copy: int, each: int, seconds: float, tally: Tally) -> None:
    """One copy: reads and calls in turn, at a steady pace whatever became of earlier ones."""
    async with bridge.session() as client:
        begin = monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(each):
                await asyncio.sleep(max(0.0, begin + number * seconds / each - monotonic()))
                group.create_task(_one(client, f"{copy}-{number}", number % 2 == 0, tally))


async def _one(client: StdioClient, note: str, read: bool, tally: Tally) -> None:
    kind = "read" if read else "call"
    tally.sent[kind] += 1
    began = monotonic()
    try:
        if read:
            answer = await client.ask("resources/read", {"uri": "bench://slow"}, within=ANSWERED)
        else:
            answer = await client.call("trade", {"note": note, "pause": PAUSE}, within=ANSWERED)
    except (GoneError, TimeoutError):
        tally.unanswered += 1
        return
    tally.longest = max(tally.longest, monotonic() - began)
    if "error" in answer:
        tally.failures[kind][f"error {answer['error']['code']}"] += 1
    elif answer["result"].get("isError"):
        tally.failures[kind]["isError"] += 1
    elif not read:
        tally.answered.add(note)
