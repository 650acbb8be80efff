"""HTTP/1.1 over any asyncio transport: h11 in the middle, backpressure on both sides.

One class serves both ends, as h11 does: as the server of a local client and as the client of the
service behind the tunnel. It adds no header and changes none; framing follows RFC 9112.
"""

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Literal, cast

import h11

READ_AHEAD = 256 << 10  # bytes received and not yet asked for, after which reading pauses
HEAD_LIMIT = 64 << 10  # bytes of request line or status line, with all header fields

_LINGER = "hh" if sys.platform == "win32" else "ii"  # struct linger, setsockopt(2)

Role = Literal["client", "server"]
Headers = list[tuple[bytes, bytes]]

_NO_TIMEOUT = contextlib.nullcontext()

# RFC 9110 section 7.6.1, with the older names that its predecessors list.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)


class ConnectionGoneError(Exception):
    """The other side is gone; `cleanly` tells an orderly end between messages from a break."""


class Pulse:
    """Since when a peer is silent, and since when it owes an answer (loop times, seconds)."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.heard = self._loop.time()
        self.asked: float | None = None

    def sent(self) -> None:
        """Take note that something was sent."""
        if self.asked is None:
            self.asked = self._loop.time()

    def received(self) -> None:
        """Take note that something came."""
        self.heard = self._loop.time()
        self.asked = None


class HttpConnection(asyncio.Protocol):
    """One HTTP/1.1 connection: events out of what is received, bytes out of events."""

    def __init__(self, role: Role) -> None:
        self._role = h11.SERVER if role == "server" else h11.CLIENT
        self._loop = asyncio.get_running_loop()
        self._wake: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._unread = 0
        self._reading_paused = False
        self._lost = False
        self._discarding = False
        self._eof = False
        self.transport: asyncio.Transport | None = None
        self.state = h11.Connection(self._role, max_incomplete_event_size=HEAD_LIMIT)
        self.written = 0
        """Bytes of the current message that were handed to the transport."""
        self.on_gone: Callable[[], None] | None = None
        """Called once when the other side has ended its half or the connection is lost."""
        self.on_closed: Callable[[], None] | None = None
        """Called once when the connection is no more."""
        self.pulse: Pulse | None = None
        """Told of every byte, where nothing below the connection watches the peer."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.pulse is not None:
            self.pulse.received()
        if self._discarding:
            return
        self.state.receive_data(data)
        self._unread += len(data)
        if self._unread > READ_AHEAD and not self._reading_paused and self.transport:
            self._reading_paused = True
            self.transport.pause_reading()
        self._wake_up()

    def eof_received(self) -> bool:
        if not self._eof:
            self._eof = True
            if not self._discarding:
                self.state.receive_data(b"")
            self._gone()
        # Our own half may still have an answer to deliver; TLS knows no halves.
        return self.transport is None or self.transport.get_extra_info("sslcontext") is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if not self._eof:
            self._eof = True
            self._gone()
        if self._drained is not None and not self._drained.done():
            self._drained.set_exception(ConnectionGoneError())
        if self.on_closed is not None:
            self.on_closed()

    def pause_writing(self) -> None:
        if self._drained is None:
            self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def _gone(self) -> None:
        self._wake_up()
        if self.on_gone is not None:
            self.on_gone()

    def _resume_reading(self) -> None:
        if self._reading_paused and self.transport is not None:
            self._reading_paused = False
            self.transport.resume_reading()

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    # Messages

    @property
    def ended(self) -> bool:
        """Whether the other side has ended its half."""
        return self._eof

    @property
    def spoilt(self) -> bool:
        """Whether an idle connection is of no more use: ended, or spoken on out of turn."""
        return self._eof or bool(self.state.trailing_data[0])

    @property
    def speaks_1_0(self) -> bool:
        """Whether the other side said HTTP/1.0."""
        version = self.state.their_http_version
        return version is not None and version < b"1.1"

    @property
    def reusable(self) -> bool:
        """Whether the message exchange is complete and another may follow."""
        return (
            not self._eof
            and self.state.our_state is h11.DONE
            and self.state.their_state is h11.DONE
        )

    def _may_be_http(self) -> bool:
        """Whether what has come of a status line may still become one; h11 waits for its end."""
        if self.state.their_state is not h11.SEND_RESPONSE:
            return True
        begun = self.state.trailing_data[0][:5]
        return b"HTTP/".startswith(begun)

    async def receive(self, within: float | None = None) -> h11.Event:
        """Return the next event of the other side, if need be within so many seconds of silence.

        Raises:
            TimeoutError: nothing came in time.
            h11.RemoteProtocolError: the other side breaks HTTP/1.1, an early end included.
            ConnectionGoneError: the connection was lost.
        """
        while True:
            event = self.state.next_event()
            if event is h11.NEED_DATA:
                if self._lost:
                    raise ConnectionGoneError
                if self._role is h11.CLIENT and not self._may_be_http():
                    raise h11.RemoteProtocolError("that is no HTTP/1.1 response")
                self._unread = 0
                self._wake = self._loop.create_future()
                self._resume_reading()  # may call data_received before it returns
                async with asyncio.timeout(within) if within else _NO_TIMEOUT:
                    await self._wake
                continue
            if event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                raise ConnectionGoneError
            return cast(h11.Event, event)

    def write(self, *events: h11.Event) -> None:
        """Send `events` without waiting for the transport to take them.

        Raises:
            ConnectionGoneError: the connection was lost.
            h11.LocalProtocolError: they do not fit the state of the exchange.
        """
        data = b"".join(self.state.send(event) or b"" for event in events)
        if self._lost or self.transport is None or self.transport.is_closing():
            raise ConnectionGoneError
        self.written += len(data)
        if data:
            self.transport.write(data)
            if self.pulse is not None:
                self.pulse.sent()

    async def drain(self) -> None:
        """Wait until the transport takes more.

        Raises:
            ConnectionGoneError: the connection was lost.
        """
        if self._drained is not None:
            await asyncio.shield(self._drained)

    def next_message(self) -> None:
        """Begin the next exchange on a `reusable` connection."""
        self.state.start_next_cycle()
        self.written = 0
        self._unread = 0
        self._resume_reading()

    async def linger(self, seconds: float) -> None:
        """End our half, and read what the other side still sends until it ends its own.

        Closing at once on unread data would destroy the answer on its way (RFC 9112 section 9.6).
        """
        self._discarding = True
        if self._eof or self.transport is None or self.transport.is_closing():
            return
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self._resume_reading()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self._eof:
                    self._wake = self._loop.create_future()
                    await self._wake

    def close(self) -> None:
        """Close in order: what was written is still delivered."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close at once, so that the other side sees a break and not an end."""
        if self.transport is not None:
            if self._role is h11.SERVER:
                reset_on_close(self.transport)
            self.transport.abort()


def reset_on_close(transport: asyncio.Transport) -> None:
    """Make the close of a TCP transport a reset: to a client, FIN may mean "that was all"."""
    sock = transport.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack(_LINGER, 1, 0))


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return `headers` without those that belong to one hop, and those that Connection names.

    RFC 9110 section 7.6.1; order, duplicates and letter case stay. What frames or routes the
    message is kept whatever Connection says, and a length beside a chunked body is dropped
    (RFC 9112 section 6.3), so that nobody behind us reads another message than we did.
    """
    pairs = list(headers)
    named = {
        token.strip().lower()
        for name, value in pairs
        if name.lower() == b"connection"
        for token in value.split(b",")
    }
    drop = _HOP_BY_HOP | {name for name in named if not _is_protected(name)}
    if header(pairs, b"transfer-encoding"):
        drop |= {b"content-length"}
    return [(name, value) for name, value in pairs if name.lower() not in drop]


def _is_protected(name: bytes) -> bool:
    return name in (b"host", b"content-length", b"content-type") or name.startswith(b"mcp-")


def header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    """Return the first value of `name` (lower case), or b""."""
    return next((value for key, value in headers if key.lower() == name), b"")
