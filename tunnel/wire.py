"""The bytes between TCP and SSH: joined writes, prompt ACKs, and a record of when the peer spoke.

A `Wire` stands between the TCP transport and the SSH connection, as the protocol of the one and
the transport of the other. It does three things that decide how a tunnel feels:

* Writes of one turn of the event loop leave as one segment. asyncssh writes once per packet.
* Every receive asks for an immediate ACK. sshd leaves Nagle's algorithm on, so the second segment
  of a small answer waits for our ACK, which Linux delays by 40 ms. Where the system has no
  TCP_QUICKACK, an SSH_MSG_IGNORE (RFC 4253 section 11.2) carries the ACK instead.
* `heard` and `asked` tell whether the peer is alive: only bytes received prove that.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Any, cast

QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
SMALL = 4096  # bytes; larger receives are acknowledged at once by every TCP (RFC 9293, 3.8.6.3)


class Wire(asyncio.Protocol, asyncio.Transport):
    """Sits between a TCP transport and `inner`, the SSH connection's protocol."""

    def __init__(
        self,
        inner: asyncio.Protocol,
        sock: socket.socket,
        *,
        quickack: int | None = QUICKACK,
    ) -> None:
        asyncio.Transport.__init__(self)
        self._inner = inner
        self._sock = sock
        self._quickack = quickack
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self.nudge: Callable[[], None] | None = None
        """Sends a packet that carries an ACK; used where there is no TCP_QUICKACK."""
        self.heard = self._loop.time()
        """Loop time of the last byte received."""
        self.asked: float | None = None
        """Loop time of the first write since then, or None."""

    # As the protocol of the TCP transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(self)

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        self.asked = None
        if self._quickack is not None:
            self._sock.setsockopt(socket.IPPROTO_TCP, self._quickack, 1)
        self._inner.data_received(data)
        if self._quickack is None and self.nudge and not self._out and len(data) < SMALL:
            self.nudge()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._out.clear()
        self._inner.connection_lost(exc)

    # As the transport of the SSH connection.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(bytes(data))
        if self.asked is None:
            self.asked = self._loop.time()

    def _flush(self) -> None:
        if self._out and self._transport is not None:
            data = b"".join(self._out)
            self._out.clear()
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        self._out.clear()
        if self._transport is not None:
            self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default if self._transport is None else self._transport.get_extra_info(name, default)
