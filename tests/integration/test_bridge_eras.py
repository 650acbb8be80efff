"""Clients of either era at a service of either era, through the bridge and a tunnel that runs."""

import asyncio
from typing import Any

import pytest

from tests.bridges import Laptop, laptop, modern, service, text_of, within
from tests.eraservice import EraService
from tests.stdioclient import Json, StdioClient
from tunnel.bridge import eras

__all__ = ["laptop", "service"]

ALL = pytest.mark.parametrize("service", ["session", "stateless"], indirect=True)
ANSWERS: dict[str, Json] = {
    "elicitation/create": {"action": "accept", "content": {"name": "Ada"}},
    "sampling/createMessage": {
        "role": "assistant",
        "model": "m",
        "content": {"type": "text", "text": "well"},
    },
    "roots/list": {"roots": [{"uri": "file:///a"}, {"uri": "file:///b"}]},
}


class Speaker:
    """A client of one era."""

    def __init__(self, client: StdioClient, era: eras.Era) -> None:
        self.client = client
        self.era = era

    async def begin(self) -> Json:
        """Introduce itself, and return what the service says of itself."""
        if self.era == "session":
            answer = await self.client.initialize()
        else:
            answer = await self.client.ask("server/discover", modern())
        result: Json = answer["result"]
        return result

    def params(self, params: Json, **meta: Any) -> Json:
        if self.era == "stateless":
            return modern(params, **meta)
        return {**params, "_meta": meta} if meta else params

    async def ask(self, method: str, params: Json | None = None, **meta: Any) -> Json:
        """Ask, and answer what a stateless service wants of its client, as the SDK does."""
        sent = dict(params or {})
        while True:
            answer = await self.client.ask(method, self.params(sent, **meta))
            result = answer.get("result", {})
            if result.get("resultType") != "input_required":
                return answer
            assert self.era == "stateless"
            wishes = result.get("inputRequests", {})
            sent["inputResponses"] = {key: ANSWERS[one["method"]] for key, one in wishes.items()}
            sent["requestState"] = result["requestState"]

    async def call(self, tool: str, arguments: Json | None = None, **meta: Any) -> Json:
        return await self.ask("tools/call", {"name": tool, "arguments": arguments or {}}, **meta)

    def told(self, method: str) -> list[Json]:
        return [one for one in self.client.notifications if one["method"] == method]


@pytest.fixture(params=["session", "stateless"])
async def speaker(request: pytest.FixtureRequest, laptop: Laptop, service: EraService) -> Speaker:
    await laptop.up(service.port)
    client = await laptop.bridge()
    client.answers = ANSWERS
    return Speaker(client, request.param)


@pytest.mark.parametrize("service", ["session", "stateless", "both"], indirect=True)
async def test_what_there_is_and_what_it_does(speaker: Speaker, service: EraService) -> None:
    said = await speaker.begin()
    assert said["instructions"] == "Ask me."
    if speaker.era == "session":
        assert said["serverInfo"]["name"] == "eras"
        assert said["protocolVersion"] == "2025-06-18"
    else:
        assert said["_meta"][eras.SERVER_INFO]["name"] == "eras"
        assert said["supportedVersions"] == ["2026-07-28"]
    assert said["capabilities"]["tools"]["listChanged"] is True
    tools = (await speaker.ask("tools/list"))["result"]
    assert {"echo", "hold"} <= {one["name"] for one in tools["tools"]}
    assert ("resultType" in tools) is (speaker.era == "stateless")
    assert text_of(await speaker.call("echo", {"text": "ü\n", "region": "Köln"})) == "ü\n Köln"
    read = (await speaker.ask("resources/read", {"uri": "test://watched"}))["result"]
    assert read["contents"][0]["text"] == "watched"
    assert ("resultType" in read) is (speaker.era == "stateless")
    greeting = await speaker.ask("prompts/get", {"name": "greet", "arguments": {"name": "Ada"}})
    assert greeting["result"]["messages"][0]["content"]["text"] == "Greet Ada."
    for method, member in eras.LISTS.items():
        assert isinstance((await speaker.ask(method))["result"][member], list)
    unknown = await speaker.ask("no/such")
    assert unknown["error"]["code"] == -32601
    assert not speaker.client.noise
    if service.era == "both":
        assert service.refused == 0  # each is spoken to in its own era


