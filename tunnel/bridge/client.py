"""The client on the other side of stdin and stdout: what it said of itself, and what it is told."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from ..mcp import Id
from . import eras
from .message import Json, Message, notification, request

UPDATED = "notifications/resources/updated"
ACKNOWLEDGED = "notifications/subscriptions/acknowledged"

CANCELLED = "notifications/cancelled"

Reply = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class _Question:
    """What the client was asked."""

    theirs: Id | None
    """The id that the service gave it; None where the bridge asks."""
    reply: Reply


class Client:
    """Whom the bridge serves.

    Attributes:
        introduction: the params of its `initialize`, if it is one of sessions.
        level: what it set by `logging/setLevel`; a stateless service is told with each request.
        listens: the streams that it has open, if it is a stateless one: id and filter of each.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self.send = send
        self.introduction: Json | None = None
        self.level: str | None = None
        self.listens: dict[Id, Json] = {}
        self._waiting: dict[Id, _Question] = {}
        self._numbers = itertools.count(1)

    def number(self) -> str:
        """Return an id for a request of the bridge's own."""
        return f"catalyst-{next(self._numbers)}"

    def put(self, asked: Message, reply: Reply) -> None:
        """Pass on what the service asks of the client; `reply` takes its response.

        It gets an id of ours: a service that was restarted counts from the beginning again, and
        the answer to what it asked before must not be taken for the answer to another question.
        """
        number = self.number()
        self._waiting[number] = _Question(asked.id, reply)
        self.send(asked.with_id(number))

    def answered(self, message: Message) -> None:
        """Take the client's response to what it was asked; one that nobody waits for is dropped."""
        caller = message.id
        question = self._waiting.pop(caller, None) if isinstance(caller, Id) else None
        if question is not None:
            question.reply(message.with_id(question.theirs))

    async def ask(self, wish: Json) -> Message:
        """Ask the client what a stateless service wants of it, and return its response."""
        caller = self.number()
        answered: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[caller] = _Question(
            None, lambda message: None if answered.done() else answered.set_result(message)
        )
        params = wish.get("params")
        self.send(
            request(caller, str(wish.get("method")), params if isinstance(params, dict) else None)
        )
        try:
            return await answered
        finally:
            self._give_up(caller)

    def _give_up(self, number: Id) -> None:
        if self._waiting.pop(number, None) is not None:
            self.send(notification(CANCELLED, {"requestId": number}))

    def forget(self) -> None:
        """Give up what the service has asked: it has forgotten it."""
        for number, question in tuple(self._waiting.items()):
            if question.theirs is not None:
                self._give_up(number)

    def came(self, message: Message) -> None:
        """Pass on a notification of the service."""
        if message.method == CANCELLED:
            theirs = message.params.get("requestId")
            for number, question in tuple(self._waiting.items()):
                if question.theirs is not None and question.theirs == theirs:
                    self._give_up(number)
        elif message.method not in eras.FILTERS and message.method != UPDATED:
            self.send(message)
        elif eras.subscription(message) in self.listens:
            self.send(message)  # it came on that very stream
        else:
            self.changed(eras.off_subscription(message))

    def changed(self, plain: Message) -> None:
        """Tell of a change, in the manner of the client's era."""
        if self.introduction is not None:
            self.send(plain)
        for caller, wanted in self.listens.items():
            if plain.method == UPDATED:
                interested = plain.params.get("uri") in wanted.get("resourceSubscriptions", ())
            else:
                interested = eras.FILTERS[plain.method or ""] in wanted
            if interested:
                self.send(eras.on_subscription(plain, caller))

    def missed(self, caller: Id) -> None:
        """Have the client look anew at everything that one of its streams would have told."""
        wanted = self.listens.get(caller, {})
        for method, member in eras.FILTERS.items():
            if member in wanted:
                self.send(eras.on_subscription(notification(method), caller))
        for uri in wanted.get("resourceSubscriptions", ()):
            self.send(eras.on_subscription(notification(UPDATED, {"uri": uri}), caller))
