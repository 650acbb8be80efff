"""What is answered at once, and set right later, with a stand-in for the service."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tunnel.bridge import eras, firsts
from tunnel.bridge.client import Client
from tunnel.bridge.eras import Era
from tunnel.bridge.firsts import Firsts
from tunnel.bridge.memory import Memory
from tunnel.bridge.message import METHOD_NOT_FOUND, Json, Message, refusal, request, response
from tunnel.bridge.session import RefusedError
from tunnel.bridge.verdict import UnansweredError

HELLO: Json = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "s", "version": "1"},
}
ASKED = request(1, "initialize", {"protocolVersion": "2025-06-18"})
CHANGED = "notifications/tools/list_changed"


class Talk:
    """Answers by `script` once `reached` is set."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.on_begun_again: list[Callable[[], None]] = []
        self.reached = asyncio.Event()
        self.era: Era = "session"
        self.tools: list[Any] = [{"name": "a"}]
        self.script: Callable[[Message], Message] = self.pages
        self.asked: list[Message] = []
        self.refusal: Exception | None = None
        self.began_anew = 0

    def start_over(self) -> None:
        self.began_anew += 1

    async def route(self, client: Era, message: Message) -> Era:
        await self.reached.wait()
        if self.refusal is not None:
            raise self.refusal
        if self.era == "session":
            self.memory.learn("initialize", None, HELLO)
        else:
            found = {"capabilities": {"prompts": {}}, "supportedVersions": ["2026-07-28"]}
            self.memory.learn("server/discover", None, found)
        return self.era

    async def ask(self, message: Message) -> Message:
        await self.reached.wait()
        self.asked.append(message)
        return self.script(message)

    def pages(self, message: Message) -> Message:
        """One tool a page."""
        at = int(message.params.get("cursor", 0))
        result: Json = {"tools": self.tools[at : at + 1]}
        if at + 1 < len(self.tools):
            result["nextCursor"] = str(at + 1)
        return response(message.id, result)


class World:
    def __init__(self, file: Path) -> None:
        self.told: list[Json] = []
        self.client = Client(lambda message: self.told.append(message.content))
        self.memory = Memory(file)
        self.talk = Talk(self.memory)
        self.firsts = Firsts(self.talk, self.memory, self.client)  # type: ignore[arg-type]

    async def until_told(self, count: int = 1) -> None:
        async with asyncio.timeout(10):
            while len(self.told) < count:
                await asyncio.sleep(0.005)

    async def until_settled(self) -> None:
        """Wait until nothing is asked anew."""
        async with asyncio.timeout(10):
            while self.firsts._stale:
                await asyncio.sleep(0.005)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(firsts, "AT_ONCE", 0.02)
    monkeypatch.setattr(firsts, "RETRY", (0.01, 0.02))
    return World(tmp_path / "cache" / "service.json")


def listing(cursor: str | None = None) -> Message:
    return request(2, "tools/list", {} if cursor is None else {"cursor": cursor})


async def test_the_truth_if_it_comes_in_time(world: World) -> None:
    world.talk.reached.set()
    answer = (await world.firsts.initialize(ASKED)).result
    assert answer is not None
    assert answer["serverInfo"] == HELLO["serverInfo"]
    assert answer["protocolVersion"] == "2025-11-25"  # what was agreed on, not what was asked for
    assert answer["capabilities"] == {"tools": {"listChanged": True}}
    assert world.client.introduction == ASKED.params
    assert world.talk.began_anew == 1


@pytest.mark.parametrize("era", ["session", "stateless"])
async def test_both_introductions_at_a_service_of_either_era(world: World, era: Era) -> None:
    world.talk.era = era
    world.talk.reached.set()
    initialized = (await world.firsts.initialize(ASKED)).result
    discovered = (await world.firsts.discover(request(2, "server/discover"))).result
    assert initialized is not None
    assert discovered is not None
    assert initialized["capabilities"] == discovered["capabilities"]
    assert "supportedVersions" in discovered
    assert initialized["protocolVersion"] in eras.SESSIONS


async def test_an_honest_answer_where_nothing_is_known(world: World) -> None:
    for answer in (
        (await world.firsts.initialize(ASKED)).result,
        (await world.firsts.discover(request(2, "server/discover"))).result,
    ):
        assert answer is not None
        assert "not been reached" in answer["instructions"]
        assert answer["capabilities"]["tools"] == {"listChanged": True}
    assert (await world.firsts.lists(listing())).result == {"tools": []}
    await world.firsts.close()