@ALL
async def test_the_service_asks_in_the_middle_of_a_call(
    speaker: Speaker, service: EraService
) -> None:
    await speaker.begin()
    assert text_of(await speaker.call("ask_name")) == "Hello, Ada!"
    assert text_of(await speaker.call("ask_all")) == "Ada, well, 2 roots"
    assert service.called == ["ask_name", "ask_all"]
    if speaker.era == "session":
        assert sorted(one["method"] for one in speaker.client.asked) == [
            "elicitation/create",
            "elicitation/create",
            "roots/list",
            "sampling/createMessage",
        ]
    else:
        assert not speaker.client.asked


@ALL
async def test_progress_and_logs(speaker: Speaker) -> None:
    await speaker.begin()
    if speaker.era == "stateless":  # it gets those that it asks for with a request
        await speaker.call("steps")
        await speaker.call("steps", **{eras.LOG_LEVEL: "error"})
        assert speaker.told(eras.LOG) == []
    meta: Json = {"progressToken": "p"}
    if speaker.era == "stateless":
        meta[eras.LOG_LEVEL] = "info"
    else:  # this SDK's services of sessions know no level and log everything
        await speaker.ask("logging/setLevel", {"level": "info"})
    assert text_of(await speaker.call("steps", **meta)) == "done"
    progress = [one["params"] for one in speaker.told("notifications/progress")]
    assert [(one["progressToken"], one["progress"]) for one in progress] == [
        ("p", 1),
        ("p", 2),
        ("p", 3),
    ]
    assert [one["params"]["data"] for one in speaker.told(eras.LOG)] == ["at work"]


@ALL
async def test_changes_are_told(speaker: Speaker, service: EraService) -> None:
    await speaker.begin()
    await speaker.ask("tools/list")
    changed, updated = "notifications/tools/list_changed", "notifications/resources/updated"
    if speaker.era == "session":
        subscribed = await speaker.ask("resources/subscribe", {"uri": "test://watched"})
        assert subscribed["result"] == {}
    else:
        wanted = {"toolsListChanged": True, "resourceSubscriptions": ["test://watched"]}
        caller, _ = speaker.client.request(
            "subscriptions/listen", modern({"notifications": wanted})
        )
        acknowledged = "notifications/subscriptions/acknowledged"
        await speaker.client.until(lambda: bool(speaker.told(acknowledged)))
    await until_told(speaker, "change", changed)
    await until_told(speaker, "touch", updated)
    assert speaker.told(updated)[0]["params"]["uri"] == "test://watched"
    if speaker.era == "stateless":
        for one in speaker.told(changed) + speaker.told(updated):
            assert one["params"]["_meta"][eras.SUBSCRIPTION] == caller
    else:
        assert not any("_meta" in one.get("params", {}) for one in speaker.told(changed))
    names = {one["name"] for one in (await speaker.ask("tools/list"))["result"]["tools"]}
    assert "extra1" in names


async def until_told(speaker: Speaker, tool: str, method: str) -> None:
    """Call a tool until what it tells has come: the stream that it comes on may open late."""
    async with asyncio.timeout(20):
        while not speaker.told(method):
            await speaker.call(tool)
            await asyncio.sleep(0.05)


@ALL
async def test_a_call_is_cancelled_at_the_service(speaker: Speaker, service: EraService) -> None:
    await speaker.begin()
    caller, answer = speaker.client.request(
        "tools/call", speaker.params({"name": "hold", "arguments": {}}, progressToken=1)
    )
    await speaker.client.until(lambda: bool(speaker.told("notifications/progress")))
    speaker.client.notify("notifications/cancelled", {"requestId": caller, "reason": "enough"})
    await service.until(lambda: service.cancelled == ["hold"])
    assert text_of(await speaker.call("echo", {"text": "and on"})) == "and on"
    assert not answer.done()


