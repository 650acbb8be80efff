"""One request of a local client: its head, its body as far as it is kept, and what it means.

A JSON body is gathered before it is sent on, since no service can act on half of one, and since a
kept body can be sent again. Everything else streams through as it comes.
"""

from dataclasses import dataclass

import h11

from . import mcp
from .http import Headers, HttpConnection, end_to_end, header
from .problems import ProblemError

KEPT = 4 << 20  # bytes of a body that are kept; MCP services take no larger ones by default
PAUSE = 30.0  # seconds that a client may pause inside a body that is being gathered


@dataclass(slots=True)
class Request:
    """What is sent to the service, and what the tunnel knows of it."""

    head: h11.Request
    body: bytes
    complete: bool
    """Whether `body` is all of it; else the rest is still to be read from the client."""
    message: mcp.Message | None

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice has the effect of sending it once."""
        if not self.complete:
            return False
        if self.message is not None:
            return self.message.read
        return self.head.method in mcp.SAFE_METHODS

    @property
    def name(self) -> str:
        """What the log calls it: the JSON-RPC method, or the HTTP method; never an argument."""
        return self.message.name if self.message else self.head.method.decode("ascii")


def _forwardable(received: h11.Request) -> Headers:
    """Return the header fields to send on; a chunked body stays chunked."""
    headers = [
        (name, value)
        for name, value in end_to_end(received.headers.raw_items())
        if name.lower() != b"expect"  # answered here, RFC 9110 section 10.1.1
    ]
    if header(received.headers, b"transfer-encoding"):
        headers.append((b"Transfer-Encoding", b"chunked"))
    return headers


def _is_kept(received: h11.Request) -> bool:
    length = header(received.headers, b"content-length")
    chunked = bool(header(received.headers, b"transfer-encoding"))
    if not length and not chunked:
        return True
    if length and int(length) > KEPT:
        return False
    kind = header(received.headers, b"content-type").split(b";")[0].strip().lower()
    return kind == b"application/json" or kind.endswith(b"+json")


async def read_request(received: h11.Request, client: HttpConnection) -> Request:
    """Return the request that begins with `received`, its body read where it is to be kept.

    Raises:
        ProblemError: request_invalid, where its framing is ambiguous; request_slow, where the
            client pauses inside the body.
        h11.RemoteProtocolError, http.ConnectionGoneError: see `HttpConnection.receive`.
    """
    framings = [
        header(received.headers, b"transfer-encoding"),
        header(received.headers, b"content-length"),
    ]
    if all(framings):
        text = "A request may be chunked or have a length, not both (RFC 9112, 6.1)."
        raise ProblemError("request_invalid", text)
    head = h11.Request(
        method=received.method, target=received.target, headers=_forwardable(received)
    )
    if not _is_kept(received):
        return Request(head, b"", False, None)
    if client.state.they_are_waiting_for_100_continue:
        client.write(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
    body = bytearray()
    while len(body) <= KEPT:
        try:
            event = await client.receive(PAUSE)
        except TimeoutError as exc:
            text = f"The request stopped in the middle for {PAUSE:g} s."
            raise ProblemError("request_slow", text) from exc
        if isinstance(event, h11.EndOfMessage):
            message = mcp.parse(bytes(body)) if received.method == b"POST" and body else None
            return Request(head, bytes(body), True, message)
        if isinstance(event, h11.Data):
            body += event.data
    return Request(head, bytes(body), False, None)
