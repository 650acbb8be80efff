"""One era of MCP said in the words of the other. Pure: messages in, messages out.

Up to 2025-11-25 a client introduces itself once (`initialize`); since 2026-07-28 each request
carries what the service has to know in `_meta`, results say of what type they are, and what the
service wants of the client is a result (`input_required`) instead of a request of its own.
"""

import base64
import re
from collections.abc import Iterator
from typing import Literal, cast

from ..mcp import Id
from .message import Json, Message, notification, response

Era = Literal["session", "stateless"]

STATELESS = "2026-07-28"
SESSIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")

_OURS = "io.modelcontextprotocol/"
VERSION = f"{_OURS}protocolVersion"
CLIENT_INFO = f"{_OURS}clientInfo"
CAPABILITIES = f"{_OURS}clientCapabilities"
LOG_LEVEL = f"{_OURS}logLevel"
SERVER_INFO = f"{_OURS}serverInfo"
SUBSCRIPTION = f"{_OURS}subscriptionId"

LISTS = {
    "tools/list": "tools",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
    "prompts/list": "prompts",
}
"""The list methods, and the member of their results that has the list."""

CHANGED = {
    "tools/list": "notifications/tools/list_changed",
    "resources/list": "notifications/resources/list_changed",
    "resources/templates/list": "notifications/resources/list_changed",
    "prompts/list": "notifications/prompts/list_changed",
}
"""What is told when such a list has changed."""

FILTERS = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
}
"""The member of a `subscriptions/listen` filter that asks for a notification."""

LOG = "notifications/message"
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Of what a service logs, in the order of their weight (RFC 5424)."""

_CACHEABLE = {*LISTS, "resources/read", "server/discover"}
_ENVELOPE = ("resultType", "ttlMs", "cacheScope")


def era(message: Message) -> Era:
    """Return the era that a client's request is of."""
    meta = message.params.get("_meta")
    stateless = message.method != "initialize" and isinstance(meta, dict) and VERSION in meta
    return "stateless" if stateless else "session"


# A service of sessions, for a client that has none


def to_session(message: Message) -> Message:
    """Return a stateless request as a session takes it."""
    params = dict(message.params)
    for name in ("inputResponses", "requestState"):
        params.pop(name, None)
    meta = {key: value for key, value in _meta(params).items() if not key.startswith(_OURS)}
    params.pop("_meta", None)
    if meta:
        params["_meta"] = meta
    return Message({**message.content, "params": params})


def introduction(message: Message) -> Json:
    """Return the params of the `initialize` that a stateless request stands for."""
    meta = _meta(message.params)
    info = meta.get(CLIENT_INFO)
    capabilities = meta.get(CAPABILITIES)
    return {
        "protocolVersion": SESSIONS[-1],
        "capabilities": capabilities if isinstance(capabilities, dict) else {},
        "clientInfo": info if isinstance(info, dict) else {"name": "unknown", "version": "0"},
    }


def from_session(method: str | None, answer: Message) -> Message:
    """Return a session's response as a stateless client takes it."""
    if answer.result is None:
        return answer
    envelope: Json = {"resultType": "complete"}
    if method in _CACHEABLE:
        envelope |= {"ttlMs": 0, "cacheScope": "private"}
    return Message({**answer.content, "result": {**envelope, **answer.result}})


def discovery(initialized: Json) -> Json:
    """Return the result of `server/discover` that the result of `initialize` stands for."""
    found: Json = {
        "resultType": "complete",
        "supportedVersions": [STATELESS],
        "capabilities": initialized.get("capabilities", {}),
        "ttlMs": 0,
        "cacheScope": "private",
    }
    if "instructions" in initialized:
        found["instructions"] = initialized["instructions"]
    if "serverInfo" in initialized:
        found["_meta"] = {SERVER_INFO: initialized["serverInfo"]}
    return found


def input_required(asked: Message, state: str) -> Json:
    """Return the result that has the client answer what a session's service `asked`."""
    request = {"method": asked.method, "params": asked.params}
    return {"resultType": "input_required", "inputRequests": {"1": request}, "requestState": state}


def given(message: Message, asked: Message) -> Message:
    """Return the response to what the service `asked`, from the client's second request."""
    answers = message.params.get("inputResponses")
    answer = answers.get("1") if isinstance(answers, dict) else None
    return response(asked.id, answer if isinstance(answer, dict) else {})


def state_of(message: Message) -> str | None:
    """Return what we gave a client to carry on with, if it came back."""
    state = message.params.get("requestState")
    return state if isinstance(state, str) else None


def is_wanted(log: Message, asked: Message) -> bool:
    """Return whether a stateless client wants to be told what a session's service logs."""
    least, level = _meta(asked.params).get(LOG_LEVEL), log.params.get("level")
    if least not in LEVELS or level not in LEVELS:
        return False
    return LEVELS.index(level) >= LEVELS.index(least)


# A stateless service, for a client of sessions


def to_stateless(message: Message, client: Json, level: str | None) -> Message:
    """Return a session's request with what a stateless service has to know.

    Args:
        message: the request.
        client: the params of the client's `initialize`.
        level: what it set by `logging/setLevel`, or None.
    """
    meta = {
        **_meta(message.params),
        VERSION: STATELESS,
        CLIENT_INFO: client.get("clientInfo", {"name": "unknown", "version": "0"}),
        CAPABILITIES: client.get("capabilities", {}),
    }
    if level is not None:
        meta[LOG_LEVEL] = level
    return Message({**message.content, "params": {**message.params, "_meta": meta}})


def from_stateless(answer: Message) -> Message:
    """Return a stateless response as a client of sessions takes it."""
    if answer.result is None:
        return answer
    result = {key: value for key, value in answer.result.items() if key not in _ENVELOPE}
    return Message({**answer.content, "result": result})


