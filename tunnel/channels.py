"""An SSH channel as an asyncio transport, so that one kind of protocol runs over SSH, TCP and TLS.

`open_channel` has the shape of `loop.create_connection`: a protocol factory and an address in, a
transport and a protocol out. The channel is `direct-tcpip` of RFC 4254 section 7.2.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import asyncssh

from .problems import ProblemError

WINDOW = 32 << 20  # bytes in flight towards us: 32 MiB carries 160 MB/s over 200 ms
PACKET = 128 << 10  # bytes; below asyncssh's limit of 256 KiB a packet
DEADLINE = 10.0  # seconds for the droplet to reach the target

P = TypeVar("P", bound=asyncio.Protocol)

_log = logging.getLogger(__name__)


class ChannelTransport(asyncio.Transport):
    """The writing half and the controls of one channel."""

    def __init__(
        self, channel: asyncssh.SSHTCPChannel[bytes], ended: Callable[[Exception | None], None]
    ) -> None:
        super().__init__()
        self._channel = channel
        self._ended = ended

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._channel.is_closing():
            self._channel.write(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        if not self._channel.is_closing():
            self._channel.write_eof()

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self._channel.pause_reading()

    def resume_reading(self) -> None:
        self._channel.resume_reading()

    def is_closing(self) -> bool:
        return self._channel.is_closing()

    def close(self) -> None:
        self._channel.close()

    def abort(self) -> None:
        self._channel.abort()
        # asyncssh tells the end of a channel when the peer confirms it, which a dead one never
        # does; asyncio's transports tell at once.
        asyncio.get_running_loop().call_soon(self._ended, None)

    def get_write_buffer_size(self) -> int:
        return self._channel.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._channel.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._channel.get_extra_info(name, default)


class _Session(asyncssh.SSHTCPSession[bytes]):
    """Hands a channel's events to an asyncio protocol.

    An exception that escaped from here would end the whole SSH connection, so a protocol that
    fails loses its own channel only.
    """

    def __init__(self, protocol: asyncio.Protocol, count: Callable[[int], None]) -> None:
        self.protocol = protocol
        self.transport: ChannelTransport | None = None
        self._count = count
        self._lost = False

    def _contain(self, call: Callable[..., Any], *args: object) -> Any:
        try:
            return call(*args)
        except Exception:  # noqa: BLE001  whatever a protocol raises, the link must survive it
            _log.exception("channel protocol failed")
            if self.transport is not None:
                self.transport.abort()
            return None

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self.transport = ChannelTransport(chan, self.connection_lost)
        self._count(1)
        self._contain(self.protocol.connection_made, self.transport)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._contain(self.protocol.data_received, data)

    def eof_received(self) -> bool:
        return bool(self._contain(self.protocol.eof_received))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._lost = True
        self._count(-1)
        self._contain(self.protocol.connection_lost, exc)

    def pause_writing(self) -> None:
        self._contain(self.protocol.pause_writing)

    def resume_writing(self) -> None:
        self._contain(self.protocol.resume_writing)


_Opening = asyncio.Task[tuple[asyncssh.SSHTCPChannel[bytes], asyncssh.SSHTCPSession[bytes]]]


def _abort_late(opening: _Opening) -> None:
    """Close a channel that opened after its caller had left; otherwise it would stay for good."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].abort()


async def open_channel(
    connection: asyncssh.SSHClientConnection,
    factory: Callable[[], P],
    host: str,
    port: int,
    count: Callable[[int], None],
    *,
    deadline: float = DEADLINE,
) -> tuple[ChannelTransport, P]:
    """Open a channel to `host`:`port` as the droplet sees it, and run `factory()` on it.

    `count` is told +1 when a channel opens and -1 when it is gone.

    Raises:
        ProblemError: target_prohibited (sshd's policy), target_refused (nothing listens there, or
            the connection ended meanwhile), target_timeout.
    """
    protocol = factory()
    session = _Session(protocol, count)
    opening: _Opening = asyncio.ensure_future(
        connection.create_connection(lambda: session, host, port, window=WINDOW, max_pktsize=PACKET)
    )
    try:
        # Shielded: asyncssh forgets to close a channel whose opening is cancelled (its #823).
        async with asyncio.timeout(deadline):
            await asyncio.shield(opening)
    except asyncssh.ChannelOpenError as exc:
        if exc.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED:
            raise ProblemError("target_prohibited", f"sshd forbids {host}:{port}.") from exc
        raise ProblemError("target_refused", f"The droplet cannot reach {host}:{port}.") from exc
    except TimeoutError as exc:
        opening.add_done_callback(_abort_late)
        raise ProblemError(
            "target_timeout", f"The droplet could not reach {host}:{port} within {deadline:g} s."
        ) from exc
    except asyncio.CancelledError:
        opening.add_done_callback(_abort_late)
        raise
    if session.transport is None:
        raise ProblemError("link_lost", "The link was lost.")
    return session.transport, protocol
