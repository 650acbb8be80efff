"""One HTTP request to the service, and the messages that come back (MCP, Streamable HTTP).

What becomes of a request when the connection to the tunnel dies is decided as the tunnel itself
decides it: what was not sent or is a read is asked again, everything else has an unknown outcome.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import h11

from keys import strictjson

from ..http import ConnectionGoneError, Headers, HttpConnection, header
from ..mcp import Id
from ..problems import CATALOGUE, Problem, ProblemError
from ..sse import Event, EventReader
from .endpoint import Endpoints
from .message import INTERNAL_ERROR, INVALID_REQUEST, Json, Message, fault_of, refusal, told

PATH = b"/mcp"
ATTEMPTS = 5  # connections that may end under a read, or stop before they took a request
PAUSE = 0.1  # seconds between them, more each time
LONGEST_PAUSE = 10.0  # seconds, whatever a service asks for
TAIL = 1.0  # seconds for the end of an answer whose message is there already
ERROR_SIZE = 1 << 20  # bytes of an answer that tells an error
_PLAIN = [
    (b"Content-Type", b"application/json"),
    (b"Accept", b"application/json, text/event-stream"),
]

_log = logging.getLogger(__name__)

OnMessage = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Post:
    """What is sent."""

    message: Message
    headers: Headers
    """Those of the era, besides the plain ones."""
    repeatable: bool
    """Whether sending it twice has the effect of sending it once."""
    in_session: bool = False


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
        self.last = event.id or self.last
        self.retry = self.retry if event.retry is None else event.retry

    def pause(self, otherwise: float) -> float:
        """Return the seconds to wait, within reason whatever the service said."""
        return otherwise if self.retry is None else min(max(self.retry, PAUSE), LONGEST_PAUSE)


class UnansweredError(Exception):
    """The service gave no answer; `answer` says why in words, as an answer to the request."""

    def __init__(self, answer: Message) -> None:
        self.answer = answer
        super().__init__((answer.error or {}).get("message"))


class SessionGoneError(Exception):
    """The service does not know the session (any longer); it did not take the request."""


class _NotTakenError(Exception):
    """The tunnel was stopped before it sent the request on."""


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
            SessionGoneError: see there.
        """
        caller = _waiting(post.message)
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
            except _NotTakenError:
                problem = Problem("stopping", "The tunnel was stopped.")
            except (ConnectionGoneError, h11.RemoteProtocolError) as exc:
                problem = Problem("link_lost", "The connection to the tunnel ended.")
                if http.written and not post.repeatable:
                    if (answer := await self._resume(post, on_message, place)) is not None:
                        return answer
                    raise ProblemError("outcome_unknown", problem.message) from exc
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
        caller = _waiting(post.message)
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
            return _refused(post, answer.status_code, await _body(http, ERROR_SIZE))
        if kind == b"text/event-stream":
            return await self._from_stream(http, post, on_message, place)
        body = await _body(http)
        if caller is None:
            return Message({})  # 202 Accepted, most likely: nothing is owed
        if kind != b"application/json":
            text = f"The service answered {answer.status_code} with something that is no message."
            raise _odd(caller, text)
        try:
            messages = _messages(body)
        except ValueError as exc:
            raise _odd(caller, f"The service's answer cannot be read: {exc}.") from exc
        for message in messages:
            if message.is_response and message.id in (caller, None):
                return message.with_id(caller)
            on_message(message)
        raise _odd(caller, "The service answered with a message that is no answer.")

    async def _from_stream(
        self, http: HttpConnection, post: Post, on_message: OnMessage, place: Place
    ) -> Message:
        """Return the response that comes on an event stream.

        Raises:
            ConnectionGoneError, h11.RemoteProtocolError: the stream ended before.
            UnansweredError: it came and cannot be read, or the tunnel says why there is none.
        """
        caller = _waiting(post.message)
        async for message in self._on_stream(http, place):
            if message.is_response and message.id in (caller, None):
                return _whose(message.with_id(caller), post, place)
            on_message(message)
        if place.unreadable and caller is not None:
            raise _odd(caller, f"The service's answer cannot be read: {place.unreadable}.")
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
                    messages = _messages(one.data) if one.data else []
                except ValueError as exc:
                    place.unreadable = str(exc)
                    _log.info("unreadable", extra={"why": str(exc)})
                    continue
                for message in messages:
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


