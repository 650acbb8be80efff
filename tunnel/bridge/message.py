"""JSON-RPC messages as they stand on a line: read strictly, passed on byte for byte if unchanged.

JSON-RPC 2.0; MCP allows no batches since 2025-06-18, and no null as the id of a request.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

from keys import strictjson

from ..mcp import Id
from ..problems import Problem

Json = dict[str, Any]

PARSE_ERROR = -32700  # JSON-RPC 2.0 section 5.1
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INTERNAL_ERROR = -32603

ID_LENGTH = 4096  # characters of an id that is a string; it goes through HTTP and logs
_SHOWN = 4096  # bytes at either end of a line that is too long, in which its id is looked for


@dataclass(frozen=True, slots=True)
class Message:
    """One JSON-RPC message, and the bytes that it was read from if nothing in it was changed."""

    content: Json
    raw: bytes | None = None

    @property
    def method(self) -> str | None:
        """What is asked or told; None in a response."""
        return self.content.get("method")

    @property
    def id(self) -> Id | None:
        """What pairs a request and its response; None in a notification."""
        return self.content.get("id")

    @property
    def params(self) -> Json:
        """The parameters; empty where there are none."""
        params = self.content.get("params")
        return params if isinstance(params, dict) else {}

    @property
    def is_request(self) -> bool:
        """Whether somebody waits for a response."""
        return "method" in self.content and "id" in self.content

    @property
    def is_response(self) -> bool:
        """Whether it answers a request."""
        return "method" not in self.content

    @property
    def result(self) -> Json | None:
        """The result in a response that has one."""
        result = self.content.get("result")
        return result if isinstance(result, dict) else None

    @property
    def error(self) -> Json | None:
        """The error in a response that has one."""
        error = self.content.get("error")
        return error if isinstance(error, dict) else None

    def to_bytes(self) -> bytes:
        """Return it as one line without its end."""
        if self.raw is not None and b"\n" not in self.raw and b"\r" not in self.raw:
            return self.raw
        return strictjson.dumps(self.content)

    def with_id(self, caller: Id | None) -> "Message":
        """Return it with another id."""
        if "id" in self.content and self.content["id"] == caller:
            return self
        return Message({**self.content, "id": caller})


def request(caller: Id, method: str, params: Json | None = None) -> Message:
    """Return a request."""
    content: Json = {"jsonrpc": "2.0", "id": caller, "method": method}
    return Message(content if params is None else {**content, "params": params})


def notification(method: str, params: Json | None = None) -> Message:
    """Return a notification."""
    content: Json = {"jsonrpc": "2.0", "method": method}
    return Message(content if params is None else {**content, "params": params})


def response(caller: Id | None, result: Json) -> Message:
    """Return a response with a result."""
    return Message({"jsonrpc": "2.0", "id": caller, "result": result})


def refusal(caller: Id | None, code: int, words: str, data: Json | None = None) -> Message:
    """Return a response with an error."""
    error: Json = {"code": code, "message": words}
    return Message(
        {
            "jsonrpc": "2.0",
            "id": caller,
            "error": error if data is None else {**error, "data": data},
        }
    )


def told(caller: Id | None, problem: Problem) -> Message:
    """Return a response that tells a problem of the tunnel in words."""
    data = {"code": problem.code, "remedy": problem.remedy}
    return refusal(caller, problem.entry.rpc, str(problem), data)


class MessageError(Exception):
    """A line is no message; `answers` are the responses that it is owed."""

    def __init__(self, *answers: Message) -> None:
        self.answers = answers
        super().__init__(answers[0].content["error"]["message"])


def read(text: bytes) -> Message:
    """Return the message in `text`.

    Raises:
        MessageError: it is not one, with the answers to give.
    """
    try:
        content = strictjson.loads(text)
    except ValueError as exc:
        words = f"That line is not JSON: {exc}."
        raise MessageError(refusal(_read_id(text), PARSE_ERROR, words)) from None
    if isinstance(content, list):
        ids = [one.get("id") for one in content if isinstance(one, dict) and "method" in one]
        words = "Batches are not taken: send one message a line."
        owed: list[Id | None] = [caller for caller in ids if _is_id(caller)]
        raise MessageError(*(refusal(one, INVALID_REQUEST, words) for one in owed or [None]))
    if not isinstance(content, dict):
        raise _invalid(None, "A message must be an object.")
    fault = fault_of(content)
    if "method" not in content or "id" not in content:
        if fault is not None:
            raise _invalid(None, fault)  # the id of a response is none to answer to
        return Message(content, text)
    caller = content["id"]
    if not _is_id(caller):
        raise _invalid(None, "The id of a request must be a string or a number.")
    if isinstance(caller, str) and len(caller) > ID_LENGTH:
        fault = f"The id is longer than {ID_LENGTH} characters."
    if fault is not None:
        raise _invalid(caller, fault)
    return Message(content, text)


def fault_of(content: Json) -> str | None:
    """Return in words why an object is no message, or None; its id is not judged."""
    if content.get("jsonrpc") != "2.0":
        return 'jsonrpc must be "2.0".'
    if "method" in content:
        if not isinstance(content["method"], str):
            return "method must be a string."
        return None if isinstance(content.get("params", {}), dict) else "params must be an object."
    if "id" not in content or ("result" in content) == ("error" in content):
        return "That is neither a request nor a notification nor a response."
    return None


def _invalid(caller: Id | None, words: str) -> MessageError:
    return MessageError(refusal(caller, INVALID_REQUEST, words))


def _read_id(text: bytes) -> Id | None:
    """Return the id of a request that others would read, or that begins as one."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return outer_id(text, b"")
    caller = content.get("id") if isinstance(content, dict) and "method" in content else None
    return caller if _is_id(caller) else None


def _is_id(value: object) -> TypeGuard[Id]:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool)


_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]')
_KEY = re.compile(rb"\s*:")
_VALUE = rb'\s*:\s*("(?:[^"\\]|\\.)*"|-?[0-9]+)'
_AFTER = re.compile(_VALUE + rb"\s*[,}]")
_LAST = re.compile(
    rb'"id"' + _VALUE + rb'\s*(?:,\s*"(?:jsonrpc|method)"\s*:\s*"[^"\\]*"\s*){0,2}\}\s*\Z'
)


def outer_id(head: bytes, tail: bytes) -> Id | None:
    """Return the id of the request that begins with `head` and ends with `tail`, if it shows there.

    For a line that cannot be read: whoever sent it waits for an answer all the same. The id of a
    response is none to answer to, since it may be that of another request as well.
    """
    outer = list(_outer(head[:_SHOWN]))
    if any(key in (b'"result"', b'"error"') for key, _ in outer):
        return None
    begun = (_AFTER.match(head, end) for key, end in outer if key == b'"id"')
    found = next((one for one in begun if one), None) or _LAST.search(tail[-_SHOWN:])
    if found is None:
        return None
    try:
        caller = strictjson.loads(found[1])
    except ValueError:
        return None
    return caller if isinstance(caller, str | int) else None


def _outer(head: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the names of the outermost object's members, and where each of them ends."""
    depth = 0
    for token in _TOKEN.finditer(head):
        match token[0]:
            case b"{" | b"[":
                depth += 1
            case b"}" | b"]":
                depth -= 1
            case text if depth == 1 and _KEY.match(head, token.end()):
                yield text, token.end()
