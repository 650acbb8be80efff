"""What a client is asked and told."""

import asyncio

import pytest

from tunnel.bridge import eras
from tunnel.bridge.client import CANCELLED, UPDATED, Client
from tunnel.bridge.message import Json, Message, notification, refusal, request, response

TOOLS = "notifications/tools/list_changed"


class Told:
    """A client, and the messages that it was sent."""

    def __init__(self) -> None:
        self.all: list[Json] = []
        self.client = Client(lambda message: self.all.append(message.content))

    def take(self) -> list[Json]:
        told, self.all[:] = list(self.all), []
        return told


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_question_gets_an_id_of_ours_and_its_answer_the_services(told: Told) -> None:
    answers: list[Message] = []
    told.client.put(request(0, "roots/list"), answers.append)
    told.client.put(request(0, "roots/list"), answers.append)
    first, second = told.take()
    assert first["id"] != second["id"]
    told.client.answered(response(second["id"], {"roots": []}))
    assert [one.content for one in answers] == [response(0, {"roots": []}).content]
    told.client.answered(response(second["id"], {"roots": [1]}))  # a second answer
    told.client.answered(response(0, {}))  # the answer to nothing
    told.client.answered(refusal(None, -1, "No."))
    told.client.put(request(0, "roots/list"), answers.append)
    told.client.answered(Message({"jsonrpc": "2.0", "id": [], "result": {}}))  # not even an id
    assert len(answers) == 1


def test_a_question_is_cancelled_by_the_id_that_the_client_knows(told: Told) -> None:
    answers: list[Message] = []
    told.client.put(request("q", "roots/list"), answers.append)
    [asked] = told.take()
    told.client.came(notification(CANCELLED, {"requestId": "other"}))
    told.client.came(notification(CANCELLED, {"requestId": []}))
    assert told.take() == []
    told.client.came(notification(CANCELLED, {"requestId": "q"}))
    assert told.take() == [notification(CANCELLED, {"requestId": asked["id"]}).content]
    told.client.answered(response(asked["id"], {}))
    assert answers == []


async def test_what_was_asked_before_a_restart_is_given_up(told: Told) -> None:
    told.client.put(request(0, "roots/list"), lambda _: None)
    asking = asyncio.ensure_future(told.client.ask({"method": "roots/list"}))
    await asyncio.sleep(0)
    session, ours = told.take()
    told.client.forget()
    [cancelled] = told.take()
    assert cancelled["params"] == {"requestId": session["id"]}
    told.client.answered(response(ours["id"], {"roots": []}))
    assert (await asking).result == {"roots": []}
    assert told.take() == []


async def test_a_question_that_nobody_waits_for_is_cancelled(told: Told) -> None:
    asking = asyncio.ensure_future(told.client.ask({"method": "a", "params": 5}))
    await asyncio.sleep(0)
    [asked] = told.take()
    assert "params" not in asked
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert told.take() == [notification(CANCELLED, {"requestId": asked["id"]}).content]


def test_a_client_of_sessions_is_told_of_every_change(told: Told) -> None:
    told.client.introduction = {}
    marked = eras.on_subscription(notification(TOOLS), "catalyst-1")
    told.client.came(marked)
    assert told.take() == [notification(TOOLS).content]


def test_a_stateless_client_is_told_of_what_it_listens_to(told: Told) -> None:
    told.client.listens["a"] = {"toolsListChanged": True}
    told.client.listens["b"] = {"resourceSubscriptions": ["u"]}
    told.client.came(notification(TOOLS))
    [one] = told.take()
    assert eras.subscription(Message(one)) == "a"
    told.client.came(notification(UPDATED, {"uri": "u"}))
    [one] = told.take()
    assert eras.subscription(Message(one)) == "b"
    told.client.came(notification(UPDATED, {"uri": "v"}))
    told.client.came(notification("notifications/prompts/list_changed"))
    assert told.take() == []
    own = eras.on_subscription(notification(UPDATED, {"uri": "v"}), "a")
    told.client.came(own)
    assert told.take() == [own.content]


def test_everything_that_was_missed_is_to_be_looked_at_anew(told: Told) -> None:
    told.client.listens["a"] = {"toolsListChanged": True, "resourceSubscriptions": ["u", "v"]}
    told.client.missed("a")
    told.client.missed("gone")
    methods = [(one["method"], one["params"].get("uri")) for one in told.take()]
    assert methods == [(TOOLS, None), (UPDATED, "u"), (UPDATED, "v")]


def test_other_notifications_pass_as_they_are(told: Told) -> None:
    for method in ("notifications/progress", "notifications/message", "x/y"):
        told.client.came(notification(method, {"a": 1}))
    assert len(told.take()) == 3