def initialization(discovered: Json, asked: Json) -> Json:
    """Return the result of `initialize` that the result of `server/discover` stands for.

    Args:
        discovered: what the service says of itself.
        asked: the params of the client's `initialize`.
    """
    version = asked.get("protocolVersion")
    found: Json = {
        "protocolVersion": version if version in SESSIONS else SESSIONS[-1],
        "capabilities": discovered.get("capabilities", {}),
        "serverInfo": _meta(discovered).get(SERVER_INFO, {"name": "unknown", "version": "0"}),
    }
    if "instructions" in discovered:
        found["instructions"] = discovered["instructions"]
    return found


def wanted(answer: Message) -> list[tuple[str, Json]]:
    """Return what a stateless service wants of the client before it answers: (key, request)."""
    result = answer.result
    if result is None or result.get("resultType") != "input_required":
        return []
    requests = result.get("inputRequests")
    if not isinstance(requests, dict):
        return []
    return [(key, one) for key, one in requests.items() if isinstance(one, dict)]


def waits(answer: Message) -> bool:
    """Return whether a stateless service has not finished, and wants to be asked once more."""
    return answer.result is not None and answer.result.get("resultType") == "input_required"


def again(message: Message, answer: Message, answers: Json) -> Message:
    """Return the request that carries on after `answer` with the client's `answers`."""
    params = dict(message.params)
    if answers:
        params["inputResponses"] = answers
    state = (answer.result or {}).get("requestState")
    if state is not None:
        params["requestState"] = state
    return Message({**message.content, "params": params})


# Both


def can_change(result: Json) -> Json:
    """Return what a service says of itself, with the lists that may change marked as such.

    The bridge tells of changes that the service cannot tell of: those while it was away.
    """
    found = result.get("capabilities")
    capabilities: Json = dict(found) if isinstance(found, dict) else {}
    for name in ("tools", "resources", "prompts"):
        if isinstance(capabilities.get(name), dict):
            capabilities[name] = {**capabilities[name], "listChanged": True}
    return {**result, "capabilities": capabilities}


def as_asked(result: Json, asked: Json) -> Json:
    """Return a result of `initialize` that is known already, in the version that was asked for."""
    version = asked.get("protocolVersion")
    return {**result, "protocolVersion": version} if version in SESSIONS else result


def filter_of(message: Message) -> Json:
    """Return what a `subscriptions/listen` asks to be told of; what makes no sense is left out."""
    asked = message.params.get("notifications")
    if not isinstance(asked, dict):
        return {}
    wanted: Json = {member: True for member in FILTERS.values() if asked.get(member) is True}
    uris = asked.get("resourceSubscriptions")
    if isinstance(uris, list):
        wanted["resourceSubscriptions"] = [uri for uri in uris if isinstance(uri, str)]
    return wanted


def subscription(message: Message) -> Id | None:
    """Return the id of the `subscriptions/listen` whose stream a notification came on."""
    caller = _meta(message.params).get(SUBSCRIPTION)
    return caller if isinstance(caller, Id) else None


def on_subscription(message: Message, caller: Id) -> Message:
    """Return a notification as it goes on the stream of a `subscriptions/listen`."""
    meta = {**_meta(message.params), SUBSCRIPTION: caller}
    return notification(message.method or "", {**message.params, "_meta": meta})


def off_subscription(message: Message) -> Message:
    """Return a notification without the mark of the stream that it came on."""
    meta = {key: value for key, value in _meta(message.params).items() if key != SUBSCRIPTION}
    params = {key: value for key, value in message.params.items() if key != "_meta"}
    if meta:
        params["_meta"] = meta
    return notification(message.method or "", params or None)


# Header fields of 2026-07-28

_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_PLAIN = re.compile(r"(?! )[\x20-\x7e]*(?<! )")
_SENTINEL = re.compile(r"=\?base64\?.*\?=")


def fields(message: Message, schema: Json | None) -> list[tuple[bytes, bytes]]:
    """Return the header fields that repeat what is in a request's body.

    Args:
        message: a stateless request.
        schema: the input schema of the tool that it calls, where it is known.
    """
    method = message.method or ""
    version = _meta(message.params).get(VERSION, STATELESS)
    found = [("MCP-Protocol-Version", str(version)), ("Mcp-Method", method)]
    name = message.params.get(_NAMED.get(method, ""))
    if isinstance(name, str):
        found.append(("Mcp-Name", name))
    arguments = message.params.get("arguments")
    if method == "tools/call" and schema is not None and isinstance(arguments, dict):
        for path, token in _annotated(schema, ()):
            value = _at(arguments, path)
            if isinstance(value, bool):
                found.append((f"Mcp-Param-{token}", "true" if value else "false"))
            elif isinstance(value, str | int | float):
                found.append((f"Mcp-Param-{token}", str(value)))
    return [(key.encode("ascii"), _encoded(value)) for key, value in found]


def _encoded(value: str) -> bytes:
    if _PLAIN.fullmatch(value) and not _SENTINEL.fullmatch(value):
        return value.encode("ascii")
    return b"=?base64?" + base64.b64encode(value.encode()) + b"?="


def _annotated(schema: Json, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the properties that a schema wants repeated in a header, with the header's name."""
    properties = schema.get("properties")
    for name, inner in properties.items() if isinstance(properties, dict) else ():
        if isinstance(inner, dict):
            token = inner.get("x-mcp-header")
            if isinstance(token, str) and re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", token):
                yield (*path, name), token
            yield from _annotated(inner, (*path, name))


def _at(arguments: Json, path: tuple[str, ...]) -> object:
    node: object = arguments
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _meta(params: Json) -> Json:
    meta = params.get("_meta")
    return cast(Json, meta) if isinstance(meta, dict) else {}
