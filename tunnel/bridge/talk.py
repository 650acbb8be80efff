"""The service, spoken to in the client's era if it knows that one, else in the other.

Nothing is lost where both are of one era. Where they are not, what can be said in the other's words
is (`eras`); what a service wants of a client in the middle of a call is passed on either way.
"""

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ..mcp import LISTEN, Id
from ..tasks import retrieve
from . import eras
from .client import ACKNOWLEDGED, CANCELLED, UPDATED, Client
from .eras import Era
from .memory import Memory
from .message import (
    INTERNAL_ERROR,
    METHOD_NOT_FOUND,
    Json,
    Message,
    notification,
    refusal,
    request,
    response,
)
from .parked import Call, Parking
from .service import OnMessage, Service
from .session import RefusedError, Session
from .stateless import Stateless
from .verdict import UnansweredError

ROUNDS = 10  # times that a service may want something of the client before it answers
PAUSE = 0.1  # seconds, where it only wants to be asked again
RETRY = (0.5, 5.0)  # seconds before a stream is asked for again: at first, at most
_OLD = (400, 404, 405, 406, 415)
"""What services of before 2026-07-28 may answer to its requests; with no message in it, some."""

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Talk:
    """What is said to the service on behalf of one client."""

    def __init__(self, service: Service, memory: Memory, client: Client) -> None:
        self._service = service
        self._memory = memory
        self._client = client
        self._stateless = Stateless(service, memory)
        self._session: Session | None = None
        self._routes: dict[Era, asyncio.Task[Era]] = {}
        """By the client's era: the one that the service is spoken to in."""
        self._parking = Parking(self._expired)
        self._known_as: dict[Id, Id] = {}
        """By the id of a request that carries on with a call: the id that the service knows."""
        self._asked_in = 0
        """The number of the session in which the client was asked last."""
        self._subscribed: set[str] = set()
        self._listening: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self.on_begun_again: list[Callable[[], None]] = []
        """Called when the service has forgotten a session and another was begun."""

    # Requests

    async def ask(self, message: Message) -> Message:
        """Return the service's answer, in the client's era.

        Raises:
            UnansweredError, RefusedError: there is none.
        """
        client = eras.era(message)
        if message.method == LISTEN and client == "stateless":
            return await self._listen(message)
        service = await self.route(client, message)
        if client == service == "stateless":
            return await self._stateless.ask(message, self._came)
        if client == service:
            return await self._ask_session(message, self._came)
        if client == "session":
            return await self._ask_stateless(message)
        return await self._ask_parked(message)

    async def _ask_session(self, message: Message, on_message: OnMessage) -> Message:
        try:
            return await self._in_session().ask(message, on_message)
        except RefusedError:
            self._routes.clear()  # it was replaced by one of another era, perhaps
            raise

    def _in_session(self) -> Session:
        if self._session is None:
            raise RuntimeError("no session was begun")
        return self._session

    async def _ask_stateless(self, message: Message) -> Message:
        """Ask a stateless service for a client of sessions, and the client for what it wants."""
        match message.method:
            case "logging/setLevel":
                self._client.level = message.params.get("level")
                return response(message.id, {})
            case "resources/subscribe" | "resources/unsubscribe" as method:
                kept = self._subscribed
                (kept.add if method == "resources/subscribe" else kept.discard)(
                    str(message.params.get("uri"))
                )
                self._listen_for_client()
                return response(message.id, {})
        asked = self._enveloped(message)
        for _ in range(ROUNDS):
            answer = await self._stateless.ask(asked, self._came)
            if not eras.waits(answer):
                return eras.from_stateless(answer)
            wishes = eras.wanted(answer)
            replies = await asyncio.gather(*(self._client.ask(wish) for _, wish in wishes))
            refused = next((one for one in replies if one.result is None), None)
            if refused is not None:
                return Message({**refused.content, "id": message.id})
            answers = {key: one.result for (key, _), one in zip(wishes, replies, strict=True)}
            if not answers:
                await asyncio.sleep(PAUSE)
            asked = eras.again(asked, answer, answers)
        words = f"The service wanted more than {ROUNDS} answers of the client before its own."
        return refusal(message.id, INTERNAL_ERROR, words)

    def _enveloped(self, message: Message) -> Message:
        return eras.to_stateless(message, self._client.introduction or {}, self._client.level)

    async def _ask_parked(self, message: Message) -> Message:
        """Ask in a session for a stateless client; what is wanted of the client is a result."""
        call = parked = self._parking.leave(eras.state_of(message))
        if call is None:
            call = Call(message)
            others = functools.partial(self._came_on_call, message)
            call.run(self._ask_session(eras.to_session(message), call.came(others)))
        caller = message.id or 0
        self._known_as[caller] = call.id
        try:
            if parked is not None:
                await self._in_session().tell(eras.given(message, parked.asked))
            state = await self._parking.wait(call)
        except BaseException:
            call.cancel()
            raise
        finally:
            del self._known_as[caller]
        if state is not None:
            return response(message.id, eras.input_required(call.asked, state))
        return eras.from_session(message.method, call.answer())

    def tell(self, message: Message) -> None:
        """Pass on a notification of the client: to a session, since the stateless era has none."""
        if self._session is not None:
            self._later(self._session.tell(message))

    def cancelled(self, message: Message) -> None:
        """Pass on that the client has cancelled a request, by the id that the service knows."""
        caller = message.params["requestId"]
        known = self._known_as.get(caller, caller)
        self.tell(notification(CANCELLED, {**message.params, "requestId": known}))

    def _expired(self, call: Call) -> None:
        """Tell that a call was given up, since its client has not come back."""
        self.tell(notification(CANCELLED, {"requestId": call.id, "reason": "The client left."}))

    # Which era the service is of

    async def route(self, client: Era, message: Message) -> Era:
        """Return the era in which the service is spoken to for such a client.

        Args:
            client: its era.
            message: a request of it.

        Raises:
            UnansweredError, RefusedError: it cannot be found out.
        """
        task = self._routes.get(client)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._routes[client] = asyncio.ensure_future(self._find(client, message))
            task.add_done_callback(retrieve)
        return await asyncio.shield(task)

    async def _find(self, client: Era, message: Message) -> Era:
        if client == "stateless":
            if await self._is_stateless(message):
                return "stateless"
            await self._begin(eras.introduction(message))
            return "session"
        try:
            await self._begin(self._client.introduction or eras.introduction(message))
        except RefusedError:
            if not await self._is_stateless(self._enveloped(request(0, "server/discover"))):
                raise
            self._listen_for_client()
            return "stateless"
        return "session"

    async def _is_stateless(self, message: Message) -> bool:
        params = {"_meta": message.params.get("_meta", {})}
        probe = request(self._client.number(), "server/discover", params)
        try:
            found = (await self._stateless.ask(probe, lambda _: None)).result
        except UnansweredError as exc:
            if _status(exc) not in _OLD:
                raise
            return False
        if found is None or eras.STATELESS not in found.get("supportedVersions", ()):
            return False
        self._memory.learn("server/discover", None, found)
        return True

    async def _begin(self, introduction: Json) -> None:
        if self._session is None:
            self._session = Session(
                self._service, introduction, self._came_in_session, self._begun_again
            )
        self._memory.learn("initialize", None, await self._session.initialize())

    def _begun_again(self) -> None:
        if self._session is not None and self._session.begun != self._asked_in:
            self._client.forget()
        for tell in self.on_begun_again:
            tell()

    def start_over(self) -> None:
        """Forget the session and the route of a client that introduces itself anew."""
        if self._session is not None:
            self._later(self._session.close())
            self._session = None
        if (task := self._routes.pop("session", None)) is not None:
            task.cancel()

    # What the service sends by itself

    def _came(self, message: Message) -> None:
        if message.is_request:
            self._asks(message)
        elif not message.is_response:
            self._client.came(message)

    def _came_in_session(self, message: Message) -> None:
        """Take what a session's service sends, though not for one request."""
        if self._client.introduction is not None or message.method != eras.LOG:
            self._came(message)  # a stateless client wants logs with requests only

    def _came_on_call(self, asked: Message, message: Message) -> None:
        """Take what a session's service sends while it is at work for a stateless client."""
        if message.method != eras.LOG or eras.is_wanted(message, asked):
            self._came(message)

    def _asks(self, message: Message) -> None:
        """Have the client answer what the service asks in a session; elsewhere it may not ask."""
        session = self._session
        if session is None:
            _log.info("not asked", extra={"why": "The service has begun no session."})
            return
        begun = session.begun
        if self._client.introduction is not None:
            self._asked_in = begun
            self._client.put(message, lambda answer: self._later(session.tell(answer, begun)))
            return
        words = "This client can be asked only while it waits for an answer."  # by its result
        self._later(session.tell(refusal(message.id, METHOD_NOT_FOUND, words)))

    # Subscriptions

    async def _listen(self, message: Message) -> Message:
        """Keep a stateless client's stream open, over whatever happens to the one behind it."""
        caller = message.id
        if caller is None:
            raise ValueError("a subscription is a request")
        self._client.listens[caller] = eras.filter_of(message)
        try:
            if await _patiently(lambda: self.route("stateless", message)) == "session":
                return await self._subscribe(caller)
            return await self._listen_again(message, self._on_stream(caller))
        finally:
            del self._client.listens[caller]

    def _on_stream(self, caller: Id) -> OnMessage:
        """Return what takes the messages of a stream that may be opened more than once."""
        seen = False

        def came(message: Message) -> None:
            nonlocal seen
            if message.method != ACKNOWLEDGED:
                self._came(message)
            elif seen:
                self._client.missed(caller)
            else:
                seen = True
                self._client.send(message)

        return came

    async def _listen_again(self, message: Message, on_message: OnMessage) -> Message:
        """Return the answer that ends a `subscriptions/listen`; ask anew where there is none."""
        return await _patiently(lambda: self._stateless.ask(message, on_message))

    async def _subscribe(self, caller: Id) -> Message:
        """Subscribe in the session for a stateless client, until it cancels."""
        wanted = self._client.listens[caller]
        uris = wanted.get("resourceSubscriptions", [])
        told = notification(ACKNOWLEDGED, {"notifications": wanted})
        self._client.send(eras.on_subscription(told, caller))
        try:
            await self._each("resources/subscribe", uris)
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        finally:
            self._later(self._each("resources/unsubscribe", uris))

    async def _each(self, method: str, uris: list[str]) -> None:
        for uri in uris:
            asking = request(self._client.number(), method, {"uri": uri})
            await self._ask_session(asking, self._came)

    def _listen_for_client(self) -> None:
        """Have a stateless service tell of changes, for a client of sessions."""
        if self._listening is not None:
            self._listening.cancel()
        wanted: Json = dict.fromkeys(eras.FILTERS.values(), True)
        if self._subscribed:
            wanted["resourceSubscriptions"] = sorted(self._subscribed)
        asking = request(self._client.number(), LISTEN, {"notifications": wanted})

        seen = False

        def came(message: Message) -> None:
            nonlocal seen
            if message.method != ACKNOWLEDGED:
                self._came(message)
            elif seen:
                self._missed()
            else:
                seen = True

        async def listen() -> None:
            """Listen until the service refuses; one that ends a stream in order is asked again."""
            while True:
                answer = await self._listen_again(self._enveloped(asking), came)
                if answer.error is not None:
                    return
                await asyncio.sleep(RETRY[0])

        self._listening = asyncio.ensure_future(listen())

    def _missed(self) -> None:
        """Have everything looked at that may have changed while the service could not tell."""
        for uri in self._subscribed:
            self._client.changed(notification(UPDATED, {"uri": uri}))
        self._begun_again()

    # The end

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        async def quietly() -> None:
            try:
                await work
            except (UnansweredError, RefusedError) as exc:
                _log.info("not delivered", extra={"why": str(exc)})

        task = asyncio.ensure_future(quietly())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def settle(self, seconds: float) -> None:
        """Wait until what was told has been delivered, for so many seconds at most."""
        if self._background:
            await asyncio.wait(self._background, timeout=seconds)

    async def close(self) -> None:
        """End everything that is said and heard, and the session."""
        self._parking.close()
        tasks: list[asyncio.Task[Any]] = [*self._background, *self._routes.values()]
        if self._listening is not None:
            tasks.append(self._listening)
        for task in tasks:
            task.cancel()
        if self._session is not None:
            await self._session.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _patiently(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return what comes of some work; it is done anew until the service answers."""
    pause, most = RETRY
    while True:
        try:
            return await work()
        except UnansweredError:
            await asyncio.sleep(pause)
            pause = min(pause * 2, most)


def _status(error: UnansweredError) -> object:
    """Return the HTTP status that was the answer, if it was one without a message."""
    data = (error.answer.error or {}).get("data")
    return data.get("status") if isinstance(data, dict) else None
