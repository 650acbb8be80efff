"""An MCP service of sorts, as little work as possible for each answer.

``python -m bench.service --pause-ms 50``

==================  ===============================================================================
POST /mcp           a JSON-RPC result; a call with a `ref` in its arguments is counted by it
GET /mcp            an event stream: one event, and then nothing
GET /bench          JSON: streams open now, calls executed, refs that were executed more than once
any other           a small JSON answer
==================  ===============================================================================
"""

import argparse
import asyncio
import json
import re
import signal
from collections import Counter
from typing import cast

from tests.faults import fast_runner

BACKLOG = 1024

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_REF = re.compile(rb'"ref":"(\d+)"')


class Book:
    """What all connections have seen."""

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.streams = 0
        self.executed: Counter[bytes] = Counter()

    def told(self) -> bytes:
        twice = sum(count > 1 for count in self.executed.values())
        return json.dumps(
            {"streams": self.streams, "executed": len(self.executed), "twice": twice}
        ).encode()


class Connection(asyncio.Protocol):
    """One connection; its peer asks one thing at a time."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.buffer = b""
        self.streaming = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.book.streams -= self.streaming

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self.buffer, 0, end)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self.buffer) < whole:
            return
        head, body = self.buffer[:end], self.buffer[end + 4 : whole]
        self.buffer = self.buffer[whole:]
        self.take(head, body)

    def take(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET /mcp "):
            self.streaming = True
            self.book.streams += 1
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
            )
            return
        if head.startswith(b"GET /bench "):
            self.answer(self.book.told())
            return
        if ref := _REF.search(body):
            self.book.executed[ref[1]] += 1
        answer = b'{"jsonrpc":"2.0","id":7,"result":{"content":[]}}'
        if self.book.pause:
            loop = asyncio.get_running_loop()
            loop.call_later(self.book.pause, self.answer, answer)
        else:
            self.answer(answer)

    def answer(self, body: bytes) -> None:
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )


async def serve(pause: float) -> None:
    """Serve until SIGTERM or SIGINT."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    book = Book(pause)
    server = await loop.create_server(lambda: Connection(book), "127.0.0.1", 0, backlog=BACKLOG)
    print(f"service ready on 127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await over.wait()


def main() -> None:
    """Run the service."""
    parser = argparse.ArgumentParser(prog="python -m bench.service")
    parser.add_argument("--pause-ms", type=float, default=0.0, help="before each answer")
    options = parser.parse_args()
    with fast_runner() as runner:
        runner.run(serve(options.pause_ms / 1000))


if __name__ == "__main__":
    main()
