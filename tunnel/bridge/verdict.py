"""What comes back for a request: the service's messages, or what stands in their place in words."""

from dataclasses import dataclass

from keys import strictjson

from ..http import ConnectionGoneError, Headers
from ..mcp import Id
from ..problems import CATALOGUE, Problem
from .message import INTERNAL_ERROR, INVALID_REQUEST, Json, Message, fault_of, refusal, told


@dataclass(frozen=True, slots=True)
class Post:
    """What is sent."""

    message: Message
    headers: Headers
    """Those of the era, besides the plain ones."""
    repeatable: bool
    """Whether sending it twice has the effect of sending it once."""
    in_session: bool = False
    described: bool = False
    """Whether its header repeats what is in its body."""


class UnansweredError(Exception):
    """The service gave no answer; `answer` says why in words, as an answer to the request."""

    def __init__(self, answer: Message) -> None:
        self.answer = answer
        super().__init__((answer.error or {}).get("message"))


class SessionGoneError(Exception):
    """The service does not know the session (any longer); it did not take the request."""


class MismatchError(Exception):
    """The service did not take the request, since its header says something else than its body."""

    def __init__(self, answer: Message) -> None:
        self.answer = answer
        super().__init__()


class NotTakenError(Exception):
    """The tunnel was stopped before it sent the request on."""


_OURS = range(-32019, -32002)
"""The codes of the tunnel and the gateway (`problems`)."""

_MISMATCH = -32020
"""MCP 2026-07-28, Transports: with 400, nothing was done; a tool that has run may say so, too."""

_NO_SESSION = -32000
"""What servers of the TypeScript SDK say with 400 where the specification asks for 404."""


def waiting(message: Message) -> Id | None:
    """Return the id that waits for an answer; a response of the client has one too."""
    return message.id if message.is_request else None


def whose(answer: Message, post: Post, *, can_go_on: bool) -> Message:
    """Return an answer that came on a stream, if it is the service's.

    Raises:
        ConnectionGoneError: it says that the stream was lost, and there is a way to go on: a read
            may be asked again, and a stream that told its place from there (`can_go_on`).
        UnansweredError: it is the tunnel that says why there is none.
    """
    error = answer.error
    if error is None or error.get("code") not in _OURS:
        return answer
    data = error.get("data")
    code = data.get("code") if isinstance(data, dict) else None
    if post.repeatable and code == "link_lost":
        raise ConnectionGoneError
    if can_go_on and code == "outcome_unknown":
        raise ConnectionGoneError
    raise UnansweredError(answer)


def refused(post: Post, status: int, body: bytes) -> Message:
    """Return the service's error that comes with an HTTP status.

    Raises:
        UnansweredError: it is not the service that refuses.
        SessionGoneError, MismatchError, NotTakenError: see there.
    """
    caller = waiting(post.message)
    error = _error(body)
    code = error.get("code") if error else None
    if post.in_session and (status == 404 or (status == 400 and code == _NO_SESSION)):
        raise SessionGoneError
    if error is None or not isinstance(code, int):
        if code == "stopping":
            raise NotTakenError
        raise UnansweredError(_in_words(caller, status, error))
    data = error.get("data")
    if isinstance(data, dict) and data.get("code") == "stopping" and code in _OURS:
        raise NotTakenError
    answer = Message({"jsonrpc": "2.0", "id": caller, "error": error})
    if code in _OURS:
        raise UnansweredError(answer)
    if post.described and (code, status) == (_MISMATCH, 400):
        raise MismatchError(answer)
    return answer


def messages(text: bytes) -> list[Message]:
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


def odd(caller: Id | None, words: str) -> UnansweredError:
    """Return the error that tells of an answer that is not MCP's."""
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
