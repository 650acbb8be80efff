"""A TCP relay with faults: the stand-in for a bad network.

As a library it runs in the caller's loop::

    async with Relay("127.0.0.1", 22, delay=0.025) as relay:
        connect_to(relay.host, relay.port)
        relay.stall()      # nothing passes, nobody is told: a dead link
        relay.resume()     # what was held passes now
        relay.reset_all()  # RST to both ends of every connection

As a process it has a loop to itself and is told its faults on stdin::

    python -m tests.faults --listen 127.0.0.1:0 --target 127.0.0.1:22 --delay-ms 25

`delay` is pure latency, in seconds for each direction: bytes wait in a queue until they are due, so
throughput stays high. The TCP handshake itself is the kernel's and is never delayed.
"""

import argparse
import asyncio
import enum
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Self, cast

IN_FLIGHT = 64 << 20
"""Bytes a delayed direction may hold before its source is no longer read."""

WRITE_BUFFER = 1 << 20
BACKLOG = 512

EOF = b""
RESET = None


class Way(enum.Flag):
    """A direction: UP is from the client to the target."""

    UP = enum.auto()
    DOWN = enum.auto()
    BOTH = UP | DOWN


class Flow:
    """One direction of one connection: a queue of (due time, bytes) between two sockets."""

    source: asyncio.Transport
    sink: asyncio.Transport

    def __init__(self, relay: "Relay", way: Way, on_end: Callable[[bool], None]) -> None:
        self.relay = relay
        self.way = way
        self.on_end = on_end  # told once the end has been passed on: True for a reset
        self.held: deque[tuple[float, bytes | None]] = deque()
        self.size = 0
        self.blocked = True  # the sink is not there yet, or its write buffer is full
        self.reading = True
        self.ended = False  # nothing more is taken from the source
        self.timer: asyncio.TimerHandle | None = None

    def push(self, data: bytes | None) -> None:
        """Take bytes, EOF or RESET from the source; they are due `delay` seconds from now."""
        if self.ended and data is not RESET:
            return
        self.ended = self.ended or not data
        self.size += len(data or b"")
        self.held.append((monotonic() + self.relay.delay, data))
        if self.timer is None:
            self.pump()
        else:
            self.regulate()

    def pump(self) -> None:
        """Pass on all that is due and may pass, and come back for the next that is not due yet."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        while self.held and not self.blocked and self.way not in self.relay.stalled:
            due, data = self.held[0]
            wait = due - monotonic()
            if wait > 0:
                self.timer = asyncio.get_running_loop().call_later(wait, self.pump)
                break
            self.held.popleft()
            self.deliver(data)
        self.regulate()

    def deliver(self, data: bytes | None) -> None:
        if data:
            self.size -= len(data)
            if not self.sink.is_closing():
                self.sink.write(data)
            return
        if data is not RESET and not self.sink.is_closing():
            self.sink.write_eof()
        self.on_end(data is RESET)

    def regulate(self) -> None:
        """Read the source only while there is room: without a delay there is room for nothing."""
        room = self.size <= (IN_FLIGHT if self.relay.delay else 0)
        reading = room and self.way not in self.relay.stalled
        if reading != self.reading and not self.source.is_closing():
            self.reading = reading
            (self.source.resume_reading if reading else self.source.pause_reading)()


class End(asyncio.Protocol):
    """One socket of a connection: what it reads goes `out`, what is written to it came `back`."""

    transport: asyncio.Transport

    def __init__(self, out: Flow, back: Flow, on_lost: Callable[[], None]) -> None:
        self.out = out
        self.back = back
        self.on_lost = on_lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        socketed = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.transport = self.out.source = self.back.sink = socketed
        socketed.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socketed.set_write_buffer_limits(high=WRITE_BUFFER)
        self.back.blocked = False

    def data_received(self, data: bytes) -> None:
        self.out.push(data)

    def eof_received(self) -> bool:
        self.out.push(EOF)
        return True  # half-closed: the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.out.push(RESET)
        self.on_lost()

    def pause_writing(self) -> None:
        self.back.blocked = True

    def resume_writing(self) -> None:
        self.back.blocked = False
        self.back.pump()


class Connection:
    """A client's socket, the target's socket and the two flows between them."""

    def __init__(self, relay: "Relay") -> None:
        self.relay = relay
        self.up = Flow(relay, Way.UP, self._ended)
        self.down = Flow(relay, Way.DOWN, self._ended)
        self.client = End(self.up, self.down, self._lost)
        self.target = End(self.down, self.up, self._lost)
        self._open_directions = 2
        self._open_ends = 2

    def reset(self) -> None:
        """RST to both ends."""
        for end in (self.client, self.target):
            reset(end.transport)

    def drop(self) -> None:
        """FIN to both ends (the kernel makes it RST where bytes are still unread)."""
        for end in (self.client, self.target):
            end.transport.close()

    def half_close(self, way: Way = Way.DOWN) -> None:
        """End these directions: the reader sees EOF, the writer's further bytes vanish."""
        for flow in (self.up, self.down):
            if flow.way in way:
                flow.push(EOF)

    def pump(self) -> None:
        for flow in (self.up, self.down):
            flow.pump()

    def _ended(self, was_reset: bool) -> None:
        self._open_directions -= 1
        if was_reset:
            self.reset()
        elif self._open_directions == 0:
            self.drop()

    def _lost(self) -> None:
        self._open_ends -= 1
        if self._open_ends == 0:
            self.up.held.clear()
            self.down.held.clear()
            self.relay.connections.remove(self)


