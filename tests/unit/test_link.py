"""The link with a scripted connection: no sockets, and milliseconds for seconds."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tunnel import backoff
from tunnel import link as module
from tunnel.channels import P
from tunnel.lifecycle import State
from tunnel.link import Link
from tunnel.problems import ProblemError
from tunnel.settings import Address

NEVER = 60.0  # seconds; longer than any test


class Wire:
    def __init__(self) -> None:
        self.heard = asyncio.get_running_loop().time()
        self.asked: float | None = None


class FakeConnection:
    """A connection whose peer answers pings while `answers`."""

    def __init__(self, *, watched: bool = True) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wire = Wire() if watched else None
        self.answers = True
        self.replaced = False
        self.pings = 0
        self.calmed = 0
        self.retired = False
        self.aborted = False

    @property
    def alive(self) -> bool:
        return not self.retired and not self.lost.done()

    async def open(self, factory: Callable[[], P], target: Address) -> P:
        raise AssertionError

    def ping(self) -> None:
        self.pings += 1
        if self.answers:
            asyncio.get_running_loop().call_later(0.002, self.speak)

    def speak(self) -> None:
        assert self.wire is not None
        self.wire.heard = asyncio.get_running_loop().time()
        self.wire.asked = None

    def calm(self) -> None:
        self.calmed += 1

    def retire(self) -> None:
        self.retired = True

    def abort(self) -> None:
        self.aborted = True


Step = Exception | FakeConnection | asyncio.Event | None


class Script:
    """What each try to connect does, in turn; after the last one all succeed.

    An exception is raised, a connection returned, an event waited for; None is a new connection.
    """

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.tries = 0
        self.made: list[FakeConnection] = []

    async def connect(self) -> FakeConnection:
        self.tries += 1
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, Exception):
            raise step
        if isinstance(step, asyncio.Event):
            await step.wait()
            step = None
        connection = step or FakeConnection()
        self.made.append(connection)
        return connection


AWAY = ProblemError("connect_failed", "away")
NAMELESS = ProblemError("dns_failed", "no such name")
DENIED = ProblemError("auth_denied", "no")


class Clock:
    def __init__(self) -> None:
        self.offset = 0.0
        self.read = 0

    def __call__(self) -> float:
        self.read += 1
        return asyncio.get_running_loop().time() + self.offset


class Dice:
    """Rolls the lowest number, and keeps the bounds that it was given."""

    def __init__(self) -> None:
        self.rolled: list[tuple[float, float]] = []

    def __call__(self, low: float, high: float) -> float:
        self.rolled.append((low, high))
        return low


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.002)
    monkeypatch.setattr(module, "ANXIOUS", 0.02)
    monkeypatch.setattr(module, "PATIENCE", 0.05)


def make(
    script: Script,
    keepalive: float = NEVER,
    wall: Callable[[], float] | None = None,
    dice: Dice | None = None,
) -> Link:
    return Link(script.connect, keepalive=keepalive, uniform=dice or Dice(), wall=wall or Clock())


@contextlib.asynccontextmanager
async def running(link: Link) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.ensure_future(link.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records]


# Coming up, and stopping.


async def test_it_comes_up_and_stops() -> None:
    script = Script()
    link = make(script)
    assert link.state is State.IDLE
    async with running(link) as task:
        connection = await link.ready()
        assert connection is script.made[0]
        assert link.connection is connection
        assert (link.state, link.connects, link.problem) == (State.UP, 1, None)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert link.state is State.STOPPED
    assert script.made[0].aborted
    assert link.connection is None


async def test_since_is_the_wall_time_of_the_last_change() -> None:
    clock = Clock()
    clock.offset = 1_000_000
    link = make(Script(), wall=clock)
    async with running(link):
        await link.ready()
        assert 0 <= clock() - link.since < 5


async def test_stopping_ends_a_try_that_hangs() -> None:
    script = Script(asyncio.Event())
    link = make(script)
    async with running(link):
        await until(lambda: script.tries)
        assert link.state is State.CONNECTING
    assert link.state is State.STOPPED


@pytest.mark.parametrize("problem", [DENIED, AWAY])
async def test_stopping_ends_a_wait(problem: ProblemError) -> None:
    link = Link(Script(problem).connect, keepalive=NEVER, uniform=lambda low, high: NEVER)
    async with running(link):
        await until(lambda: link.state in (State.FAILED, State.WAITING))
    assert link.state is State.STOPPED


@pytest.mark.parametrize("turns", range(24))
async def test_a_stop_at_any_moment_leaves_no_connection_open(turns: int) -> None:
    """Whoever waits wakes at each change of state, so that the stop meets a busy link."""
    script = Script()
    link = make(script)
    waiting = [asyncio.ensure_future(link.ready()) for _ in range(3)]
    await asyncio.sleep(0)
    async with running(link):
        for _ in range(turns):
            await asyncio.sleep(0)
    assert link.state in (State.STOPPED, State.IDLE)
    assert all(connection.aborted for connection in script.made)
    assert link.connection is None
    for task in waiting:
        task.cancel()


# Failing to connect.


async def test_the_first_connection_may_fail_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel")
    script = Script(*(AWAY for _ in range(4)))
    link = make(script)
    async with running(link):
        await link.ready()
    assert script.tries == 5
    assert events(caplog) == ["link down", "link up"]
    assert caplog.records[0].problem == AWAY.problem


async def test_another_reason_is_told_too_and_the_same_one_after_it_was_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel")
    script = Script(AWAY, AWAY, NAMELESS, NAMELESS, None, NAMELESS, NAMELESS)
    link = make(script)
    async with running(link):
        await link.ready()
        script.made[0].lost.set_result(None)
        await until(lambda: link.connects == 2)
    down, up, lost = "link down", "link up", "link lost"
    assert events(caplog) == [down, down, up, lost, down, up]


async def test_the_reason_is_kept_until_it_is_up() -> None:
    later = asyncio.Event()
    script = Script(AWAY, later)
    link = make(script)
    async with running(link):
        await until(lambda: script.tries == 2)
        assert link.problem == AWAY.problem
        assert (link.state, link.connection) == (State.CONNECTING, None)
        later.set()
        await link.ready()
        assert link.problem is None


async def test_retries_are_spread_ever_wider() -> None:
    dice = Dice()
    link = make(Script(*(AWAY for _ in range(4))), dice=dice)
    async with running(link):
        await link.ready()
    assert dice.rolled == [(0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.0, 2.0)]


async def test_a_permanent_refusal_is_retried_slowly_and_at_once_when_asked() -> None:
    dice = Dice()
    script = Script(DENIED)
    link = make(script, dice=dice)
    async with running(link):
        await until(lambda: link.state is State.FAILED and dice.rolled)
        [(low, high)] = dice.rolled
        assert backoff.SLOW <= low <= high
        assert link.problem == DENIED.problem
        link.look()
        await link.ready()
    assert script.tries == 2


async def test_a_permanent_refusal_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunnel")
    script = Script(DENIED, DENIED, DENIED)
    link = make(script)
    async with running(link):
        for tries in (1, 2, 3):
            await until(lambda tries=tries: script.tries == tries and link.state is State.FAILED)
            link.look()
        await link.ready()
    assert events(caplog) == ["link down", "link up"]


# Losing a connection.


async def test_a_lost_connection_is_replaced_and_those_who_asked_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel")
    later = asyncio.Event()
    script = Script(None, later)
    link = make(script)
    told: list[object] = []
    link.on_lost.append(told.append)
    async with running(link):
        first = await link.ready()
        script.made[0].lost.set_result(None)
        await until(lambda: script.tries == 2)
        assert told == [first]
        assert link.connection is None
        assert link.problem is not None
        assert link.problem.code == "link_lost"
        later.set()
        assert await link.ready() is script.made[1]
        assert (link.connects, link.problem) == (2, None)
    assert events(caplog) == ["link up", "link lost", "link up"]


async def test_a_server_that_accepts_and_drops_is_not_dialled_in_a_tight_loop() -> None:
    dice = Dice()
    script = Script()
    link = make(script, dice=dice)
    async with running(link):
        for count in (1, 2, 3, 4):
            await until(lambda count=count: link.connects == count)
            script.made[-1].lost.set_result(None)
        await until(lambda: link.connects == 5)
    assert dice.rolled == [(0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.0, 2.0)]


async def test_a_connection_that_lasted_is_replaced_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backoff, "SUSTAINED", 0.0)
    dice = Dice()
    script = Script()
    link = make(script, dice=dice)
    async with running(link):
        for count in (1, 2, 3):
            await until(lambda count=count: link.connects == count)
            script.made[-1].lost.set_result(None)
        await until(lambda: link.connects == 4)
    assert dice.rolled == [(0.0, 0.0)] * 3


async def test_ready_does_not_hand_out_what_is_dead() -> None:
    script = Script()
    link = make(script)
    async with running(link):
        await link.ready()
        script.made[0].lost.set_result(None)  # before the link has looked
        assert await link.ready() is script.made[1]


async def test_all_who_wait_are_woken() -> None:
    later = asyncio.Event()
    script = Script(AWAY, later)
    link = make(script)
    waiting = [asyncio.ensure_future(link.ready()) for _ in range(50)]
    async with running(link):
        await until(lambda: script.tries == 2)
        waiting[0].cancel()
        later.set()
        got = await asyncio.gather(*waiting[1:])
    assert set(got) == {script.made[0]}


# A peer that is silent.


async def test_an_idle_peer_is_asked_and_kept_while_it_answers() -> None:
    script = Script()
    link = make(script, keepalive=0.03)
    async with running(link):
        await link.ready()
        [connection] = script.made
        await until(lambda: connection.pings >= 3 and connection.calmed >= 2)
        assert link.connects == 1
        assert connection.alive


async def test_a_peer_that_owes_an_answer_is_asked_before_the_keepalive() -> None:
    script = Script()
    link = make(script)
    async with running(link):
        await link.ready()
        assert script.made[0].wire is not None
        script.made[0].wire.asked = asyncio.get_running_loop().time()
        await until(lambda: script.made[0].pings == 1)


async def test_a_silent_peer_is_given_up_but_not_closed() -> None:
    script = Script()
    link = make(script, keepalive=0.02)
    told: list[object] = []
    link.on_lost.append(told.append)
    async with running(link):
        await link.ready()
        script.made[0].answers = False
        await until(lambda: link.connects == 2)
        assert told == [script.made[0]]
        assert script.made[0].retired
        assert not script.made[0].aborted


async def test_a_silent_peer_is_given_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    script = Script()
    link = make(script, keepalive=0.01)
    async with running(link):
        await link.ready()
        script.made[0].answers = False
        await until(lambda: script.made[0].pings)
        asked = asyncio.get_running_loop().time()
        await until(lambda: script.made[0].retired)
        assert asyncio.get_running_loop().time() - asked > 0.15
        assert script.made[0].pings == 1


async def test_a_slow_answer_that_is_no_pong_is_life_too() -> None:
    script = Script()
    link = make(script, keepalive=0.02)
    async with running(link):
        await link.ready()
        connection = script.made[0]
        connection.answers = False
        for pings in (1, 2, 3):
            await until(lambda pings=pings: connection.pings == pings)
            connection.speak()
        await until(lambda: connection.calmed == 3)
        assert link.connects == 1


async def test_look_asks_a_peer_that_seemed_well() -> None:
    script = Script()
    link = make(script)
    async with running(link):
        await link.ready()
        for pings in (1, 2):
            link.look()
            await until(lambda pings=pings: script.made[0].pings == pings)
            await until(lambda pings=pings: script.made[0].calmed == pings)
        assert link.connects == 1


async def test_look_finds_a_peer_that_is_gone() -> None:
    script = Script()
    link = make(script)
    async with running(link):
        await link.ready()
        script.made[0].answers = False
        link.look()
        await until(lambda: link.connects == 2)


async def test_a_connection_whose_bytes_cannot_be_watched_is_left_to_itself() -> None:
    blind = FakeConnection(watched=False)
    script = Script(blind)
    clock = Clock()
    link = make(script, keepalive=0.0, wall=clock)
    async with running(link):
        await link.ready()
        link.look()
        read = clock.read
        await until(lambda: clock.read > read + 10)
        assert (link.connects, blind.alive) == (1, True)
        blind.lost.set_result(None)
        await until(lambda: link.connects == 2)
    assert blind.pings == 0


# Sleep.


async def test_a_jump_of_the_clock_makes_it_look() -> None:
    clock = Clock()
    script = Script()
    link = make(script, wall=clock)
    async with running(link):
        await link.ready()
        clock.offset = 3600
        await until(lambda: script.made[0].pings == 1)


async def test_a_tick_that_comes_late_makes_it_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some systems count the time asleep in the monotonic clock."""
    monkeypatch.setattr(module, "JUMP", 0.03)
    script = Script()
    link = make(script, wall=lambda: 0.0)
    async with running(link):
        await link.ready()
        for _ in range(3):
            await asyncio.sleep(0)
        time.sleep(0.06)
        await until(lambda: script.made[0].pings == 1)


