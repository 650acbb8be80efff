"""A small HTTP/1.1 client for the load generator: as little work as possible for each answer."""

import asyncio
import re
import socket
from collections.abc import Callable
from typing import cast

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
    port: int, on_answer: Callable[[int], None], on_lost: Callable[[str], None]
) -> Client:
    """Open a connection to this port of 127.0.0.1."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(on_answer, on_lost), "127.0.0.1", port)
    return client


async def ask(port: int, request: bytes) -> int:
    """One request on a connection of its own; returns the answer's status.

    Raises BrokenError or OSError where there is no whole answer.
    """
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def answered(status: int) -> None:
        if not answer.done():
            answer.set_result(status)

    def lost(why: str) -> None:
        if not answer.done():
            answer.set_exception(BrokenError(why))

    client = await connect(port, answered, lost)
    try:
        client.transport.write(request)
        return await answer
    finally:
        client.transport.abort()
