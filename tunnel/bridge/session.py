"""A session with a service of before 2026-07-28: begun once, and again when the service forgot it.

The bridge begins it by itself, with what the client said of itself, so that a service that was
restarted costs the client nothing. A request that met the end of a session was not taken by the
service, so it may be sent again, whatever it does.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable

from ..http import Headers
from ..mcp import is_read
from ..problems import Problem
from ..tasks import retrieve
from .client import UPDATED
from .message import Json, Message, notification, request, told
from .service import OnMessage, Place, Service
from .verdict import Post, SessionGoneError, UnansweredError

RETRY = (1.0, 10.0)  # seconds before the session's stream is asked for again: at first, at most
FAREWELL = 0.2  # seconds for the service to hear that it is over

_log = logging.getLogger(__name__)
_numbers = itertools.count(1)


class RefusedError(Exception):
    """The service would not begin a session; it said why."""

    def __init__(self, answer: Message) -> None:
        self.answer = answer
        super().__init__(str((answer.error or {}).get("message")))


class Session:
    """One client's session.

    Args:
        service: whom it is with.
        introduction: the params of the client's `initialize`.
        on_message: takes what the service sends by itself.
        on_begun: called when it was begun again, or could not tell for a while what changed.
    """

    def __init__(
        self,
        service: Service,
        introduction: Json,
        on_message: OnMessage,
        on_begun: Callable[[], None],
    ) -> None:
        self._service = service
        self._introduction = introduction
        self._on_message = on_message
        self._on_begun = on_begun
        self._beginning: asyncio.Task[Json] | None = None
        self._kept: dict[str, Message] = {}
        self.begun = 0
        """How often it was begun."""
        self._headers: Headers | None = None
        self._listening: asyncio.Task[None] | None = None

    async def initialize(self) -> Json:
        """Return the result of `initialize`; the session is begun if it was not.

        Raises:
            RefusedError: the service has no sessions, or none for this client.
            UnansweredError: it cannot be asked.
        """
        if self._beginning is None or (self._beginning.done() and not self._good()):
            self._beginning = asyncio.ensure_future(self._begin())
            self._beginning.add_done_callback(retrieve)
        return await asyncio.shield(self._beginning)  # others may wait for it too

    def _good(self) -> bool:
        task = self._beginning
        if task is None or not task.done() or task.cancelled():
            return False
        return task.exception() is None and self._headers is not None

    async def _begin(self) -> Json:
        hello = request(f"catalyst-{next(_numbers)}", "initialize", self._introduction)
        headers: Headers = []
        answer = await self._service.ask(
            Post(hello, [], repeatable=True), self._on_message, headers
        )
        result = answer.result
        if result is None:
            raise RefusedError(answer)
        session = [
            (b"Mcp-Session-Id", value) for name, value in headers if name == b"mcp-session-id"
        ]
        version = str(result.get("protocolVersion", ""))
        self._headers = [
            *session[:1],
            (b"MCP-Protocol-Version", version.encode("latin-1", "replace")),
        ]
        await self._post(notification("notifications/initialized"), self._on_message)
        self.begun += 1
        if session:
            self._listening = asyncio.ensure_future(self._listen(self._headers))
        _log.info("session", extra={"version": version, "begun": self.begun})
        if self.begun > 1:
            await self._ask_again()
            self._missed()
        return result

    async def _ask_again(self) -> None:
        """Ask for what the client had asked for, and the service has forgotten."""
        for message in tuple(self._kept.values()):
            with contextlib.suppress(UnansweredError):
                anew = message.with_id(f"catalyst-{next(_numbers)}")
                await self._post(anew, self._on_message)

    def _missed(self) -> None:
        """Have everything looked at that may have changed while the service could not tell."""
        for key, message in self._kept.items():
            if message.method == "resources/subscribe":
                self._on_message(notification(UPDATED, {"uri": key}))
        self._on_begun()

    def _keep(self, message: Message) -> None:
        """Take note of a request whose effect ends with the session."""
        uri = str(message.params.get("uri"))
        match message.method:
            case "logging/setLevel":
                self._kept["logging/setLevel"] = message
            case "resources/subscribe":
                self._kept[uri] = message
            case "resources/unsubscribe":
                self._kept.pop(uri, None)

    async def ask(self, message: Message, on_message: OnMessage) -> Message:
        """Return the response to a request, as `Service.ask` does.

        Raises:
            RefusedError: see `initialize`.
            UnansweredError: see `Service.ask`; or it forgets its sessions at once.
        """
        for _ in range(2):
            headers = None
            try:
                await self.initialize()
                headers = self._headers
                answer = await self._post(message, on_message)
            except SessionGoneError:
                self._forget(headers)
                continue
            if answer.error is None:
                self._keep(message)
            return answer
        problem = Problem("session_lost", "The service forgets its sessions at once.")
        raise UnansweredError(told(message.id, problem))

    async def tell(self, message: Message, begun: int | None = None) -> None:
        """Send what needs no answer: a notification, or a response to what the service asked.

        Args:
            message: what is sent.
            begun: the number of the session that it belongs to, where it belongs to one only.

        Raises:
            UnansweredError: it cannot be sent.
        """
        if self._headers is not None and begun in (None, self.begun):
            try:
                await self._post(message, self._on_message)
            except SessionGoneError:  # whoever waited for it is gone as well
                _log.info("session gone", extra={"what": message.method or "response"})

    async def _post(self, message: Message, on_message: OnMessage) -> Message:
        headers = self._headers or []
        in_session = bool(headers) and headers[0][0] == b"Mcp-Session-Id"
        post = Post(message, headers, is_read(message.method), in_session)
        return await self._service.ask(post, on_message)

    def _forget(self, headers: Headers | None) -> None:
        """Take note that the session with these headers is over; it may be another one by now."""
        if headers is None or self._headers is headers:
            self._headers = None
            if self._listening is not None:
                self._listening.cancel()

    async def _listen(self, headers: Headers) -> None:
        """Keep the session's own stream open, and hand over what comes on it."""
        first, most = RETRY
        pause = first
        place = Place()
        began_before = False
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            again = self._missed if began_before and not place.last else None
            status = await self._service.stream(headers, place, self._on_message, again)
            began_before = began_before or status == 200
            if status in (404, 405):  # no session any longer (the next request sees), or no stream
                return
            pause = first if loop.time() - began > most else min(pause * 2, most)
            await asyncio.sleep(place.pause(pause))

    async def close(self) -> None:
        """End the session, at both ends if the service still hears us."""
        for task in (self._listening, self._beginning):
            if task is not None:
                task.cancel()
        headers, self._headers = self._headers, None
        if headers and headers[0][0] == b"Mcp-Session-Id":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL):
                    await self._service.end_session(headers)
