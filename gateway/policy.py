"""What a role may do: MCP methods, tools and plain reads, from the parsed body; no by default.

Pure: the request in, a `Wish` out, or a `DeniedError`. What is decided on is what is passed on: a
body in which two parsers might read two things is refused, and so are headers that say another
thing than the body (MCP 2026-07-28, Transports, Streamable HTTP).
"""

import base64
import re
from collections.abc import Mapping
from typing import Any

from keys import strictjson
from keys.enrolment import Role

from .decision import DeniedError, Id, Wish
from .identity import Fields
from .settings import Service

# What changes nothing in the service. A method that is not named here is not open to anybody.
_READS = frozenset(
    {
        "completion/complete",
        "initialize",
        "logging/setLevel",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "server/discover",
        "subscriptions/listen",
        "tasks/get",
        "tasks/list",
        "tasks/result",
        "tools/list",
        "notifications/cancelled",
        "notifications/initialized",
        "notifications/progress",
        "notifications/roots/list_changed",
    }
)
_CALLS = frozenset({"tasks/cancel"})
_METHODS: dict[Role, frozenset[str]] = {"observer": _READS, "operator": _READS | _CALLS}

# Where a message's name is, for those that Mcp-Name repeats.
_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}

_METHOD = re.compile(r"[A-Za-z0-9_./$-]{1,64}")
_PATH = re.compile(r"/[A-Za-z0-9._~/-]*")
# No charset but the one that is checked: in UTF-7 the same bytes say something else.
_JSON = re.compile(r'\s*application/json\s*(;\s*charset=("?)utf-8\2\s*)?', re.IGNORECASE)
_ENCODED = re.compile(r"=\?base64\?([A-Za-z0-9+/=]*)\?=")


def is_message(http_method: str, path: str, service: Service) -> bool:
    """Return whether such a request carries a JSON-RPC message."""
    return http_method == "POST" and path == service.endpoint


def check_path(http_method: str, path: str, service: Service) -> None:
    """Refuse what no role may ask for, by its request line alone.

    Args:
        http_method: as received.
        path: as received, without the query.
        service: what the service is and offers.

    Raises:
        DeniedError: path_denied, http_method_denied.
    """
    if not _PATH.fullmatch(path) or "//" in path or "/." in path:
        raise DeniedError("path_denied")  # a second spelling of some other path, perhaps
    allowed: tuple[str, ...]
    if path == service.endpoint:
        allowed = ("POST", "GET", "DELETE")
    elif any(
        path == read or (read.endswith("/") and path.startswith(read)) for read in service.reads
    ):
        allowed = ("GET", "HEAD")
    else:
        raise DeniedError("path_denied")
    if http_method not in allowed:
        raise DeniedError("http_method_denied")


def judge_plain(http_method: str, path: str, service: Service) -> Wish:
    """Return what a request without a message is about; `check_path` has let it through."""
    return Wish(http_method, standing=http_method == "GET" and path == service.endpoint)


def judge_message(
    role: Role, tools: Mapping[Role, frozenset[str]], service: Service, fields: Fields, body: bytes
) -> Wish:
    """Return what a message is about.

    Args:
        role: of the caller.
        tools: names that each role may call; "*" stands for all.
        service: what the service is and offers.
        fields: the request's header fields.
        body: all of it.

    Raises:
        DeniedError: it is not one message, or contradicts its headers, or the role may not send it.
    """
    message = _message(fields, body)
    caller = _id(message)
    results = ("result" in message) + ("error" in message)
    if "method" not in message:
        if not isinstance(caller, Id) or results != 1:
            raise DeniedError("message_invalid")
        if not _agree(fields, None, None):
            raise DeniedError("header_mismatch")
        return Wish("response")  # to what the service asked on this client's own stream
    method = message["method"]
    if results:  # a request to one parser, an answer to another
        raise DeniedError("message_invalid", caller=caller)
    params = message.get("params", {})
    if not isinstance(method, str) or not _METHOD.fullmatch(method) or not isinstance(params, dict):
        raise DeniedError("message_invalid", caller=caller)
    named = _NAMED.get(method)
    name = params.get(named) if named else None
    if named and not isinstance(name, str):
        raise DeniedError("message_invalid", caller=caller)
    if not _agree(fields, method, name):
        raise DeniedError("header_mismatch", caller=caller)
    if method == "tools/call":
        if name not in tools[role] and "*" not in tools[role]:
            raise DeniedError("tool_denied", caller=caller)
        return Wish(method, name, caller, urgent=name in service.urgent)
    if method not in _METHODS[role]:
        raise DeniedError("method_denied", caller=caller)
    return Wish(method, caller=caller, standing=method == "subscriptions/listen")


def check_head(fields: Fields) -> None:
    """Refuse a message by its header fields, before its body is read.

    Raises:
        DeniedError: content_type_refused, encoding_refused.
    """
    kinds = fields.getall("Content-Type", [])
    if len(kinds) != 1 or not _JSON.fullmatch(kinds[0]):
        raise DeniedError("content_type_refused")
    if any(value.strip().lower() != "identity" for value in fields.getall("Content-Encoding", [])):
        raise DeniedError("encoding_refused")


def _message(fields: Fields, body: bytes) -> dict[str, Any]:
    try:
        message = strictjson.loads(body)
    except ValueError:
        raise DeniedError("message_invalid") from None
    if isinstance(message, list):
        raise DeniedError("batch_refused")
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise DeniedError("message_invalid")
    return message


def _id(message: dict[str, Any]) -> Id | None:
    if "id" not in message:
        return None
    caller = message["id"]
    if not isinstance(caller, Id) or isinstance(caller, bool):
        raise DeniedError("message_invalid")
    return caller


def _agree(fields: Fields, method: str | None, name: str | None) -> bool:
    methods = fields.getall("Mcp-Method", [])
    names = fields.getall("Mcp-Name", [])
    if len(methods) > 1 or len(names) > 1 or len(fields.getall("MCP-Protocol-Version", [])) > 1:
        return False
    if methods and methods[0] != method:
        return False
    return not names or (name is not None and _decoded(names[0]) == name)


def _decoded(value: str) -> str | None:
    """Return the name in an Mcp-Name field, which is in base64 where it is not plain ASCII."""
    encoded = _ENCODED.fullmatch(value)
    if encoded is None:
        return value
    try:
        return base64.b64decode(encoded[1], validate=True).decode()
    except ValueError:
        return None
