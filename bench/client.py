"""A small HTTP/1.1 client for the load generator: as little work as possible for each answer."""

import asyncio
import functools
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self, cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)

READ_BODY = (
    b'{"jsonrpc":"2.0","id":1,"method":"resources/read",'
    b'"params":{"uri":"catalyst://system/health"}}'
)


class BrokenError(Exception):
    """The connection ended, or made no sense, before its answer was complete."""


def get(port: int, path: str) -> bytes:
    """A GET as it goes on the wire."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()


def post_read(port: int, path: str) -> bytes:
    """A POST that carries a JSON-RPC read, as an MCP client sends it."""
    return (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
        "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
        f"Content-Length: {len(READ_BODY)}\r\n\r\n"
    ).encode() + READ_BODY


@dataclass(frozen=True)
class Place:
    """Where requests go: a port of 127.0.0.1, with TLS where there is a `ca`; or a Unix socket."""

    port: int = 0
    unix: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    async def connect(self, make: Callable[[], asyncio.BaseProtocol]) -> Any:
        """Open a connection; the site that TLS leads to is `localhost`."""
        loop = asyncio.get_running_loop()
        if self.unix is not None:
            return (await loop.create_unix_connection(make, self.unix))[1]
        if self.ca is None:
            return (await loop.create_connection(make, "127.0.0.1", self.port))[1]
        context = _context(self.ca, self.cert, self.key)
        opening = loop.create_connection(
            make, "127.0.0.1", self.port, ssl=context, server_hostname="localhost"
        )
        return (await opening)[1]


@functools.cache
def _context(ca: str, cert: str | None, key: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca)
    if cert is not None:
        context.load_cert_chain(cert, key)
    return context


class Client(asyncio.Protocol):
    """One connection: `on_answer(status)` when an answer is complete, `on_lost` when it broke."""

    transport: asyncio.Transport

    def __init__(self, on_answer: Callable[[int], None], on_lost: Callable[[str], None]) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._head = b""
        self._left = 0  # bytes of the body still to come
        self._status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if self._left:
            self._left -= len(data)
        else:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._head, 0, end)
            if length is None:
                self._on_lost("an answer without Content-Length")
                self.transport.abort()
                return
            self._status = int(self._head[9:12])
            self._left = int(length[1]) - (len(self._head) - end - 4)
            self._head = b""
        if self._left == 0:
            self._on_answer(self._status)

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(type(exc).__name__ if exc else "closed")


async def connect(
    place: Place, on_answer: Callable[[int], None], on_lost: Callable[[str], None]
) -> Client:
    """Open a connection to `place`."""
    return cast(Client, await place.connect(lambda: Client(on_answer, on_lost)))


class Caller:
    """A connection on which one question is asked at a time."""

    client: Client

    def __init__(self) -> None:
        self.lost: str | None = None
        self._answer: asyncio.Future[int] | None = None

    @classmethod
    async def connect(cls, place: Place) -> Self:
        """Open one; raises OSError."""
        self = cls()
        self.client = await connect(place, self._answered, self._lost)
        return self

    async def ask(self, request: bytes) -> int:
        """Ask and return the answer's status; raises BrokenError where there is no whole answer."""
        if self.lost is not None:
            raise BrokenError(self.lost)
        self._answer = asyncio.get_running_loop().create_future()
        self.client.transport.write(request)
        return await self._answer

    def close(self) -> None:
        """End it at once."""
        self.client.transport.abort()

    def _answered(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(status)

    def _lost(self, why: str) -> None:
        self.lost = why
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BrokenError(why))


async def ask(place: Place, request: bytes) -> int:
    """One request on a connection of its own; returns the answer's status.

    Raises BrokenError or OSError where there is no whole answer.
    """
    caller = await Caller.connect(place)
    try:
        return await caller.ask(request)
    finally:
        caller.close()