_OURS = range(-32019, -32002)
"""The codes of the tunnel and the gateway (`problems`)."""

_NO_SESSION = -32000
"""What servers of the TypeScript SDK say with 400 where the specification asks for 404."""


def _waiting(message: Message) -> Id | None:
    """Return the id that waits for an answer; a response of the client has one too."""
    return message.id if message.is_request else None


def _whose(answer: Message, post: Post, place: Place) -> Message:
    """Return an answer that came on a stream, if it is the service's.

    Raises:
        ConnectionGoneError: it says that the stream was lost, and there is a way to go on: a read
            may be asked again, and a stream that told its place from there.
        UnansweredError: it is the tunnel that says why there is none.
    """
    error = answer.error
    if error is None or error.get("code") not in _OURS:
        return answer
    data = error.get("data")
    code = data.get("code") if isinstance(data, dict) else None
    if post.repeatable and code == "link_lost":
        raise ConnectionGoneError
    if post.in_session and place.last and code == "outcome_unknown":
        raise ConnectionGoneError
    raise UnansweredError(answer)


def _refused(post: Post, status: int, body: bytes) -> Message:
    """Return the service's error that comes with an HTTP status.

    Raises:
        UnansweredError: it is not the service that refuses.
        SessionGoneError, _NotTakenError: see there.
    """
    caller = _waiting(post.message)
    error = _error(body)
    code = error.get("code") if error else None
    if post.in_session and (status == 404 or (status == 400 and code == _NO_SESSION)):
        raise SessionGoneError
    if error is None or not isinstance(code, int):
        if code == "stopping":
            raise _NotTakenError
        raise UnansweredError(_in_words(caller, status, error))
    data = error.get("data")
    if isinstance(data, dict) and data.get("code") == "stopping" and code in _OURS:
        raise _NotTakenError
    answer = Message({"jsonrpc": "2.0", "id": caller, "error": error})
    if code in _OURS:
        raise UnansweredError(answer)
    return answer


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


def _messages(text: bytes) -> list[Message]:
    """Return the messages in `text`: one, or what a batch has (2025-03-26).

    Raises:
        ValueError: it has something else.
    """
    content = strictjson.loads(text)
    batch = isinstance(content, list)
    for one in content if batch else [content]:
        if not isinstance(one, dict) or fault_of(one) is not None:
            raise ValueError("it is no JSON-RPC message")
    return [Message(one) for one in content] if batch else [Message(content, text)]


def _error(body: bytes) -> Json | None:
    """Return the error in `body`: JSON-RPC's, or the tunnel's and the gateway's plain one."""
    try:
        content = strictjson.loads(body)
    except ValueError:
        return None
    error = content.get("error") if isinstance(content, dict) else None
    return error if isinstance(error, dict) else None


def _odd(caller: Id | None, words: str) -> UnansweredError:
    return UnansweredError(refusal(caller, INTERNAL_ERROR, words, {"code": "upstream_invalid"}))


_STATUS = {
    401: (-32004, "The service does not accept who is asking. Nothing was done."),
    403: (-32003, "That is not allowed here. Nothing was done."),
    404: (-32012, "The service has nothing at /mcp: it may be of another kind, or still starting."),
    405: (-32012, "What is at /mcp takes no POST: it may be no MCP service."),
    413: (-32010, "The message is too large for the service. Nothing was done."),
    429: (-32007, "Too many requests: wait a little and call again. Nothing was done."),
    502: (-32012, "The service cannot be reached behind the droplet."),
    503: (-32013, "The service is not available now: try again in a while."),
    504: (-32016, "The service has not answered in time, and may still be at work on it."),
}


def _in_words(caller: Id | None, status: int, error: Json | None) -> Message:
    """Return the error that an answer without a JSON-RPC message stands for."""
    code = error.get("code") if error else None
    words = error.get("message") if error else None
    if isinstance(code, str) and isinstance(words, str):
        if code in CATALOGUE:
            return told(caller, Problem(code, words))
        rpc = _STATUS.get(status, (INVALID_REQUEST, ""))[0]
        return refusal(caller, rpc, words, {"code": code, "status": status})
    rpc, words = _STATUS.get(status, (INVALID_REQUEST, f"The service answered with {status}."))
    return refusal(caller, rpc, words, {"status": status})
