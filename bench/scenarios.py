"""Ten scenarios that a bridge meets in its life, each with a verdict in words.

A scenario takes a stage on which all is well, breaks what it is about, and judges what a client
sees on stdio. The tenth has no act of its own: it is what the others saw on stdout.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any

import psutil

from bench.bridges import Bridge
from bench.orchestration import blob_text
from bench.processes import JobError
from bench.stage import Stage
from tests.stdioclient import DISCOVER, GoneError, StdioClient

Cell = dict[str, Any]
AT_ONCE = 1.0  # seconds
PATIENCE = 20.0  # seconds that an answer may take which has a network to wait for
AWAY = 3.0  # seconds that the network is down
LIMIT = 90.0  # seconds for a scenario in all, whatever happens
STAYS = 2.0  # seconds after which a process that was going to give up has done so
SIZES = (3 << 19, 20 << 20)  # 1.5 MiB and 20 MiB
HONEST = re.compile(r"unknown|may (or may not )?have|might have", re.IGNORECASE)
HEALTH = {"uri": "catalyst://system/health"}


class FailedError(Exception):
    """The scenario is not passed; says why."""


@dataclass(frozen=True)
class Scenario:
    """A row of the table."""

    name: str
    title: str
    act: Callable[[Stage, Bridge], Awaitable[str]]


async def run(made: Stage, bridges: list[Bridge], quick: bool) -> Cell:
    """By bridge and scenario: whether it passed, and what was seen in words."""
    told: Cell = {bridge.name: {} for bridge in bridges}
    for scenario in SCENARIOS:
        for bridge in bridges:
            await made.healthy()
            told[bridge.name][scenario.name] = await _judge(scenario, made, bridge)
    for bridge in bridges:
        noise = [line for client in bridge.clients for line in client.noise]
        lines = sum(client.lines for client in bridge.clients)
        words = f"{len(noise)} of {lines} lines are not"
        if noise:
            words += f", the first: {noise[0][:60]!r}"
        told[bridge.name][PURITY] = {"passed": lines > 0 and not noise, "words": words}
    return told


async def _judge(scenario: Scenario, made: Stage, bridge: Bridge) -> Cell:
    try:
        async with asyncio.timeout(LIMIT):
            words = await scenario.act(made, bridge)
    except FailedError as failed:
        return {"passed": False, "words": str(failed)}
    except GoneError:
        return {"passed": False, "words": "the process ended"}
    except TimeoutError:
        return {"passed": False, "words": "no answer"}
    except (JobError, OSError, psutil.Error) as error:
        return {"passed": False, "words": f"not measured: {error}"}
    return {"passed": True, "words": words}


async def remote_down(made: Stage, bridge: Bridge) -> str:
    """Initialize and tools/list are answered at once, and the process stays; with `up` and without.

    Initialize has to succeed; tools/list may say what is wrong.
    """
    await made.cut()
    words = [await _at_once(bridge, "up runs")]
    await made.stop_up()
    words.append(await _at_once(bridge, "no up"))
    return "; ".join(words)


async def _at_once(bridge: Bridge, title: str) -> str:
    async with bridge.start() as client:
        answer = await _soon(client.initialize(within=PATIENCE), f"{title}: initialize")
        first = monotonic() - client.began
        _result(answer, f"{title}: initialize")
        began = monotonic()
        listed = await _soon(client.ask("tools/list", within=PATIENCE), f"{title}: tools/list")
        second = monotonic() - began
        for what, seconds in (("initialize", first), ("tools/list", second)):
            if seconds > AT_ONCE:
                raise FailedError(f"{title}: {what} took {seconds:.2f} s")
        await asyncio.sleep(STAYS)
        if not client.alive:
            raise FailedError(f"{title}: the process ended")
        what = f"error {listed['error']['code']}" if "error" in listed else "listed"
        return f"{title}: {first:.2f} s, {what} in {second:.2f} s"


async def _soon(answer: Awaitable[Cell], what: str) -> Cell:
    """The answer, however late: how late is what the verdict tells."""
    try:
        return await answer
    except TimeoutError as never:
        raise FailedError(f"{what}: no answer") from never
    except GoneError as gone:
        raise FailedError(f"{what}: the process ended") from gone


async def discover_first(made: Stage, bridge: Bridge) -> str:
    """server/discover is answered, and initialize after it opens a session that works."""
    async with bridge.start() as client:
        discovered = await client.ask("server/discover", DISCOVER, within=PATIENCE)
        _result(await client.initialize(within=PATIENCE), "initialize")
        _result(await client.ask("tools/list", within=PATIENCE), "tools/list")
    what = f"error {discovered['error']['code']}" if "error" in discovered else "result"
    return f"discover: {what}"


async def forgotten(made: Stage, bridge: Bridge) -> str:
    """The service starts anew and knows no session: the next call works."""
    async with bridge.session() as client:
        await _echo(client)
        await made.stop_service()
        await made.start_service()
        await _echo(client)
    return "the first call after it"


async def read_through(made: Stage, bridge: Bridge) -> str:
    """A read is sent while the network is down, and answered when it is back."""
    async with bridge.session() as client:
        _result(await client.ask("resources/read", HEALTH, within=PATIENCE), "read")
        await made.cut()
        answer = client.request("resources/read", HEALTH)[1]
        await asyncio.sleep(AWAY)
        await made.restore()
        began = monotonic()
        _result(await asyncio.wait_for(answer, PATIENCE), "the read")
        return f"{monotonic() - began:.2f} s after it"


async def in_flight(made: Stage, bridge: Bridge) -> str:
    """The connection is killed under a call: told that nobody knows, executed once at most."""
    async with bridge.session() as client:
        await _echo(client)
        before = (await made.counted())["executions"]["run_backtest"]
        answer = client.request("tools/call", _backtest(40, 0.25))[1]
        await _executed(made, before + 1)
        await made.reset()
        try:
            told = await asyncio.wait_for(answer, PATIENCE)
        except TimeoutError as never:
            raise FailedError("no answer") from never
        message = told.get("error", {}).get("message")
        if message is None:
            content = str(told["result"].get("content"))
            message = content if told["result"].get("isError") else None
        if message is None:
            raise FailedError("answered with a result")
        if not HONEST.search(message):
            raise FailedError(f"not told that the outcome is unknown: {message[:60]}")
        await asyncio.sleep(STAYS)
        executed = (await made.counted())["executions"]["run_backtest"] - before
        if executed != 1:
            raise FailedError(f"executed {executed} times")
        await _echo(client)
    return "told, executed once"


async def cancelled(made: Stage, bridge: Bridge) -> str:
    """notifications/cancelled stops the work on the service."""
    async with bridge.session() as client:
        await _echo(client)
        before = await made.counted()
        number, _ = client.request("tools/call", _backtest(100, 0.25))
        await _executed(made, before["executions"]["run_backtest"] + 1)
        client.notify("notifications/cancelled", {"requestId": number, "reason": "bench"})
        began = monotonic()
        while monotonic() - began < 5.0:
            if (await made.counted())["cancelled"] > before["cancelled"]:
                return f"stopped in {monotonic() - began:.2f} s"
            await asyncio.sleep(0.02)
    raise FailedError("the service works on")


async def progress(made: Stage, bridge: Bridge) -> str:
    """Progress notifications come while the call runs, and all of them before its answer."""
    async with bridge.session() as client:
        await _echo(client)
        finished = (await made.counted())["finished"]
        ask = {**_backtest(5, 0.4), "_meta": {"progressToken": "bench"}}
        answer = client.request("tools/call", ask)[1]

        def seen() -> int:
            return sum(one["method"] == "notifications/progress" for one in client.notifications)

        while not seen() and not answer.done():
            await asyncio.sleep(0.01)
        early = (await made.counted())["finished"] == finished
        _result(await asyncio.wait_for(answer, PATIENCE), "the call")
        if not seen():
            raise FailedError("none came")
        if not early:
            raise FailedError("they came when the call was over")
        if seen() != 5:
            raise FailedError(f"{seen()} of 5 came")
    return "5 of 5"


async def large(made: Stage, bridge: Bridge) -> str:
    """Results of 1.5 and of 20 MiB arrive whole."""
    words = []
    async with bridge.session() as client:
        for size in SIZES:
            title = f"{size / (1 << 20):g} MiB"
            began = monotonic()
            try:
                answer = await client.call("blob", {"size": size}, within=PATIENCE)
            except TimeoutError as never:
                raise FailedError(f"{title}: no answer") from never
            result = _result(answer, title)
            if result["content"][0]["text"] != blob_text(size):
                raise FailedError(f"{title}: not what was sent")
            words.append(f"{title} in {monotonic() - began:.2f} s")
    return ", ".join(words)


async def leaves(made: Stage, bridge: Bridge) -> str:
    """Stdin ends, once in silence and once under a call: it ends at once, and all its children."""
    words = []
    for title in ("idle", "under a call"):
        async with bridge.session() as client:
            await _echo(client)
            if title != "idle":
                before = (await made.counted())["executions"]["run_backtest"]
                client.request("tools/call", _backtest(40, 0.25))
                await _executed(made, before + 1)
            family = client.family()
            client.end_input()
            try:
                took = await client.ended(within=AT_ONCE)
            except TimeoutError as stays:
                raise FailedError(f"{title}: still there after 1 s") from stays
            left = [one for one in family if one.is_running() and one.status() != "zombie"]
            if left:
                raise FailedError(f"{title}: {len(left)} children left")
            words.append(f"{title} {took:.2f} s")
    return ", ".join(words)


async def _echo(client: StdioClient) -> None:
    answer = await client.call("echo", {"text": "tick"}, within=PATIENCE)
    if _result(answer, "the call")["content"][0]["text"] != "tick":
        raise FailedError(f"the call: {answer}")


async def _executed(made: Stage, count: int) -> None:
    """Wait until the service has begun so many backtests."""
    async with asyncio.timeout(PATIENCE):
        while (await made.counted())["executions"]["run_backtest"] < count:
            await asyncio.sleep(0.02)


def _backtest(steps: int, seconds_per_step: float) -> Cell:
    arguments = {"steps": steps, "seconds_per_step": seconds_per_step}
    return {"name": "run_backtest", "arguments": arguments}


def _result(answer: Cell, what: str) -> Cell:
    """The result of an answer; FailedError where it is an error, of either kind."""
    if "error" in answer:
        raise FailedError(f"{what}: error {answer['error']['code']}")
    result: Cell = answer["result"]
    if result.get("isError"):
        raise FailedError(f"{what}: {str(result['content'])[:60]}")
    return result


PURITY = "pure"
SCENARIOS = [
    Scenario("down", "remote down at the start: answered within 1 s, lives", remote_down),
    Scenario("discover", "server/discover, then initialize", discover_first),
    Scenario("forgotten", "service restarted: the next call works", forgotten),
    Scenario("read", "read while the network is down: answered", read_through),
    Scenario("in-flight", "call cut off: told unknown, at most once", in_flight),
    Scenario("cancel", "cancel stops the work", cancelled),
    Scenario("progress", "progress while the call runs", progress),
    Scenario("large", "1.5 MiB and 20 MiB whole", large),
    Scenario("leaves", "gone within 1 s of stdin's end", leaves),
]
TITLES = {scenario.name: scenario.title for scenario in SCENARIOS} | {
    PURITY: "nothing but JSON-RPC on stdout"
}
