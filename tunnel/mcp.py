"""What a tunnel has to know of MCP: which request is a read, and how to answer in its own words.

MCP messages are JSON-RPC 2.0 in the body of a POST (MCP 2025-11-25 and 2026-07-28, Transports,
Streamable HTTP). Nothing here rewrites a message; it is read once, to decide.
"""

import json
import re
from dataclasses import dataclass

from keys import strictjson

from .problems import Problem

LISTEN = "subscriptions/listen"  # its answer is a stream that may stay open for ever

# Methods whose second execution changes nothing. A method that is not named here may change
# state, as far as a tunnel can know, and is never sent twice.
READS = frozenset(
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
        LISTEN,
        "tasks/get",
        "tasks/list",
        "tasks/result",
        "tools/list",
        "notifications/cancelled",
        "notifications/initialized",
        "notifications/roots/list_changed",
    }
)

SAFE_METHODS = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})  # RFC 9110 section 9.2.1

Id = str | int | float


def is_read(method: object) -> bool:
    """Return whether a second execution of `method` changes nothing."""
    return isinstance(method, str) and method in READS


@dataclass(frozen=True, slots=True)
class Message:
    """One POST's JSON-RPC content: the ids that wait for an answer, and whether all of it reads."""

    ids: tuple[Id, ...]
    read: bool
    batch: bool
    name: str


def parse(body: bytes) -> Message | None:
    """Return what `body` says, or None where it is not JSON-RPC that can be trusted.

    None is the careful answer: such a request counts as one that changes state.
    """
    try:
        content = strictjson.loads(body)
    except ValueError:
        return None
    batch = isinstance(content, list)
    items = content if batch else [content]
    if not items or not all(isinstance(item, dict) for item in items):
        return None
    if not all(item.get("jsonrpc") == "2.0" for item in items):
        return None
    methods = [item.get("method") for item in items]
    ids = tuple(
        item["id"]
        for item in items
        if isinstance(item.get("method"), str)
        and isinstance(item.get("id"), Id)
        and not isinstance(item["id"], bool)
    )
    return Message(
        ids=ids,
        read=all(is_read(method) for method in methods),
        batch=batch,
        name=_name(methods[0]),
    )


def _name(method: object) -> str:
    """Return what the log calls a message; a client's free text stays out of it."""
    if not isinstance(method, str):
        return "response"
    return method if re.fullmatch(r"[A-Za-z0-9_./$-]{1,64}", method) else "other"


def error(problem: Problem, message: Message | None) -> bytes:
    """Return the JSON that tells `problem`: a JSON-RPC error where there is an id to answer."""
    if message is None or not message.ids:
        told: object = {
            "error": {
                "code": problem.code,
                "message": problem.message,
                "remedy": problem.remedy,
            }
        }
    else:
        errors = [
            {
                "jsonrpc": "2.0",
                "id": caller,
                "error": {
                    "code": problem.entry.rpc,
                    "message": str(problem),
                    "data": {"code": problem.code, "remedy": problem.remedy},
                },
            }
            for caller in message.ids
        ]
        told = errors if message.batch else errors[0]
    return json.dumps(told, separators=(",", ":")).encode()
