"""A tiny real HTTP/1.1 service, raw and transparent, as the thing at the end of a tunnel.

It runs in the caller's loop (``async with Target() as target``), or as a process of its own:
``python -m tests.droplet target --port 0``.
"""

import asyncio
import hashlib
import json
import socket
from collections import Counter, deque
from types import TracebackType
from typing import Self, cast

MIB = 1 << 20
SEEN = 1000


class Request:
    """A request as it came: `headers` are the pairs in their order and case, the body a digest."""

    def __init__(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, version = first.split(" ")
        self.headers = [
            (name, value.strip()) for name, _, value in (x.partition(":") for x in lines)
        ]
        lower = {name.lower(): value.lower() for name, value in self.headers}
        self.chunked = lower.get("transfer-encoding", "") == "chunked"
        self.keep_alive = version == "HTTP/1.1" and lower.get("connection") != "close"
        self.length = 0
        self.digest = hashlib.sha256()
        self.complete = False
        self._left = int(lower.get("content-length", "0"))
        self._last_chunk = False

    def take(self, buffer: bytearray) -> None:
        """Take what belongs to this request's body off the front of the buffer."""
        while not self.complete:
            if self._left:
                if not buffer:
                    return
                part = buffer[: self._left]
                del buffer[: self._left]
                self._left -= len(part)
                self.length += len(part)
                self.digest.update(part)
            elif not self.chunked:
                self.complete = True
            elif not self._take_chunk_line(buffer):
                return

    def _take_chunk_line(self, buffer: bytearray) -> bool:
        """One line between chunks: a size, the CRLF after a chunk, or a trailer (RFC 9112 7.1)."""
        line, end, _ = buffer.partition(b"\r\n")
        if not end:
            return False
        del buffer[: len(line) + 2]
        if self._last_chunk:
            self.complete = not line
        elif line:
            self._left = int(line.partition(b";")[0], 16)
            self._last_chunk = self._left == 0
        return True

    def described(self) -> dict[str, object]:
        """The answer of /echo."""
        return {
            "method": self.method,
            "target": self.target,
            "headers": self.headers,
            "length": self.length,
            "sha256": self.digest.hexdigest(),
        }


class Service(asyncio.Protocol):
    """One connection to the target: each request is answered before the next is looked at."""

    transport: asyncio.Transport

    def __init__(self, target: "Target") -> None:
        self.owner = target
        self.buffer = bytearray()
        self.request: Request | None = None
        self.answering: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.owner.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.owner.connections.discard(self)
        if self.answering is not None:
            self.answering.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.advance()

    def advance(self) -> None:
        while self.answering is None and not self.transport.is_closing():
            if self.request is None:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0:
                    return
                try:
                    self.request = Request(bytes(self.buffer[:end]))
                except ValueError:
                    self.answer(b"malformed\n", status="400 Bad Request")
                    self.transport.close()
                    return
                del self.buffer[: end + 4]
            self.request.take(self.buffer)
            if not self.request.complete:
                return
            self.route(self.request)

    def route(self, request: Request) -> None:
        """Answer now, or start the task that does."""
        self.owner.requests += 1
        self.owner.seen.append(request)
        _, name, *rest = request.target.partition("?")[0].split("/")
        match name, rest:
            case "one", []:
                self.answer(b'{"status":"ok"}')
            case "echo", _:
                self.answer(json.dumps(request.described()).encode())
            case "count", []:
                self.owner.count += 1
                self.answer(str(self.owner.count).encode(), kind="text/plain")
            case "two", []:
                self.answering = asyncio.create_task(self.in_two_segments())
            case "bulk", [size]:
                self.answering = asyncio.create_task(self.bulk(int(size)))
            case "sse", [count, interval]:
                self.answering = asyncio.create_task(self.events(int(count), int(interval) / 1000))
            case "silent", []:
                self.answering = asyncio.create_task(self.silence())
            case "close", []:
                self.transport.close()
            case (("mcp" | "health"), []):
                if request.method == "POST":
                    self.owner.executed[request.digest.hexdigest()] += 1
                self.answering = asyncio.create_task(self.result())
            case _:
                self.answer(b"no such route\n", status="404 Not Found", kind="text/plain")
        if self.answering is None:
            self.done(request)
        else:
            self.answering.add_done_callback(lambda _: self.done(request))

    def done(self, request: Request) -> None:
        """The answer is written: close, or look at what has come since."""
        self.request = None
        if not request.keep_alive:
            self.transport.close()
        if self.answering is not None:
            self.answering = None
            self.advance()

    def answer(
        self, body: bytes, *, status: str = "200 OK", kind: str = "application/json"
    ) -> None:
        self.transport.write(head(status, kind, f"Content-Length: {len(body)}") + body)

    async def in_two_segments(self) -> None:
        """Head and body in a send of their own each, as uvicorn and nginx do."""
        self.transport.write(head("200 OK", "application/json", "Content-Length: 15"))
        await asyncio.sleep(0)  # uvloop joins the writes of one turn of the loop
        self.transport.write(b'{"status":"ok"}')

    async def result(self) -> None:
        """A JSON-RPC answer, after a while."""
        await asyncio.sleep(self.owner.pause)
        self.answer(b'{"jsonrpc":"2.0","id":7,"result":{}}')

    async def silence(self) -> None:
        await asyncio.Event().wait()

    async def bulk(self, mebibytes: int) -> None:
        length = f"Content-Length: {mebibytes * MIB}"
        self.transport.write(head("200 OK", "application/octet-stream", length))
        block = bytes(range(256)) * 1024
        for _ in range(mebibytes * MIB // len(block)):
            self.transport.write(block)
            await self.writable.wait()

    async def events(self, count: int, interval: float) -> None:
        self.transport.write(head("200 OK", "text/event-stream", "Transfer-Encoding: chunked"))
        for number in range(count):
            event = f'id: {number}\ndata: {{"n": {number}}}\n\n'.encode()
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
            await self.writable.wait()
            await asyncio.sleep(interval)
        self.transport.write(b"0\r\n\r\n")


def head(status: str, kind: str, framing: str) -> bytes:
    """The head of an answer, to its empty line."""
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n".encode()


class Target:
    """The HTTP service on the far side. Its routes:

    ========================  =====================================================================
    /one                      a small JSON answer in one segment
    /two                      the same, head and body in two segments
    /bulk/N                   N MiB, written with backpressure
    /echo                     JSON: method, target, header pairs, body's length and sha256
    /sse/N/INTERVAL_MS        N server-sent events, the interval after each
    /silent                   no answer, ever
    /close                    closes when it has read the request
    /count                    adds one and tells the sum
    /mcp, /health             a JSON-RPC result, after `pause` seconds
    ========================  =====================================================================

    `connections` are those open now, `requests` counts the complete ones, `seen` holds the latest,
    and `executed` how often /mcp was asked with a body of that SHA-256.
    """

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.host = host
        self.port = port
        self.count = 0
        self.requests = 0
        self.pause = 0.0
        self.executed: Counter[str] = Counter()
        self.seen: deque[Request] = deque(maxlen=SEEN)
        self.connections: set[Service] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as the last time."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Service(self), self.host, self.port, backlog=512
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections and close the open ones, as a service that restarts does."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self.connections):
            connection.transport.abort()
        while self.connections:
            await asyncio.sleep(0)
        await self._server.wait_closed()
        self._server = None
