"""One HTTP request to the service, and the messages that come back (MCP, Streamable HTTP).

What becomes of a request when the connection to the tunnel dies is decided as the tunnel itself
decides it: what was not sent or is a read is asked again, everything else has an unknown outcome.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import h11

from keys import strictjson

from ..http import ConnectionGoneError, Headers, HttpConnection, header
from ..mcp import Id
from ..problems import CATALOGUE, Problem, ProblemError
from ..sse import EventReader
from .endpoint import Endpoints
from .message import INTERNAL_ERROR, INVALID_REQUEST, Json, Message, refusal, told

PATH = b"/mcp"
ATTEMPTS = 5  # connections that may end under a read, or stop before they took a request
PAUSE = 0.1  # seconds between them, more each time
TAIL = 1.0  # seconds for the end of an answer whose message is there already
ERROR_SIZE = 1 << 20  # bytes of an answer that tells an error
_PLAIN = [
    (b"Content-Type", b"application/json"),
    (b"Accept", b"application/json, text/event-stream"),
]

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
    """The service, as it is reached through an endpoint."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
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
            try:
                return await self._once(http, host, post, on_message, fields)
            except _NotTakenError:
                problem = Problem("stopping", "The tunnel was stopped.")
            except (ConnectionGoneError, h11.RemoteProtocolError) as exc:
                problem = Problem("link_lost", "The connection to the tunnel ended.")
                if http.written and not post.repeatable:
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
            async for message in _events(http):
                if message.is_response and message.id in (caller, None):
                    return _whose(message.with_id(caller), post)
                on_message(message)
            raise ConnectionGoneError  # the stream ended and the answer was not in it
        body = await _body(http)
        if caller is None:
            return Message({})  # 202 Accepted, most likely: nothing is owed
        if kind != b"application/json":
            text = f"The service answered {answer.status_code} with something that is no message."
            return _odd(caller, text)
        try:
            messages = _messages(body)
        except ValueError as exc:
            return _odd(caller, f"The service's answer cannot be read: {exc}.")
        for message in messages:
            if message.is_response and message.id in (caller, None):
                return message.with_id(caller)
            on_message(message)
        return _odd(caller, "The service answered with a message that is no answer.")

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
        self, headers: Headers, on_message: OnMessage
    ) -> tuple[int, str, float | None]:
        """Ask for the session's own stream, and hand over what comes on it until it ends.

        Returns the HTTP status, the last event's id and the seconds to wait before the next try,
        where the service told them; 503 where it cannot be asked.
        """
        last, retry = "", None
        try:
            http, host = await self._endpoints.connect()
        except ProblemError:
            return 503, last, retry
        try:
            accept = (b"Accept", b"text/event-stream")
            http.write(
                h11.Request(
                    method=b"GET", target=PATH, headers=[(b"Host", host), accept, *headers]
                ),
                h11.EndOfMessage(),
            )
            answer = await _head(http)
            if answer.status_code != 200:
                return answer.status_code, last, retry
            reader = EventReader()
            while isinstance(event := await http.receive(), h11.Data):
                for one in reader.feed(event.data):
                    last, retry = one.id, one.retry if one.retry is not None else retry
                    for message in _messages(one.data) if one.data else []:
                        on_message(message)
        except (ConnectionGoneError, h11.RemoteProtocolError, ValueError):
            pass
        finally:
            http.abort()
            self._endpoints.give_back(http)
        return 200, last, retry

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


def _whose(answer: Message, post: Post) -> Message:
    """Return an answer that came on a stream, if it is the service's.

    Raises:
        ConnectionGoneError: it says that a read lost its stream: it may be asked again.
        UnansweredError: it is the tunnel that says why there is none.
    """
    error = answer.error
    if error is None or error.get("code") not in _OURS:
        return answer
    data = error.get("data")
    if post.repeatable and isinstance(data, dict) and data.get("code") == "link_lost":
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


async def _events(http: HttpConnection) -> AsyncIterator[Message]:
    reader = EventReader()
    while isinstance(event := await http.receive(), h11.Data):
        try:
            for one in reader.feed(event.data):
                for message in _messages(one.data) if one.data else []:
                    yield message
        except ValueError as exc:
            raise h11.RemoteProtocolError(str(exc)) from exc


def _messages(text: bytes) -> list[Message]:
    """Return the messages in `text`: one, or what a batch has (2025-03-26).

    Raises:
        ValueError: it has something else.
    """
    content = strictjson.loads(text)
    if isinstance(content, list) and all(isinstance(one, dict) for one in content):
        return [Message(one) for one in content]
    if not isinstance(content, dict):
        raise ValueError("not a JSON-RPC message")
    return [Message(content, text)]


def _error(body: bytes) -> Json | None:
    """Return the error in `body`: JSON-RPC's, or the tunnel's and the gateway's plain one."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    error = content.get("error") if isinstance(content, dict) else None
    return error if isinstance(error, dict) else None


def _odd(caller: Id | None, words: str) -> Message:
    return refusal(caller, INTERNAL_ERROR, words, {"code": "upstream_invalid"})


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
