"""Calls that wait for what a client is asked in the middle of them."""

import asyncio

import pytest

from tunnel.bridge import parked
from tunnel.bridge.message import Message, notification, request, response
from tunnel.bridge.parked import Call, Parking


class Service:
    """Asks `questions` before it answers, each after the answer to the one before."""

    def __init__(self, call: Call, questions: int) -> None:
        self.others: list[Message] = []
        self.go_on = asyncio.Event()
        self.cancelled = False
        came = call.came(self.others.append)

        async def work() -> Message:
            try:
                came(notification("notifications/progress"))
                for number in range(questions):
                    came(request(number, "roots/list"))
                    await self.go_on.wait()
                    self.go_on.clear()
                return response(1, {})
            except asyncio.CancelledError:
                self.cancelled = True
                raise

        call.run(work())


@pytest.fixture
def expired() -> list[Call]:
    return []


@pytest.fixture
def parking(expired: list[Call]) -> Parking:
    return Parking(expired.append)


@pytest.fixture
def call() -> Call:
    return Call(request("c", "tools/call"))


async def test_a_call_that_asks_nothing_just_ends(parking: Parking, call: Call) -> None:
    service = Service(call, 0)
    assert await parking.wait(call) is None
    assert call.answer().result == {}
    assert [one.method for one in service.others] == ["notifications/progress"]


async def test_each_question_parks_it_under_another_name(parking: Parking, call: Call) -> None:
    service = Service(call, 2)
    names = []
    for number in range(2):
        name = await parking.wait(call)
        assert name is not None
        assert call.asked.id == number
        assert call.id == "c"
        assert parking.leave(name) is call
        assert parking.leave(name) is None  # a name serves once
        names.append(name)
        service.go_on.set()
    assert names[0] != names[1]
    assert await parking.wait(call) is None
    assert call.answer().result == {}


async def test_nobody_knows_another_name(parking: Parking, call: Call) -> None:
    Service(call, 1)
    await parking.wait(call)
    for guess in (None, "", "1", "catalyst"):
        assert parking.leave(guess) is None
    parking.close()


async def test_one_that_is_not_waited_for_any_longer_is_cancelled(
    parking: Parking, call: Call
) -> None:
    service = Service(call, 1)
    name = await parking.wait(call)
    parking.leave(name)
    waiting = asyncio.ensure_future(parking.wait(call))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert service.cancelled


async def test_a_client_that_does_not_come_back(
    parking: Parking, call: Call, expired: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parked, "PATIENCE", 0.0)
    service = Service(call, 1)
    name = await parking.wait(call)
    async with asyncio.timeout(10):
        while not service.cancelled:
            await asyncio.sleep(0)
    assert expired == [call]
    assert parking.leave(name) is None


async def test_one_that_came_back_does_not_expire(
    parking: Parking, call: Call, expired: list[Call]
) -> None:
    service = Service(call, 1)
    parking.leave(await parking.wait(call))
    assert call.expiry is not None
    assert call.expiry.cancelled()
    service.go_on.set()
    assert await parking.wait(call) is None
    assert expired == []


async def test_the_end_gives_up_all(parking: Parking, expired: list[Call]) -> None:
    services = []
    for _ in range(3):
        call = Call(request("c", "tools/call"))
        services.append(Service(call, 1))
        await parking.wait(call)
    parking.close()
    await asyncio.sleep(0)
    assert all(one.cancelled for one in services)
    assert expired == []


async def test_what_a_call_raised_is_raised(parking: Parking, call: Call) -> None:
    async def work() -> Message:
        raise KeyError

    call.run(work())
    assert await parking.wait(call) is None
    with pytest.raises(KeyError):
        call.answer()
