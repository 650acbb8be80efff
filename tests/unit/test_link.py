"""The link with a scripted connection: no sockets, and milliseconds for seconds."""

import asyncio
import logging
from collections.abc import Callable

import pytest

from tunnel import link as module
from tunnel.channels import P
from tunnel.lifecycle import State
from tunnel.link import Link
from tunnel.problems import ProblemError
from tunnel.settings import Address


class Wire:
    def __init__(self) -> None:
        self.heard = asyncio.get_running_loop().time()
        self.asked: float | None = None


class FakeConnection:
    """A connection whose peer answers pings while `answers`."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.wire = Wire()
        self.answers = True
        self.pings = 0
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
        self.wire.heard = asyncio.get_running_loop().time()
        self.wire.asked = None

    def calm(self) -> None:
        pass

    def retire(self) -> None:
        self.retired = True

    def abort(self) -> None:
        self.aborted = True


class Script:
    """What each try to connect does, in turn; the last one is repeated."""

    def __init__(self, *steps: "Exception | FakeConnection | None") -> None:
        self.steps = list(steps)
        self.tries = 0
        self.made: list[FakeConnection] = []

    async def connect(self) -> FakeConnection:
        self.tries += 1
        step = self.steps.pop(0) if self.steps else None
        if isinstance(step, Exception):
            raise step
        connection = step or FakeConnection()
        self.made.append(connection)
        return connection


AWAY = ProblemError("connect_failed", "away")
DENIED = ProblemError("auth_denied", "no")


class Clock:
    offset = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.offset


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TICK", 0.002)
    monkeypatch.setattr(module, "ANXIOUS", 0.02)
    monkeypatch.setattr(module, "PATIENCE", 0.05)


def make(script: Script, keepalive: float = 0.1, wall: Callable[[], float] | None = None) -> Link:
    return Link(
        script.connect,
        keepalive=keepalive,
        uniform=lambda low, high: low,
        wall=wall or Clock(),
    )


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_it_comes_up_and_stops() -> None:
    script = Script()
    link = make(script)
    assert link.state is State.IDLE
    task = asyncio.ensure_future(link.run())
    connection = await link.ready()
    assert connection is script.made[0]
    assert (link.state, link.connects, link.problem) == (State.UP, 1, None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert link.state is State.STOPPED
    assert script.made[0].aborted


async def test_the_first_connection_may_fail_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tunnel")
    script = Script(*(AWAY for _ in range(4)))
    link = make(script)
    task = asyncio.ensure_future(link.run())
    await link.ready()
    assert script.tries == 5
    assert [record.message for record in caplog.records] == ["link down", "link up"]
    task.cancel()


async def test_a_permanent_refusal_is_retried_slowly_and_at_once_when_asked() -> None:
    script = Script(DENIED)
    link = make(script)
    task = asyncio.ensure_future(link.run())
    await until(lambda: link.state is State.FAILED)
    await asyncio.sleep(0.05)
    assert (script.tries, link.state) == (1, State.FAILED)
    link.look()
    await link.ready()
    assert script.tries == 2
    task.cancel()


async def test_a_lost_connection_is_replaced_and_those_who_asked_are_told() -> None:
    script = Script()
    link = make(script)
    told: list[object] = []
    link.on_lost.append(told.append)
    task = asyncio.ensure_future(link.run())
    first = await link.ready()
    script.made[0].lost.set_result(None)
    await until(lambda: link.connects == 2)
    assert told == [first]
    assert await link.ready() is script.made[1]
    task.cancel()


async def test_an_idle_peer_is_asked_and_kept_while_it_answers() -> None:
    script = Script()
    link = make(script, keepalive=0.03)
    task = asyncio.ensure_future(link.run())
    await link.ready()
    await until(lambda: script.made[0].pings >= 3)
    assert link.connects == 1
    task.cancel()


async def test_a_peer_that_owes_an_answer_is_asked_before_the_keepalive() -> None:
    script = Script()
    link = make(script, keepalive=60)
    task = asyncio.ensure_future(link.run())
    await link.ready()
    script.made[0].wire.asked = asyncio.get_running_loop().time()
    await until(lambda: script.made[0].pings == 1)
    task.cancel()


async def test_a_silent_peer_is_given_up_but_not_closed() -> None:
    script = Script()
    link = make(script, keepalive=0.02)
    task = asyncio.ensure_future(link.run())
    await link.ready()
    script.made[0].answers = False
    await until(lambda: link.connects == 2)
    assert script.made[0].retired
    assert not script.made[0].aborted
    task.cancel()


async def test_a_slow_answer_that_is_no_pong_is_life_too() -> None:
    script = Script()
    link = make(script, keepalive=0.02)
    task = asyncio.ensure_future(link.run())
    await link.ready()
    connection = script.made[0]
    connection.answers = False
    for _ in range(20):
        await asyncio.sleep(0.01)
        connection.speak()
    assert link.connects == 1
    task.cancel()


async def test_a_jump_of_the_clock_makes_it_look() -> None:
    clock = Clock()
    script = Script()
    link = make(script, keepalive=60, wall=clock)
    task = asyncio.ensure_future(link.run())
    await link.ready()
    clock.offset = 3600
    await until(lambda: script.made[0].pings == 1)
    task.cancel()


async def test_a_jump_of_the_clock_ends_a_wait() -> None:
    clock = Clock()
    script = Script(DENIED)
    link = make(script, wall=clock)
    task = asyncio.ensure_future(link.run())
    await until(lambda: link.state is State.FAILED)
    clock.offset = 3600
    await link.ready()
    task.cancel()


async def test_ready_does_not_hand_out_what_is_dead() -> None:
    script = Script()
    link = make(script)
    task = asyncio.ensure_future(link.run())
    await link.ready()
    script.made[0].lost.set_result(None)  # before the link has looked
    assert await link.ready() is script.made[1]
    task.cancel()
