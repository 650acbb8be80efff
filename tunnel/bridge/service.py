"""One HTTP request to the service, and the messages that come back (MCP, Streamable HTTP).

What becomes of a request when the connection to the tunnel dies is decided as the tunnel itself
decides it: what was not sent or is a read is asked again, everything else has an unknown outcome.
"""

import asyncio
import itertools
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import h11

from ..http import ConnectionGoneError, Headers, HttpConnection, header
from ..problems import Problem, ProblemError
from ..sse import Event, EventReader
from .endpoint import Endpoints
from .message import Message, told
from .verdict import (
    NotTakenError,
    Post,
    UnansweredError,
    messages,
    odd,
    refused,
    waiting,
    whose,
)

PATH = b"/mcp"
ATTEMPTS = 5  # connections that may end under a read, or stop before they took a request
PAUSE = 0.1  # seconds between them, more each time
LONGEST_PAUSE = 10.0  # seconds, whatever a service asks for
TAIL = 1.0  # seconds for the end of an answer whose message is there already
ERROR_SIZE = 1 << 20  # bytes of an answer that tells an error
_FIELD = re.compile(rb"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")
"""What the value of a header field may be (RFC 9110 section 5.5)."""
_PLAIN = [
    (b"Content-Type", b"application/json"),
    (b"Accept", b"application/json, text/event-stream"),
]

_log = logging.getLogger(__name__)

OnMessage = Callable[[Message], None]


@dataclass(slots=True)
class Place:
    """How far an event stream was read."""

    last: str = ""
    """The last id that it told; empty where it cannot be gone on with."""
    retry: float | None = None
    """Seconds to wait before it is asked for again, where the service said so."""
    unreadable: str = ""
    """Why something on it was no message."""

    def move(self, event: Event) -> None:
        """Take note of an event."""
        if event.id:
            self.last = event.id if _FIELD.fullmatch(event.id.encode()) else ""
        self.retry = self.retry if event.retry is None else event.retry

    def pause(self, otherwise: float) -> float:
        """Return the seconds to wait, within reason whatever the service said."""
        return otherwise if self.retry is None else min(max(self.retry, PAUSE), LONGEST_PAUSE)