@pytest.mark.parametrize("service", ["session"], indirect=True)
async def test_a_parked_call_goes_on_for_whoever_knows_its_name(
    laptop: Laptop, service: EraService
) -> None:
    await laptop.up(service.port)
    client = await laptop.bridge()
    call = {"name": "ask_all", "arguments": {}}

    async def carry_on(told: Json) -> Json:
        [wish] = told["inputRequests"].values()
        answers = {"1": ANSWERS[wish["method"]]}
        state = {"inputResponses": answers, "requestState": told["requestState"]}
        answer = await client.ask("tools/call", modern({**call, **state}))
        result: Json = answer["result"]
        return result

    first = (await client.ask("tools/call", modern(call)))["result"]
    second = await carry_on(first)
    assert second["resultType"] == "input_required"
    assert second["requestState"] != first["requestState"]
    # A name that was used is a new call; it does not get the answers that another was given.
    assert (await carry_on(first))["resultType"] == "input_required"
    assert service.called == []
    third = await carry_on(second)
    assert text_of({"result": await carry_on(third)}) == "Ada, well, 2 roots"
    assert service.called == ["ask_all"]
    client.end_input()  # a service that stops in the middle of a question takes its time
    await client.ended(within=10)


@pytest.mark.parametrize("service", ["session"], indirect=True)
async def test_a_call_that_was_parked_is_cancelled_by_the_id_that_the_service_knows(
    laptop: Laptop, service: EraService
) -> None:
    await laptop.up(service.port)
    client = await laptop.bridge()
    call = {"name": "ask_and_hold", "arguments": {}}
    told = (await client.ask("tools/call", modern(call)))["result"]
    answers = {"1": ANSWERS["elicitation/create"]}
    state = {"inputResponses": answers, "requestState": told["requestState"]}
    caller, _ = client.request("tools/call", modern({**call, **state}))
    await service.until(lambda: service.called == ["hold"])
    client.notify("notifications/cancelled", {"requestId": caller})
    await service.until(lambda: service.cancelled == ["hold"])


@ALL
async def test_discover_first_and_initialize_afterwards(
    laptop: Laptop, service: EraService
) -> None:
    await laptop.up(service.port)
    client = await laptop.bridge()
    stateless, session = Speaker(client, "stateless"), Speaker(client, "session")
    client.answers = ANSWERS
    for _ in range(2):
        for one in (stateless, session):
            await one.begin()
            assert text_of(await one.call("echo", {"text": one.era})) == one.era
            assert text_of(await one.call("ask_name")) == "Hello, Ada!"
    await within(
        20,
        *(one.call("echo", {"text": str(n)}) for n in range(10) for one in (stateless, session)),
    )
    assert not client.noise


async def test_a_service_that_is_replaced_by_one_of_another_era(
    laptop: Laptop, service: EraService
) -> None:
    await laptop.up(service.port)
    client = await laptop.bridge()
    speaker = Speaker(client, "session")
    service.era = "session"
    await speaker.begin()
    await speaker.call("echo", {"text": "before"})
    service.era = "stateless"
    await service.restart()
    async with asyncio.timeout(20):
        while "error" in (answer := await speaker.call("echo", {"text": "after"})):
            await asyncio.sleep(0.05)
    assert text_of(answer) == "after"


async def test_a_large_message_each_way(laptop: Laptop, service: EraService) -> None:
    await laptop.up(service.port)
    client = await laptop.bridge()
    speaker = Speaker(client, "session")
    await speaker.begin()
    assert len(text_of(await speaker.call("big", {"size": 16 << 20}))) == 16 << 20
    text = "y" * (3 << 20)
    assert text_of(await speaker.call("echo", {"text": text})) == text
    too_large = await speaker.call("echo", {"text": "z" * (6 << 20)})
    assert too_large["error"]["code"] == -32010
    assert "too large" in too_large["error"]["message"]
