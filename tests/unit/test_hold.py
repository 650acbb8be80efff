import asyncio

import pytest

from tunnel.hold import Hold
from tunnel.problems import Problem, ProblemError

WHY = Problem("dns_failed", "No such name.")


def nothing() -> None:
    """No reason is known."""


async def never() -> None:
    await asyncio.Event().wait()


async def waiting(hold: Hold, size: int) -> "asyncio.Task[None]":
    """Have a request with `size` bytes of body wait."""
    task = asyncio.ensure_future(hold.wait(never(), size, nothing))
    await asyncio.sleep(0)
    return task


async def end(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def refused(hold: Hold, size: int, why: Problem | None = None) -> Problem:
    with pytest.raises(ProblemError) as told:
        await hold.wait(never(), size, lambda: why)
    return told.value.problem


async def test_what_was_waited_for_is_returned() -> None:
    hold = Hold(60)
    up = asyncio.Event()

    async def ready() -> str:
        await up.wait()
        return "connection"

    tasks = [asyncio.ensure_future(hold.wait(ready(), size, lambda: WHY)) for size in (1, 20, 300)]
    await asyncio.sleep(0)
    assert (hold.waiting, hold.held_bytes) == (3, 321)
    up.set()
    assert await asyncio.gather(*tasks) == ["connection"] * 3
    assert (hold.waiting, hold.held_bytes) == (0, 0)


async def test_without_a_hold_only_what_is_ready_passes() -> None:
    async def ready() -> int:
        return 1

    hold = Hold(0)
    assert await hold.wait(ready(), 0, nothing) == 1
    assert (await refused(hold, 0)).code == "hold_expired"


async def test_the_number_is_bounded() -> None:
    hold = Hold(60, requests=2)
    tasks = [await waiting(hold, 0), await waiting(hold, 0)]
    assert (await refused(hold, 0)).code == "hold_full"
    assert hold.waiting == 2
    await end(tasks.pop())
    tasks.append(await waiting(hold, 0))  # a place is free again
    assert hold.waiting == 2
    await end(*tasks)
    assert (hold.waiting, hold.held_bytes) == (0, 0)


async def test_the_bytes_are_bounded() -> None:
    hold = Hold(60, size=100)
    tasks = [await waiting(hold, 60), await waiting(hold, 40)]
    assert (await refused(hold, 1)).code == "hold_full"
    tasks.append(await waiting(hold, 0))
    assert hold.held_bytes == 100
    await end(*tasks)
    assert (await refused(hold, 101)).code == "hold_full"
    assert (hold.waiting, hold.held_bytes) == (0, 0)


async def test_the_time_is_bounded() -> None:
    hold = Hold(0.01)
    told = await refused(hold, 10, WHY)
    assert told.code == "hold_expired"
    assert "0.01 s" in told.message
    assert (hold.waiting, hold.held_bytes) == (0, 0)


@pytest.mark.parametrize("hold", [Hold(60, requests=0), Hold(0)], ids=["full", "expired"])
async def test_the_caller_is_told_why_the_tunnel_is_down(hold: Hold) -> None:
    told = await refused(hold, 0, WHY)
    assert WHY.message in told.message
    assert WHY.remedy in told.message
    assert WHY.message not in (await refused(hold, 0)).message


async def test_the_reason_is_the_one_of_the_end_and_not_of_the_beginning() -> None:
    reasons = [Problem("link_lost", "The SSH connection was lost.")]
    hold = Hold(0.02)
    held = asyncio.ensure_future(hold.wait(never(), 0, lambda: reasons[-1]))
    await asyncio.sleep(0)
    reasons.append(WHY)
    with pytest.raises(ProblemError, match=WHY.message):
        await held


async def test_a_client_that_leaves_makes_room() -> None:
    hold = Hold(60)
    await end(await waiting(hold, 10))
    assert (hold.waiting, hold.held_bytes) == (0, 0)


async def test_a_failure_of_what_is_waited_for_is_passed_on() -> None:
    async def fail() -> None:
        raise ProblemError("key_unusable", "no")

    hold = Hold(60)
    with pytest.raises(ProblemError, match=r"^no "):
        await hold.wait(fail(), 10, nothing)
    assert (hold.waiting, hold.held_bytes) == (0, 0)


@pytest.mark.filterwarnings("error")
async def test_who_is_refused_leaves_nothing_waiting() -> None:
    hold = Hold(60, requests=0)
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with pytest.raises(ProblemError):
        await hold.wait(future, 0, nothing)
    assert future.cancelled()
    await refused(hold, 0)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
