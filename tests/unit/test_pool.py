"""What the pool decides, with connections that do nothing."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest

from tunnel import pool as module
from tunnel.http import HttpConnection
from tunnel.link import Connection
from tunnel.pool import REUSE, REUSE_ONCE, SPARE_AGE, Pool, Upstream
from tunnel.problems import ProblemError


class FakeHttp:
    def __init__(self) -> None:
        self.spoilt = False
        self.reusable = True
        self.aborted = False
        self.messages = 1

    def next_message(self) -> None:
        self.messages += 1

    def abort(self) -> None:
        self.aborted = True


def fake(upstream: Upstream) -> FakeHttp:
    return cast(FakeHttp, upstream.http)


class Service:
    """Opens connections over `owner`; refuses while `refuses`, hangs until `gate` is set."""

    def __init__(self) -> None:
        self.made: list[FakeHttp] = []
        self.owner = SimpleNamespace(alive=True)
        self.refuses = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def open_one(self) -> tuple[HttpConnection, Connection]:
        await self.gate.wait()
        if self.refuses:
            raise ProblemError("target_refused", "no")
        self.made.append(FakeHttp())
        return cast(HttpConnection, self.made[-1]), cast(Connection, self.owner)

    def pool(self) -> Pool:
        return Pool(self.open_one)


async def settled(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def turns(count: int = 10) -> None:
    """Let what is ready to run, run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def no_spares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARE", 0)


# Spares.


async def test_the_first_is_fresh_and_a_spare_is_opened_beside_it() -> None:
    service = Service()
    upstream = await service.pool().acquire(repeatable=False)
    assert upstream.fresh
    assert upstream.owner is service.owner
    await settled(lambda: len(service.made) == 2)
    await turns()
    assert len(service.made) == 2
    assert fake(upstream) is service.made[0]


@pytest.mark.parametrize("repeatable", [True, False])
@pytest.mark.parametrize(("age", "used"), [(SPARE_AGE - 1, True), (SPARE_AGE + 1, False)])
async def test_a_spare_saves_the_opening_but_is_not_kept_for_ever(
    repeatable: bool, age: float, used: bool
) -> None:
    service = Service()
    pool = service.pool()
    pool.warm()
    await settled(lambda: service.made)
    await turns()
    [spare] = pool._idle
    spare.idle_since -= age
    upstream = await pool.acquire(repeatable=repeatable)
    assert (upstream is spare) is used
    assert upstream.fresh is not used
    assert fake(spare).aborted is not used


async def test_a_spare_that_was_used_is_replaced() -> None:
    service = Service()
    pool = service.pool()
    pool.warm()
    await settled(lambda: service.made)
    await turns()
    await pool.acquire(repeatable=True)
    await settled(lambda: len(service.made) == 2)
    pool.warm()
    await turns()
    assert len(service.made) == 2


async def test_a_spare_that_cannot_be_opened_harms_nobody() -> None:
    service = Service()
    pool = service.pool()
    service.refuses = True
    pool.warm()
    await turns()
    service.refuses = False
    assert (await pool.acquire(repeatable=True)).fresh
    await settled(lambda: len(service.made) == 2)


async def test_only_one_spare_is_opened_at_a_time() -> None:
    service = Service()
    pool = service.pool()
    service.gate.clear()
    for _ in range(5):
        pool.warm()
    service.gate.set()
    await turns()
    assert len(service.made) == 1


# Connections that served.


async def served(pool: Pool, *ages: float) -> list[Upstream]:
    """Have connections that served, so many seconds ago."""
    upstreams = [await pool.acquire(repeatable=True) for _ in ages]
    for upstream, age in zip(upstreams, ages, strict=True):
        pool.release(upstream)
        upstream.idle_since -= age
    return upstreams


@pytest.mark.usefixtures("no_spares")
@pytest.mark.parametrize(
    ("age", "repeatable", "reused"),
    [
        (0.0, True, True),
        (REUSE - 0.5, True, True),
        (REUSE + 0.1, True, False),
        (0.0, False, True),
        (REUSE_ONCE - 0.5, False, True),
        (REUSE_ONCE + 0.1, False, False),
        (REUSE - 0.5, False, False),
        (REUSE + 0.1, False, False),
    ],
)
async def test_what_must_not_be_repeated_goes_out_on_young_connections(
    age: float, repeatable: bool, reused: bool
) -> None:
    pool = Service().pool()
    [old] = await served(pool, age)
    new = await pool.acquire(repeatable=repeatable)
    assert (new is old) is reused
    assert new.fresh is not reused
    assert new.repeatable is repeatable
    assert fake(old).messages == 2
    assert fake(old).aborted is (age > REUSE)


async def test_a_call_takes_the_spare_where_a_read_takes_what_served() -> None:
    service = Service()
    for repeatable in (False, True):
        pool = service.pool()
        [old] = await served(pool, REUSE_ONCE + 0.5)
        await turns()
        taken = await pool.acquire(repeatable=repeatable)
        assert (taken is old) is repeatable
        assert not taken.fresh
        assert not fake(old).aborted


@pytest.mark.usefixtures("no_spares")
async def test_the_one_used_last_goes_first() -> None:
    pool = Service().pool()
    first, second = await served(pool, 0.2, 0.1)
    assert await pool.acquire(repeatable=True) is second
    assert await pool.acquire(repeatable=True) is first


@pytest.mark.usefixtures("no_spares")
async def test_nobody_gets_what_is_in_use() -> None:
    pool = Service().pool()
    taken = [await pool.acquire(repeatable=True) for _ in range(20)]
    assert len({id(upstream) for upstream in taken}) == 20


