"""A service that says exactly what it is told to, to the byte, and tells all that it saw.

::

    async with RawService() as service:
        service.script = says(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
        ...  # service.asked: the requests, with bodies; service.connections: how many were made
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

OK = b"HTTP/1.1 200 OK\r\n"
SSE = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes, *fields: bytes) -> bytes:
    """Return a good answer."""
    return b"\r\n".join([OK + b"Content-Length: %d" % len(body), *fields, b"", b""]) + body


class Asked:
    """A request as it came, and the way back to who sent it."""

    def __init__(
        self,
        head: bytes,
        body: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        self.method, self.target, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines)
        self.fields = [(name, value.strip()) for name, _, value in pairs]
        self.body = body
        self._reader = reader
        self._writer = writer

    async def say(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    @property
    def closed(self) -> bool:
        return self._reader.at_eof() or self._writer.is_closing()

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        """Reset the connection, as a service that is killed does."""
        self._writer.transport.abort()

    async def gone(self) -> None:
        """Wait until the other side has hung up."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(1 << 16):
                pass


Script = Callable[[Asked], Awaitable[None]]


def says(data: bytes, *, close: bool = False) -> Script:
    async def script(asked: Asked) -> None:
        await asked.say(data)
        if close:
            asked.close()

    return script


async def falls_silent(asked: Asked) -> None:
    """A script: no answer, ever."""
    await asked.gone()


class RawService:
    """Answers each request by `script`, one after another on each connection."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.script: Script = says(whole(b'{"jsonrpc":"2.0","id":7,"result":{}}'))
        self.asked: list[Asked] = []
        self.connections = 0
        self._open: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as the last time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse new connections, and reset the open ones."""
        if self._server is not None:
            self._server.close()
            await asyncio.sleep(0)  # what was accepted in this turn of the loop has its task then
            serving = [task for task in self._open.values() if task is not None]
            for writer in self._open:
                writer.transport.abort()
            async with asyncio.timeout(10):
                await asyncio.gather(*serving)
            self._server = None

    async def until_asked(self, count: int = 1) -> Asked:
        """Wait until there have been so many requests, and return that one."""
        await self.until(lambda: len(self.asked) >= count)
        return self.asked[count - 1]

    async def until(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        """Wait until `condition()` holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open[writer] = asyncio.current_task()
        try:
            while not writer.is_closing():
                asked = await _read(reader, writer)
                self.asked.append(asked)
                await self.script(asked)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._open[writer]
            writer.close()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return Asked(head, await reader.readexactly(length), reader, writer)
