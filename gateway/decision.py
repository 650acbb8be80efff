"""What the gateway decides on a request: let it pass, or refuse it with a stable code.

One catalogue holds every code with what the outside is told about it. Whoever has not proved who he
is learns nothing but 401; the exact code goes to the audit log. Statuses follow RFC 9110 section
15, `error` names RFC 9209 section 2.3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from keys import strictjson

NAME = "catalyst-gateway"

Id = str | int


class Entry(NamedTuple):
    """What is fixed for a code that the outside is told: status, RFC 9209 error, JSON-RPC code."""

    status: int
    error: str
    rpc: int
    words: str


_DENIED = "http_request_denied"
_INVALID = "http_request_error"
_SAFE = "It was not passed on, so it is safe to call again."
_LOOK = "Look at the service's state before you call again; it was not sent twice."

UNAUTHORIZED = Entry(401, _DENIED, -32004, "Not authorised. It was not passed on.")

CATALOGUE: dict[str, Entry] = {
    # The request itself.
    "request_invalid": Entry(400, _INVALID, -32010, "That is not a well-formed request."),
    "message_invalid": Entry(400, _INVALID, -32010, "The body is not one JSON-RPC message."),
    "batch_refused": Entry(400, _INVALID, -32010, "Batches are not taken: send one message."),
    "header_mismatch": Entry(400, _INVALID, -32010, "A header says another thing than the body."),
    "body_slow": Entry(408, _INVALID, -32008, f"The body came too slowly. {_SAFE}"),
    "body_too_large": Entry(413, _INVALID, -32010, "The body is too large."),
    "content_type_refused": Entry(415, _INVALID, -32010, "The body must be application/json."),
    "encoding_refused": Entry(415, _INVALID, -32010, "The body must not be compressed."),
    # Policy.
    "path_denied": Entry(403, _DENIED, -32003, "This path is not open to clients."),
    "http_method_denied": Entry(403, _DENIED, -32003, "This HTTP method is not open here."),
    "method_denied": Entry(403, _DENIED, -32003, "Your role may not call this method."),
    "tool_denied": Entry(403, _DENIED, -32003, "Your role may not call this tool."),
    # Changes of keys.
    "statement_invalid": Entry(
        400, _INVALID, -32010, "That is not a statement about keys that holds. Nothing was changed."
    ),
    "keys_denied": Entry(
        403, _DENIED, -32003, "This client may not change that. Nothing was changed."
    ),
    "generation_mismatch": Entry(
        409, _DENIED, -32010, "The registry has changed since you looked. Nothing was changed."
    ),
    "ca_unavailable": Entry(
        503,
        "proxy_internal_error",
        -32013,
        "The client CA's key is not on the droplet, or cannot be used. Nothing was changed.",
    ),
    "registrar_unavailable": Entry(
        503,
        "proxy_internal_error",
        -32013,
        "The registrar does not answer (systemctl status catalyst-registrar). Ask what is in "
        "force before you try again.",
    ),
    # Limits.
    "rate_limited": Entry(429, _DENIED, -32007, f"Too many requests. {_SAFE}"),
    "too_many_streams": Entry(429, _DENIED, -32007, f"Too many requests at once. {_SAFE}"),
    # The gateway's own state.
    "stopping": Entry(503, "proxy_internal_error", -32013, f"The gateway is stopping. {_SAFE}"),
    "state_unavailable": Entry(
        503, "proxy_internal_error", -32013, f"The gateway cannot ask its state store. {_SAFE}"
    ),
    "audit_unavailable": Entry(
        503, "proxy_internal_error", -32013, f"The gateway cannot write its audit log. {_SAFE}"
    ),
    "internal_error": Entry(500, "proxy_internal_error", -32019, "The gateway failed."),
    # The service behind.
    "upstream_refused": Entry(
        502, "connection_refused", -32012, f"Nothing listens where the service should. {_SAFE}"
    ),
    "outcome_unknown": Entry(
        502,
        "connection_terminated",
        -32015,
        f"The service hung up without an answer: the request may have run, or not. {_LOOK}",
    ),
    "upstream_invalid": Entry(
        502, "http_protocol_error", -32012, f"What the service answered is not HTTP. {_LOOK}"
    ),
    "upstream_silent": Entry(
        504,
        "http_response_timeout",
        -32016,
        f"The service has not answered in time and may still be at work. {_LOOK}",
    ),
}


class DeniedError(Exception):
    """A request is refused; `code` is the exact reason."""

    def __init__(
        self,
        code: str,
        *,
        caller: Id | None = None,
        retry_after: float = 0.0,
        reason: str | None = None,
        told: Mapping[str, int] | None = None,
    ) -> None:
        self.code = code
        self.reason = reason
        """More exactly, for the audit log and nobody else."""
        self.told = told or {}
        """What the outside is told besides."""
        self.caller = caller
        """The JSON-RPC id that waits for an answer."""
        self.retry_after = retry_after
        super().__init__(code)

    @property
    def entry(self) -> Entry:
        """What the outside is told; every code that is not in the catalogue is about identity."""
        return CATALOGUE.get(self.code, UNAUTHORIZED)


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request that policy allows is about."""

    method: str
    """The JSON-RPC method, or the HTTP method where there is no message."""
    tool: str | None = None
    caller: Id | None = None
    urgent: bool = False
    """Whether it goes by a lane of its own in the limits."""
    standing: bool = False
    """Whether its answer is a stream that may stay open for ever."""
    keys: str | None = None
    """Names of the keys that it is about, for the record."""


def body_of(
    entry: Entry, code: str, caller: Id | None, told: Mapping[str, int] | None = None
) -> bytes:
    """Return the JSON that tells a refusal: a JSON-RPC error where there is an id to answer."""
    shown = "unauthorized" if entry is UNAUTHORIZED else code
    if caller is None:
        return strictjson.dumps({"error": {"code": shown, "message": entry.words, **(told or {})}})
    error = {"code": entry.rpc, "message": entry.words, "data": {"code": shown}}
    return strictjson.dumps({"jsonrpc": "2.0", "id": caller, "error": error})