async def test_a_clock_that_is_set_back_changes_nothing() -> None:
    clock = Clock()
    script = Script()
    link = make(script, wall=clock, keepalive=0.05)
    async with running(link):
        await link.ready()
        clock.offset = -3600
        await until(lambda: script.made[0].calmed == 2)
        assert link.connects == 1


async def test_what_was_overdue_while_we_slept_is_asked_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PATIENCE", NEVER)
    clock = Clock()
    script = Script()
    link = make(script, wall=clock)
    async with running(link):
        await link.ready()
        script.made[0].answers = False
        link.look()
        await until(lambda: script.made[0].pings == 1)
        clock.offset = 3600
        await until(lambda: script.made[0].pings == 2)
        assert script.made[0].alive


async def test_a_jump_of_the_clock_ends_a_wait() -> None:
    clock = Clock()
    script = Script(DENIED)
    link = make(script, wall=clock)
    async with running(link):
        await until(lambda: link.state is State.FAILED)
        clock.offset = 3600
        await link.ready()


async def test_a_connection_that_is_to_be_replaced_serves_until_there_is_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "AGAIN", 0.01)
    first, may = FakeConnection(), asyncio.Event()
    script = Script(first, DENIED, DENIED, may)
    link = make(script)
    states: list[tuple[State, bool]] = []
    link.on_lost.append(lambda _: states.append((link.state, link.connection is script.made[-1])))
    async with running(link):
        assert await link.ready() is first
        first.replaced = True
        async with asyncio.timeout(5):
            while script.tries < 4:
                assert await link.ready() is first
                await asyncio.sleep(0.001)
        assert (link.state, first.retired) == (State.UP, False)
        may.set()
        async with asyncio.timeout(5):
            while await link.ready() is first:
                await asyncio.sleep(0.001)
        assert (first.retired, first.aborted) == (True, False)
        assert states == [(State.UP, True)]
        assert (link.state, link.connects, script.tries) == (State.UP, 2, 4)


async def test_a_connection_that_dies_while_it_is_replaced_is_lost_as_any_other() -> None:
    first, never = FakeConnection(), asyncio.Event()
    script = Script(first, never)
    link = make(script)
    async with running(link):
        await link.ready()
        first.replaced = True
        async with asyncio.timeout(5):
            while script.tries < 2:
                await asyncio.sleep(0.001)
            first.lost.set_result(None)
            while await link.ready() is first:
                await asyncio.sleep(0.001)
        assert script.tries == 3
        assert len(script.made) == 2


async def test_a_successor_that_comes_too_late_is_ended() -> None:
    first, second = FakeConnection(), FakeConnection()
    gate = asyncio.Event()

    class Stubborn(Script):
        async def connect(self) -> FakeConnection:
            if self.tries == 1:
                self.tries += 1
                with contextlib.suppress(asyncio.CancelledError):
                    await gate.wait()
                return second
            return await super().connect()

    script = Stubborn(first)
    link = make(script)
    async with running(link):
        await link.ready()
        first.replaced = True
        async with asyncio.timeout(5):
            while script.tries < 2:
                await asyncio.sleep(0.001)
            first.lost.set_result(None)
            while not second.aborted:
                await asyncio.sleep(0.001)