class Relay:
    """The relay: a listener on `port` whose every connection is carried to the target.

    `connections` are those now open, oldest first; `accepted` counts all there ever were. A target
    that cannot be reached shows as a reset of the client's connection.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        delay: float = 0.0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.target = (target_host, target_port)
        self.delay = delay
        self.host = host
        self.port = port
        self.stalled = Way(0)
        self.connections: list[Connection] = []
        self.accepted = 0
        self._socket: socket.socket | None = None
        self._accepting = False
        self._dials: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._socket = self._bind()
        self.port = self._socket.getsockname()[1]
        self.accept()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watch(False)
        if self._socket is not None:
            self._socket.close()
        for dial in self._dials:
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        self.reset_all()
        while self.connections:
            await asyncio.sleep(0)

    def stall(self, way: Way = Way.BOTH) -> None:
        """Hold all bytes of these directions, as a dead link does: no end is told.

        New connections are left in the listener's backlog: they open, and then hear nothing.
        """
        self.stalled |= way
        for connection in self.connections:
            connection.pump()
        self._watch(False)

    def resume(self, way: Way = Way.BOTH) -> None:
        """Let these directions pass again, first of all what was held."""
        self.stalled &= ~way
        for connection in list(self.connections):
            connection.pump()
        self._watch(self._accepting)

    def reset_all(self) -> None:
        """RST to both ends of every connection."""
        for connection in list(self.connections):
            connection.reset()

    def drop_all(self) -> None:
        """FIN to both ends of every connection."""
        for connection in list(self.connections):
            connection.drop()

    def half_close_all(self, way: Way = Way.DOWN) -> None:
        """End these directions of every connection; the other ones go on."""
        for connection in list(self.connections):
            connection.half_close(way)

    def refuse(self) -> None:
        """Refuse new connections; the open ones go on."""
        self._accepting = False
        self._watch(False)
        if self._socket is not None:
            self._socket.close()
        # A socket that is bound and does not listen refuses, and nobody else can take its port.
        self._socket = self._bind()

    def accept(self) -> None:
        """Accept connections, on the same port as before."""
        assert self._socket is not None
        self._socket.listen(BACKLOG)
        self._accepting = True
        self._watch(not self.stalled)

    def _bind(self) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((self.host, self.port))
        bound.setblocking(False)
        return bound

    def _watch(self, on: bool) -> None:
        loop = asyncio.get_running_loop()
        if on and not self.stalled and self._socket is not None:
            loop.add_reader(self._socket, self._accept_one)
        elif self._socket is not None and self._socket.fileno() >= 0:
            loop.remove_reader(self._socket)

    def _accept_one(self) -> None:
        assert self._socket is not None
        try:
            accepted, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.accepted += 1
        accepted.setblocking(False)
        dial = asyncio.create_task(self._dial(accepted))
        self._dials.add(dial)
        dial.add_done_callback(self._dials.discard)

    async def _dial(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection = Connection(self)
        try:
            await loop.create_connection(lambda: connection.target, *self.target)
        except OSError:
            linger(accepted)
            accepted.close()
            return
        except BaseException:
            accepted.close()
            raise
        await loop.connect_accepted_socket(lambda: connection.client, accepted)
        # Listed only when both ends are there, so a fault never meets half a connection.
        self.connections.append(connection)
        connection.pump()


def linger(sock: socket.socket) -> None:
    """Make the close of this socket an RST (socket(7), SO_LINGER of zero seconds)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def reset(transport: asyncio.Transport) -> None:
    """Close a transport with RST; what it had not yet sent is lost."""
    if not transport.is_closing():
        linger(transport.get_extra_info("socket"))
    transport.abort()


def address(text: str) -> tuple[str, int]:
    """Read HOST:PORT."""
    host, _, port = text.rpartition(":")
    return host, int(port)


def _obey(relay: Relay, line: str) -> None:
    """Carry out one command of the process: a fault's name, and a direction where it has one."""
    word, *way = line.split()
    ways = [Way[name.upper()] for name in way]
    if word in {"stall", "resume"}:
        getattr(relay, word)(*ways)
    elif word in {"half-close", "reset", "drop"}:
        getattr(relay, word.replace("-", "_") + "_all")(*ways)
    elif word in {"refuse", "accept"}:
        getattr(relay, word)()
    else:
        raise ValueError(f"unknown command {word!r}")


async def _serve(listen: tuple[str, int], target: tuple[str, int], delay: float) -> None:
    loop = asyncio.get_running_loop()
    lines: asyncio.Queue[str] = asyncio.Queue()

    def read_stdin() -> None:
        for line in sys.stdin:
            loop.call_soon_threadsafe(lines.put_nowait, line.strip())
        loop.call_soon_threadsafe(lines.put_nowait, "quit")  # whoever started us has gone

    async with Relay(*target, delay=delay, host=listen[0], port=listen[1]) as relay:
        print(f"relay ready on {relay.host}:{relay.port}", flush=True)
        threading.Thread(target=read_stdin, daemon=True).start()
        while (line := await lines.get()) != "quit":
            try:
                _obey(relay, line)
            except (ValueError, KeyError, TypeError) as error:
                print(f"error {error}", flush=True)
            else:
                print(f"ok {line}", flush=True)
        print("ok quit", flush=True)


def main() -> None:
    """Run the relay as a process."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--target", type=address, required=True, metavar="HOST:PORT")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="one way, each direction")
    options = parser.parse_args()
    with fast_runner() as runner:
        runner.run(_serve(options.listen, options.target, options.delay_ms / 1000))


def fast_runner() -> asyncio.Runner:
    """A runner on uvloop where there is one."""
    if sys.platform != "win32":
        import uvloop

        return asyncio.Runner(loop_factory=uvloop.new_event_loop)
    return asyncio.Runner()


if __name__ == "__main__":
    main()
