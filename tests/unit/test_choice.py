"""Which path a request takes, with paths that are scripted and a clock that is turned by hand."""

import asyncio
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from tunnel.choice import SETTLE, Paths
from tunnel.link import Connection
from tunnel.paths import Path
from tunnel.problems import Problem


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be put forward."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=Loop) as found:
        yield found


class FakeLink:
    def __init__(self) -> None:
        self.doubted = False
        self.on_doubt: list[Callable[[Connection], None]] = []
        self.problem: Problem | None = None

    def doubt(self) -> Connection:
        connection = cast(Connection, object())
        self.doubted = True
        for tell in self.on_doubt:
            tell(connection)
        return connection


class FakePool:
    def __init__(self) -> None:
        self.abandoned: list[Connection] = []

    def abandon(self, owner: Connection) -> None:
        self.abandoned.append(owner)


class FakePath:
    """A path: up and good since `since`, unless a test says otherwise."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.link = FakeLink()
        self.pool = FakePool()
        self.good_since: float | None = 0.0
        self.rising = asyncio.Event()
        self.rising.set()
        self.waiting = 0

    @property
    def up(self) -> bool:
        return self.rising.is_set()

    def down(self) -> None:
        self.rising.clear()
        self.good_since = None

    def come_up(self, *, good: bool = True) -> None:
        self.rising.set()
        self.good_since = asyncio.get_running_loop().time() if good else None

    @property
    def problem(self) -> Problem | None:
        return self.link.problem

    async def ready(self) -> None:
        self.waiting += 1
        try:
            await self.rising.wait()
        finally:
            self.waiting -= 1


def make(count: int = 2) -> tuple[Paths, list[FakePath]]:
    fakes = [FakePath(name) for name in ("first", "second", "third")[:count]]
    return Paths(cast(list[Path], fakes)), fakes


def named(path: Path | None) -> str | None:
    return path.name if path else None


def passes(seconds: float) -> None:
    cast(Loop, asyncio.get_running_loop()).ahead += seconds


async def test_the_first_that_is_good_is_taken() -> None:
    paths, [first, second] = make()
    assert paths.current is None
    assert named(paths.pick()) == "first"
    first.down()
    assert named(paths.pick()) == "second"
    second.down()
    assert paths.pick() is None


async def test_one_that_answers_goes_before_one_that_is_merely_up() -> None:
    paths, [first, second] = make()
    first.good_since = None
    assert named(paths.pick()) == "second"
    second.good_since = None
    assert named(paths.pick()) == "second"  # no better, no worse: stay
    assert paths.current is not None


async def test_with_nothing_proved_the_preferred_one_is_taken() -> None:
    paths, [first, second] = make()
    first.good_since = second.good_since = None
    assert named(paths.pick()) == "first"


async def test_one_that_fell_silent_comes_last_even_if_it_was_good() -> None:
    paths, [first, second] = make()
    first.link.doubted = True
    assert named(paths.pick()) == "second"
    second.good_since = None
    assert named(paths.pick()) == "second"
    second.link.doubted = True
    assert paths.pick() is not None  # better than none


async def test_the_only_path_is_taken_whatever_is_said_of_it() -> None:
    paths, [only] = make(1)
    only.good_since = None
    only.link.doubted = True
    assert named(paths.pick()) == "first"
    assert paths.pick([cast(Path, only)]) is None
    only.down()
    assert paths.pick() is None


def test_the_preferred_one_is_taken_again_once_it_has_settled(runner: asyncio.Runner) -> None:
    async def check() -> None:
        paths, [first, _] = make()
        first.down()
        assert named(paths.pick()) == "second"
        first.come_up()
        assert named(paths.pick()) == "second"
        passes(SETTLE - 1)
        assert named(paths.pick()) == "second"
        passes(2)
        assert named(paths.pick()) == "first"
        assert paths.current is paths.all[0]

    runner.run(check())


def test_one_that_flaps_is_not_taken(runner: asyncio.Runner) -> None:
    async def check() -> None:
        paths, [first, _] = make()
        first.down()
        assert named(paths.pick()) == "second"
        for _ in range(10):
            first.come_up()
            passes(SETTLE - 1)
            assert named(paths.pick()) == "second"
            first.down()
            passes(1)
        first.come_up()
        passes(SETTLE + 1)
        assert named(paths.pick()) == "first"

    runner.run(check())


def test_going_back_ends_at_the_first_that_has_settled(runner: asyncio.Runner) -> None:
    async def check() -> None:
        paths, [first, second, _] = make(3)
        first.down()
        second.down()
        assert named(paths.pick()) == "third"
        second.come_up()
        passes(SETTLE + 1)
        first.come_up()
        assert named(paths.pick()) == "second"  # the first has not been good for long enough
        passes(SETTLE + 1)
        assert named(paths.pick()) == "first"

    runner.run(check())


def test_a_worse_path_is_left_without_settling(runner: asyncio.Runner) -> None:
    """Settling keeps requests from going to and fro between good ones, not on a bad one."""

    async def check() -> None:
        paths, [first, second] = make()
        first.down()
        paths.pick()
        first.come_up()
        second.good_since = None
        assert named(paths.pick()) == "first"

    runner.run(check())


async def test_what_one_request_avoids_does_not_move_the_others() -> None:
    paths, [first, second] = make()
    assert named(paths.pick()) == "first"
    avoid = {cast(Path, first)}
    assert named(paths.pick(avoid)) == "second"
    assert paths.current is paths.all[0]
    assert named(paths.pick()) == "first"
    assert paths.pick({cast(Path, first), cast(Path, second)}) is None
    second.down()
    assert paths.pick(avoid) is None


async def test_a_doubt_moves_requests_to_a_path_that_is_there() -> None:
    paths, [first, second] = make()
    silent = first.link.doubt()
    assert first.pool.abandoned == [silent]
    assert second.pool.abandoned == []
    assert first.good_since is None  # it has to settle, once it speaks again
    assert named(paths.pick()) == "second"


@pytest.mark.parametrize("other", ["down", "doubted", "none"])
async def test_a_doubt_moves_nothing_where_there_is_nowhere_to_go(other: str) -> None:
    paths, fakes = make(1 if other == "none" else 2)
    if other == "down":
        fakes[1].down()
    elif other == "doubted":
        fakes[1].link.doubted = True
    fakes[0].link.doubt()
    assert fakes[0].pool.abandoned == []
    assert fakes[0].good_since is not None
    assert paths.pick() is not None


async def test_a_path_that_is_up_and_not_yet_proved_is_somewhere_to_go() -> None:
    _, [first, second] = make()
    second.good_since = None
    first.link.doubt()
    assert len(first.pool.abandoned) == 1


async def test_the_problem_is_that_of_the_preferred_path() -> None:
    paths, [first, second] = make()
    assert paths.problem is None
    second.link.problem = Problem("connect_failed", "second")
    assert paths.problem == second.link.problem
    first.link.problem = Problem("connect_failed", "first")
    assert paths.problem == first.link.problem


@pytest.mark.parametrize("which", [0, 1])
async def test_ready_is_when_any_is_up_and_leaves_nothing_behind(which: int) -> None:
    paths, fakes = make()
    for fake in fakes:
        fake.down()
    waiting = asyncio.ensure_future(paths.ready())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert [fake.waiting for fake in fakes] == [1, 1]
    fakes[which].come_up()
    await asyncio.wait_for(waiting, 1)
    await asyncio.sleep(0)
    assert [fake.waiting for fake in fakes] == [0, 0]


async def test_who_waits_for_any_path_may_leave() -> None:
    paths, fakes = make()
    for fake in fakes:
        fake.down()
    waiting = asyncio.ensure_future(paths.ready())
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert [fake.waiting for fake in fakes] == [0, 0]
