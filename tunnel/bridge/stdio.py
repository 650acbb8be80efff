"""Lines on stdin and stdout. Nothing else ever gets onto stdout, whatever a library prints.

The two ends of the protocol are moved to descriptors that nobody else knows; what is printed goes
to stderr, and whoever reads stdin finds it empty. Threads read and write, since asyncio cannot
watch every kind of stdin on every system (on Windows it can watch none).
"""

import asyncio
import contextlib
import os
import queue
import sys
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

LINE = 32 << 20  # bytes of a line that is read; MCP services take 4 MiB by default
PENDING = 8 << 20  # bytes that may wait for a client that does not read
AHEAD = 8 << 20  # bytes that are read before they are asked for, so that the end is seen in time
_READ = 256 << 10
_SHOWN = 4096  # bytes that are kept of either end of a longer line


@dataclass(frozen=True, slots=True)
class Overlong:
    """A line that was too long to be read."""

    size: int  # bytes
    head: bytes
    tail: bytes


Line = bytes | Overlong


def take_over() -> tuple[int, int]:
    """Return descriptors for the protocol's stdin and stdout; put harmless ones in their place.

    Raises:
        OSError: there is no stdin or no stdout.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(2)
    except OSError:  # started without a stderr
        os.dup2(nothing, 2)
    ours = os.dup(0), os.dup(1)  # children do not inherit these
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    if nothing > 2:
        os.close(nothing)
    sys.stdout = sys.stderr
    if sys.platform == "win32":
        import msvcrt

        for one in ours:
            msvcrt.setmode(one, os.O_BINARY)  # text mode would turn LF into CR LF
    return ours


class Stdio:
    """The client's end: lines that come, and lines to send."""

    def __init__(self, source: int, sink: int, limit: int = LINE) -> None:
        self._loop = asyncio.get_running_loop()
        self._source = source
        self._sink = sink
        self._limit = limit
        self._lines: asyncio.Queue[list[Line] | None] = asyncio.Queue()
        self._ahead = 0
        self._taken = threading.Condition()  # guards what is read ahead
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._pending = 0
        self._over = False
        self._room = asyncio.Event()
        self._room.set()
        self._written = asyncio.Event()
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    async def lines(self) -> AsyncIterator[Line]:
        """Yield lines without their ends, until the client closes stdin or is gone."""
        while (lines := await self._lines.get()) is not None:
            for line in lines:
                yield line
            with self._taken:
                self._ahead -= _size(lines)
                self._taken.notify()

    def send(self, line: bytes) -> None:
        """Send one line, without waiting for the client to read it."""
        self._pending += len(line)
        if self._pending > PENDING and not self._over:
            self._room.clear()
        self._out.put(line + b"\n")

    async def drain(self) -> None:
        """Wait while too much waits for the client to read it, and there is a client."""
        await self._room.wait()

    async def close(self, within: float) -> None:
        """Give what was sent so many seconds to be written."""
        self._out.put(None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._written.wait()

    # Threads

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(function, *arguments)

    def _read(self) -> None:
        splitter = Splitter(self._limit)
        with contextlib.suppress(OSError):
            while data := os.read(self._source, _READ):
                if lines := splitter.feed(data):
                    self._give(lines)
        if lines := splitter.rest():
            self._give(lines)
        self._call(self._end)

    def _give(self, lines: list[Line]) -> None:
        """Hand over lines; wait while too many of those before are not taken yet."""
        with self._taken:
            self._taken.wait_for(lambda: self._ahead <= AHEAD)
            self._ahead += _size(lines)
        self._call(self._lines.put_nowait, lines)

    def _write(self) -> None:
        while (line := self._out.get()) is not None:
            left = memoryview(line)
            try:
                while left:
                    left = left[os.write(self._sink, left) :]
            except OSError:
                self._call(self._end)  # a client that reads no more is gone
                break
            self._call(self._wrote, len(line) - 1)
        self._call(self._written.set)

    # Their news, in the loop

    def _end(self) -> None:
        self._over = True
        self._room.set()
        self._lines.put_nowait(None)

    def _wrote(self, size: int) -> None:
        self._pending -= size
        if self._pending <= PENDING:
            self._room.set()


def _size(lines: list[Line]) -> int:
    """Return about what they cost in memory, in bytes."""
    return sum(64 + (len(line) if isinstance(line, bytes) else 2 * _SHOWN) for line in lines)


class Splitter:
    """Cuts what comes into lines; of one that is too long only the ends are kept."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[Line]:
        """Return the lines that `data` completes; blank ones are left out."""
        *ends, rest = data.split(b"\n")
        lines = []
        for end in ends:
            self._add(end)
            lines += self.rest()
        self._add(rest)
        return lines

    def rest(self) -> list[Line]:
        """Return what has come since the last end of a line, and begin anew."""
        pieces, size = self._pieces, self._size
        self._pieces, self._size = [], 0
        if size > self._limit:
            return [Overlong(size, pieces[0][:_SHOWN], pieces[-1][-_SHOWN:])]
        line = b"".join(pieces).strip(b"\r\t ")
        return [line] if line else []

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= self._limit:
            if piece:
                self._pieces.append(piece)
            return
        whole = b"".join((*self._pieces, piece))
        self._pieces = [whole[:_SHOWN], whole[-_SHOWN:]]