async def test_what_is_remembered_where_it_is_not_reached(world: World) -> None:
    world.memory.learn("initialize", None, HELLO)
    world.memory.learn("tools/list", None, {"tools": [{"name": "old"}]})
    answer = (await world.firsts.initialize(ASKED)).result
    assert answer is not None
    assert answer["serverInfo"] == HELLO["serverInfo"]
    assert answer["protocolVersion"] == "2025-06-18"
    assert (await world.firsts.lists(listing())).result == {"tools": [{"name": "old"}]}
    world.talk.reached.set()
    await world.until_told()
    assert [one["method"] for one in world.told] == [CHANGED]
    assert world.memory.recall("tools/list") == {"tools": [{"name": "a"}]}


async def test_a_memory_that_was_right_is_not_set_right(world: World) -> None:
    world.client.introduction = {}
    world.talk.tools = [{"name": "a"}, {"name": "b"}, {"name": "c"}]
    world.memory.learn("tools/list", None, {"tools": world.talk.tools})
    assert (await world.firsts.lists(listing())).result == {"tools": world.talk.tools}
    world.talk.reached.set()
    await world.until_settled()
    assert world.told == []
    assert len(world.talk.asked) == 3  # page by page
    assert len({one.id for one in world.talk.asked}) == 3


async def test_it_is_asked_until_the_service_answers(world: World) -> None:
    world.client.introduction = {}
    world.talk.reached.set()
    tries = 0

    def script(message: Message) -> Message:
        nonlocal tries
        tries += 1
        if tries < 5:
            error = refusal(message.id, -1, "No.")
            raise UnansweredError(error) if tries % 2 else RefusedError(error)
        return world.talk.pages(message)

    world.talk.script = script
    assert (await world.firsts.lists(listing())).result == {"tools": []}
    await world.until_told()
    assert tries == 5


async def test_a_restarted_service_that_has_other_lists(world: World) -> None:
    world.client.introduction = {}
    world.talk.reached.set()
    await world.firsts.lists(listing())
    for begun in world.talk.on_begun_again:
        begun()
    await world.until_settled()
    assert world.told == []
    world.talk.tools = [{"name": "b"}]
    for begun in world.talk.on_begun_again:
        begun()
    await world.until_told()
    assert [one["method"] for one in world.told] == [CHANGED]


@pytest.mark.parametrize(
    "result",
    [{}, {"tools": None}, {"tools": 5}, {"tools": {"a": 1}}, {"nextCursor": 5}],
)
async def test_a_list_that_is_none(world: World, result: Json) -> None:
    await world.firsts.lists(listing())
    world.talk.script = lambda message: response(message.id, result)
    world.talk.reached.set()
    await world.until_settled()
    assert world.told == []


async def test_pages_without_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(firsts, "PAGES", 20)
    await world.firsts.lists(listing())

    def script(message: Message) -> Message:
        after = str(int(message.params.get("cursor", 0)) + 1)
        return response(message.id, {"tools": [], "nextCursor": after})

    world.talk.script = script
    world.talk.reached.set()
    await world.until_settled()
    assert len(world.talk.asked) == 20


async def test_a_further_page_is_waited_for(world: World) -> None:
    """What comes after pages that were given cannot be told from memory."""
    asking = asyncio.ensure_future(world.firsts.lists(listing("1")))
    await asyncio.sleep(0.05)
    assert not asking.done()
    world.talk.tools = [{"name": "a"}, {"name": "b"}]
    world.talk.reached.set()
    assert (await asking).result == {"tools": [{"name": "b"}]}


async def test_a_method_that_the_service_lacks(world: World) -> None:
    world.talk.script = lambda message: refusal(message.id, METHOD_NOT_FOUND, "No.")
    world.talk.reached.set()
    answer = await world.firsts.lists(listing())
    assert answer.error is not None
    world.talk.reached.clear()
    await world.firsts.initialize(ASKED)  # now it was said that there may be some
    world.talk.reached.set()
    assert (await world.firsts.lists(listing())).result == {"tools": []}


async def test_what_the_service_refuses_is_told(world: World) -> None:
    world.talk.refusal = RefusedError(refusal(0, -32602, "Not you."))
    world.talk.reached.set()
    with pytest.raises(RefusedError, match="Not you"):
        await world.firsts.initialize(ASKED)


async def test_a_cancelled_request_asks_no_longer(world: World) -> None:
    asking = asyncio.ensure_future(world.firsts.lists(listing()))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    world.talk.reached.set()
    await asyncio.sleep(0.05)
    assert world.talk.asked == []