class Service:
    """The service, as it is reached through an endpoint.

    Args:
        endpoints: where it is reached.
        room: waits while the client has to read first; only then more is taken from a stream.
    """

    def __init__(self, endpoints: Endpoints, room: Callable[[], Awaitable[None]]) -> None:
        self._endpoints = endpoints
        self._room = room
        self._finishing: set[asyncio.Task[None]] = set()

    async def ask(
        self, post: Post, on_message: OnMessage, fields: Headers | None = None
    ) -> Message:
        """Return the response to a request; what comes before it on its stream is handed over.

        Args:
            post: what is sent.
            on_message: takes what comes before the response.
            fields: takes the header fields of the answer, names in lower case.

        Raises:
            UnansweredError: there is none.
            SessionGoneError, MismatchError: see there.
        """
        caller = waiting(post.message)
        try:
            return await self._until_answered(post, on_message, fields)
        except ProblemError as exc:
            raise UnansweredError(told(caller, exc.problem)) from exc

    async def _until_answered(
        self, post: Post, on_message: OnMessage, fields: Headers | None
    ) -> Message:
        for attempt in itertools.count(1):
            http, host = await self._endpoints.connect()
            place = Place()
            try:
                return await self._once(http, host, post, on_message, fields, place)
            except NotTakenError:
                problem = Problem("stopping", "The tunnel was stopped.")
            except (ConnectionGoneError, h11.RemoteProtocolError) as exc:
                problem = Problem("link_lost", "The connection to the tunnel ended.")
                if http.written and not post.repeatable:
                    if (answer := await self._resume(post, on_message, place)) is not None:
                        return answer
                    raise ProblemError("outcome_unknown", problem.message) from exc
            except asyncio.CancelledError:
                http.abort()  # at once: it is what ends a stateless request
                raise
            finally:
                self._finish(http)
            if attempt == ATTEMPTS:
                raise ProblemError(problem.code, problem.message)
            await asyncio.sleep(PAUSE * attempt)
        raise AssertionError("unreachable")

    async def _once(
        self,
        http: HttpConnection,
        host: bytes,
        post: Post,
        on_message: OnMessage,
        fields: Headers | None,
        place: Place,
    ) -> Message:
        caller = waiting(post.message)
        body = post.message.to_bytes()
        http.write(
            h11.Request(
                method=b"POST",
                target=PATH,
                headers=[
                    (b"Host", host),
                    *_PLAIN,
                    *post.headers,
                    (b"Content-Length", b"%d" % len(body)),
                ],
            ),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        answer = await _head(http)
        if fields is not None:
            fields[:] = answer.headers
        kind = header(answer.headers, b"content-type").partition(b";")[0].strip().lower()
        if answer.status_code >= 300:
            return refused(post, answer.status_code, await _body(http, ERROR_SIZE))
        if kind == b"text/event-stream":
            return await self._from_stream(http, post, on_message, place)
        body = await _body(http)
        if caller is None:
            return Message({})  # 202 Accepted, most likely: nothing is owed
        if kind != b"application/json":
            text = f"The service answered {answer.status_code} with something that is no message."
            raise odd(caller, text)
        try:
            found = messages(body)
        except ValueError as exc:
            raise odd(caller, f"The service's answer cannot be read: {exc}.") from exc
        for message in found:
            if message.is_response and message.id in (caller, None):
                return message.with_id(caller)
            on_message(message)
        raise odd(caller, "The service answered with a message that is no answer.")

    async def _from_stream(
        self, http: HttpConnection, post: Post, on_message: OnMessage, place: Place
    ) -> Message:
        """Return the response that comes on an event stream.

        Raises:
            ConnectionGoneError, h11.RemoteProtocolError: the stream ended before.
            UnansweredError: it came and cannot be read, or the tunnel says why there is none.
        """
        caller = waiting(post.message)
        async for message in self._on_stream(http, place):
            if message.is_response and message.id in (caller, None):
                return whose(
                    message.with_id(caller), post, can_go_on=post.in_session and bool(place.last)
                )
            on_message(message)
        if place.unreadable and caller is not None:
            raise odd(caller, f"The service's answer cannot be read: {place.unreadable}.")
        raise ConnectionGoneError

    async def _resume(self, post: Post, on_message: OnMessage, place: Place) -> Message | None:
        """Return the response from where its stream ended, if the service still has it.

        A service may end a stream on purpose and have the client come back (MCP 2025-11-25).
        """
        attempt = 0
        while place.last and attempt < ATTEMPTS:
            before = place.last
            attempt += 1
            await asyncio.sleep(place.pause(PAUSE * attempt))
            http, host = await self._endpoints.connect()
            try:
                if await self._get(http, host, post.headers, place) != 200:
                    return None
                return await self._from_stream(http, post, on_message, place)
            except (ConnectionGoneError, h11.RemoteProtocolError):
                attempt = 0 if place.last != before else attempt
            finally:
                http.abort()
                self._endpoints.give_back(http)
        return None

    def _finish(self, http: HttpConnection) -> None:
        """Have a connection read to the end of its answer, so that it can serve again."""
        if http.state.their_state is not h11.SEND_BODY or http.state.our_state is not h11.DONE:
            self._endpoints.give_back(http)
            return
        task = asyncio.ensure_future(self._read_out(http))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def _read_out(self, http: HttpConnection) -> None:
        try:
            async with asyncio.timeout(TAIL):
                while not isinstance(await http.receive(), h11.EndOfMessage):
                    pass
        except (TimeoutError, ConnectionGoneError, h11.RemoteProtocolError):
            pass
        finally:
            self._endpoints.give_back(http)

    async def stream(
        self,
        headers: Headers,
        place: Place,
        on_message: OnMessage,
        on_open: Callable[[], None] | None = None,
    ) -> int:
        """Ask for the session's own stream, and hand over what comes on it until it ends.

        Args:
            headers: those of the session.
            place: where to go on; it moves.
            on_message: takes what comes.
            on_open: called when the service has opened it.

        Returns the HTTP status; 503 where it cannot be asked.
        """
        try:
            http, host = await self._endpoints.connect()
        except ProblemError:
            return 503
        try:
            status = await self._get(http, host, headers, place)
            if status == 200:
                if on_open is not None:
                    on_open()
                async for message in self._on_stream(http, place):
                    on_message(message)
            return status
        except (ConnectionGoneError, h11.RemoteProtocolError):
            return 200
        finally:
            http.abort()
            self._endpoints.give_back(http)

    async def _get(self, http: HttpConnection, host: bytes, headers: Headers, place: Place) -> int:
        """Ask for a stream, from `place` on, and return the HTTP status."""
        fields = [(b"Host", host), (b"Accept", b"text/event-stream"), *headers]
        if place.last:
            fields.append((b"Last-Event-ID", place.last.encode()))
        http.write(h11.Request(method=b"GET", target=PATH, headers=fields), h11.EndOfMessage())
        return (await _head(http)).status_code

    async def _on_stream(self, http: HttpConnection, place: Place) -> AsyncIterator[Message]:
        """Yield the messages on an event stream, up to its end; those that are none are left out.

        Raises:
            ConnectionGoneError, h11.RemoteProtocolError: it broke.
        """
        reader = EventReader()
        while isinstance(event := await http.receive(), h11.Data):
            try:
                events = reader.feed(event.data)
            except ValueError as exc:
                raise h11.RemoteProtocolError(str(exc)) from exc
            for one in events:
                place.move(one)
                try:
                    found = messages(one.data) if one.data else []
                except ValueError as exc:
                    place.unreadable = str(exc)
                    _log.info("unreadable", extra={"why": str(exc)})
                    continue
                for message in found:
                    yield message
            await self._room()

    async def end_session(self, headers: Headers) -> None:
        """Tell the service that a session is over; it may say no, or not be there."""
        try:
            http, host = await self._endpoints.connect()
        except ProblemError:
            return
        try:
            http.write(
                h11.Request(method=b"DELETE", target=PATH, headers=[(b"Host", host), *headers]),
                h11.EndOfMessage(),
            )
            await _head(http)
        except (ConnectionGoneError, h11.RemoteProtocolError):
            pass
        finally:
            self._endpoints.give_back(http)


async def _head(http: HttpConnection) -> h11.Response:
    while not isinstance(event := await http.receive(), h11.Response):
        pass
    return event


async def _body(http: HttpConnection, limit: int | None = None) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while isinstance(event := await http.receive(), h11.Data):
        size += len(event.data)
        if limit is None or size <= limit:
            pieces.append(bytes(event.data))
    return b"".join(pieces)