@pytest.mark.usefixtures("no_spares")
async def test_a_connection_that_ended_or_spoke_out_of_turn_is_not_reused() -> None:
    pool = Service().pool()
    [old] = await served(pool, 0)
    fake(old).spoilt = True
    assert await pool.acquire(repeatable=True) is not old
    assert fake(old).aborted


async def test_a_spare_that_the_service_closed_is_not_used() -> None:
    service = Service()
    pool = service.pool()
    pool.warm()
    await settled(lambda: service.made)
    await turns()
    service.made[0].spoilt = True
    assert fake(await pool.acquire(repeatable=False)) is not service.made[0]
    assert service.made[0].aborted


@pytest.mark.usefixtures("no_spares")
@pytest.mark.parametrize(("reusable", "spoilt"), [(False, False), (True, True), (False, True)])
async def test_what_cannot_serve_again_is_closed(reusable: bool, spoilt: bool) -> None:
    pool = Service().pool()
    upstream = await pool.acquire(repeatable=True)
    fake(upstream).reusable = reusable
    fake(upstream).spoilt = spoilt
    pool.release(upstream)
    assert fake(upstream).aborted
    assert await pool.acquire(repeatable=True) is not upstream


# Bounds.


@pytest.mark.usefixtures("no_spares")
async def test_connections_are_bounded_and_the_next_waits_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LIMIT", 2)
    pool = Service().pool()
    taken = [await pool.acquire(repeatable=True) for _ in range(2)]
    waiting = asyncio.ensure_future(pool.acquire(repeatable=True))
    await turns()
    assert not waiting.done()
    pool.release(taken[0])
    assert await waiting is taken[0]


@pytest.mark.usefixtures("no_spares")
async def test_who_waits_too_long_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 1)
    monkeypatch.setattr(module, "SLOT_WAIT", 0.01)
    pool = Service().pool()
    first = await pool.acquire(repeatable=True)
    with pytest.raises(ProblemError) as told:
        await pool.acquire(repeatable=True)
    assert told.value.problem.code == "busy"
    pool.release(first)
    assert await pool.acquire(repeatable=True) is first


@pytest.mark.usefixtures("no_spares")
async def test_a_place_is_given_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 1)
    monkeypatch.setattr(module, "SLOT_WAIT", 0.01)
    service = Service()
    pool = service.pool()
    service.refuses = True
    for _ in range(3):
        with pytest.raises(ProblemError, match=r"^no "):
            await pool.acquire(repeatable=True)
    service.refuses = False
    service.gate.clear()
    gone = asyncio.ensure_future(pool.acquire(repeatable=True))
    await turns()
    gone.cancel()
    await asyncio.wait([gone])
    service.gate.set()
    held = await pool.acquire(repeatable=True)
    left = asyncio.ensure_future(pool.acquire(repeatable=True))
    await turns()
    left.cancel()
    await asyncio.wait([left])
    pool.release(held)
    assert await pool.acquire(repeatable=True) is held


# The end.


async def test_giving_up_an_owner_spares_what_must_not_be_repeated() -> None:
    """The answer of such a request may still come, if the connection below it recovers."""
    service = Service()
    pool = service.pool()
    call = await pool.acquire(repeatable=False)
    read = await pool.acquire(repeatable=True)
    idle = await pool.acquire(repeatable=True)
    pool.release(idle)
    await turns()
    pool.abandon(call.owner)
    assert fake(read).aborted
    assert fake(idle).aborted
    kept = [http for http in service.made if not http.aborted]
    assert kept == [fake(call)]
    service.owner = SimpleNamespace(alive=True)
    assert (await pool.acquire(repeatable=True)).owner is service.owner


@pytest.mark.usefixtures("no_spares")
async def test_another_owners_connections_are_left_alone() -> None:
    pool = Service().pool()
    idle, read = [await pool.acquire(repeatable=True) for _ in range(2)]
    pool.release(idle)
    pool.abandon(cast(Connection, object()))
    assert not fake(idle).aborted
    assert not fake(read).aborted
    assert await pool.acquire(repeatable=True) is idle


async def test_closing_closes_everything() -> None:
    service = Service()
    pool = service.pool()
    read, call, idle = [await pool.acquire(repeatable=again) for again in (True, False, True)]
    pool.release(idle)
    await turns()
    await pool.acquire(repeatable=True)
    service.gate.clear()
    await pool.acquire(repeatable=True)
    await turns()
    assert pool._warming is not None
    pool.close()
    service.gate.set()
    await turns()
    assert all(fake(one).aborted for one in (read, call, idle))
    assert all(http.aborted for http in service.made)


async def test_what_was_given_up_serves_nobody_any_more() -> None:
    service = Service()
    pool = service.pool()
    call = await pool.acquire(repeatable=False)
    service.owner.alive = False  # retired; the call on it may still end well
    pool.release(call)
    assert fake(call).aborted
    service.owner = SimpleNamespace(alive=True)
    assert (await pool.acquire(repeatable=True)).owner is service.owner


async def test_reads_leave_room_for_a_call_and_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 8)
    monkeypatch.setattr(module, "SLOT_WAIT", 0.01)
    pool = Service().pool()
    for _ in range(7):
        await pool.acquire(repeatable=True)
    with pytest.raises(ProblemError):
        await pool.acquire(repeatable=True)
    call = await pool.acquire(repeatable=False)
    pool.release(call)
    await pool.acquire(repeatable=True, probe=True)


async def test_the_oldest_read_that_waits_is_told() -> None:
    pool = Service().pool()
    assert pool.waiting_since is None
    await pool.acquire(repeatable=False)
    assert pool.waiting_since is None
    first = await pool.acquire(repeatable=True)
    second = await pool.acquire(repeatable=True)
    assert pool.waiting_since == first.waiting_since
    first.waiting_since = None
    assert pool.waiting_since == second.waiting_since
