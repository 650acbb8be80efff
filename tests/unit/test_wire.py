import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tunnel.wire import QUICKACK, SMALL, Wire


class Inner(asyncio.Protocol):
    """The SSH connection: keeps what it is told, and answers `reply` to data."""

    def __init__(self, reply: bytes = b"") -> None:
        self.data = b""
        self.reply = reply
        self.ended = False
        self.lost: list[Exception | None] = []
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.reply and self.transport:
            self.transport.write(self.reply)

    def eof_received(self) -> None:
        self.ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Tcp(asyncio.Transport):
    """The TCP transport: keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 22)})
        self.writes: list[bytes] = []
        self.closed = ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return bool(self.closed)

    def close(self) -> None:
        self.closed = "in order"

    def abort(self) -> None:
        self.closed = "at once"


class Sock(socket.socket):
    """A socket that notes the options that are set."""

    options: list[tuple[Any, ...]]

    def setsockopt(self, *args: Any) -> None:
        self.options.append(args)


@pytest.fixture
def sock() -> Iterator[Sock]:
    with Sock() as made:
        made.options = []
        yield made


def joined(inner: Inner, sock: Sock, quickack: int | None = None) -> tuple[Wire, Tcp]:
    wire, tcp = Wire(inner, sock, quickack=quickack), Tcp()
    wire.connection_made(tcp)
    assert inner.transport is wire
    return wire, tcp


async def test_writes_of_one_turn_leave_together(sock: Sock) -> None:
    wire, tcp = joined(Inner(), sock)
    wire.write(b"a")
    wire.write(bytearray(b"b"))
    wire.write(memoryview(b"c"))
    assert tcp.writes == []
    await asyncio.sleep(0)
    assert tcp.writes == [b"abc"]
    wire.write(b"d")
    await asyncio.sleep(0)
    wire.write(b"e")
    await asyncio.sleep(0)
    assert tcp.writes == [b"abc", b"d", b"e"]


async def test_a_buffer_may_be_used_again_once_it_is_written(sock: Sock) -> None:
    wire, tcp = joined(Inner(), sock)
    buffer = bytearray(b"first")
    wire.write(buffer)
    buffer[:] = b"again"
    await asyncio.sleep(0)
    assert tcp.writes == [b"first"]


async def test_replies_to_one_receive_leave_together(sock: Sock) -> None:
    wire, tcp = joined(Inner(reply=b"yes"), sock)
    wire.data_received(b"1")
    wire.data_received(b"2")
    await asyncio.sleep(0)
    assert tcp.writes == [b"yesyes"]


async def test_closing_in_order_delivers_what_was_written(sock: Sock) -> None:
    wire, tcp = joined(Inner(), sock)
    wire.write(b"goodbye")
    wire.close()
    await asyncio.sleep(0)
    assert (tcp.writes, tcp.closed) == ([b"goodbye"], "in order")
    assert wire.is_closing()


@pytest.mark.parametrize("end", ["abort", "connection_lost"])
async def test_what_ends_at_once_writes_no_more(sock: Sock, end: str) -> None:
    wire, tcp = joined(Inner(), sock)
    wire.write(b"too late")
    wire.abort() if end == "abort" else wire.connection_lost(None)
    await asyncio.sleep(0)
    assert tcp.writes == []
    assert tcp.closed == ("at once" if end == "abort" else "")


async def test_what_tcp_tells_is_passed_on(sock: Sock) -> None:
    inner = Inner()
    wire, _ = joined(inner, sock)
    assert not wire.is_closing()
    assert wire.get_extra_info("peername") == ("127.0.0.1", 22)
    assert wire.get_extra_info("cipher", "none") == "none"
    wire.data_received(b"1")
    wire.data_received(b"2")
    wire.eof_received()
    reason = ConnectionResetError()
    wire.connection_lost(reason)
    assert (inner.data, inner.ended, inner.lost) == (b"12", True, [reason])


async def test_before_tcp_is_there_nothing_can_be_closed(sock: Sock) -> None:
    wire = Wire(Inner(), sock)
    assert wire.is_closing()
    assert wire.get_extra_info("peername", "nobody") == "nobody"
    wire.close()
    wire.abort()


# Who spoke last.


async def test_only_what_is_received_proves_life(sock: Sock) -> None:
    loop = asyncio.get_running_loop()
    inner = Inner()
    wire, _ = joined(inner, sock)
    wire.heard -= 100
    wire.write(b"hello?")
    assert loop.time() - wire.heard > 99
    wire.data_received(b"yes")
    assert loop.time() - wire.heard < 1


async def test_asked_is_the_first_write_since_the_peer_spoke(sock: Sock) -> None:
    wire, _ = joined(Inner(), sock)
    assert wire.asked is None
    wire.write(b"hello?")
    first = wire.asked
    assert first is not None
    await asyncio.sleep(0.002)
    wire.write(b"hello??")
    assert wire.asked == first
    wire.data_received(b"yes")
    assert wire.asked is None
    wire.write(b"and?")
    assert wire.asked is not None
    assert wire.asked > first


async def test_a_reply_to_what_was_received_is_owed_an_answer(sock: Sock) -> None:
    wire, _ = joined(Inner(reply=b"and you?"), sock)
    wire.data_received(b"how are you?")
    assert wire.asked is not None


# Prompt ACKs.


@pytest.mark.parametrize("size", [1, SMALL, 1_000_000])
async def test_every_receive_asks_for_a_prompt_ack(sock: Sock, size: int) -> None:
    nudges: list[int] = []
    wire, _ = joined(Inner(), sock, quickack=12)
    wire.nudge = lambda: nudges.append(1)
    for count in (1, 2, 3):
        wire.data_received(b"x" * size)
        assert sock.options == [(socket.IPPROTO_TCP, 12, 1)] * count
    assert nudges == []


@pytest.mark.skipif(QUICKACK is None, reason="this system has no TCP_QUICKACK")
async def test_the_system_takes_the_option() -> None:
    assert QUICKACK is not None
    near, far = socket.socketpair(socket.AF_UNIX)
    near.close()
    far.close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            wire = Wire(Inner(), client)
            wire.connection_made(Tcp())
            wire.data_received(b"x")
            assert client.getsockopt(socket.IPPROTO_TCP, QUICKACK) == 1


@pytest.mark.parametrize(
    ("size", "reply", "nudges"),
    [
        (1, b"", 1),
        (SMALL - 1, b"", 1),
        (SMALL, b"", 0),  # the system acknowledges those at once by itself
        (1_000_000, b"", 0),
        (1, b"reply", 0),  # which carries the ACK
    ],
)
async def test_without_the_option_a_packet_carries_the_ack(
    sock: Sock, size: int, reply: bytes, nudges: int
) -> None:
    sent: list[int] = []
    wire, _ = joined(Inner(reply), sock)
    wire.nudge = lambda: sent.append(1)
    wire.data_received(b"x" * size)
    assert len(sent) == nudges
    assert sock.options == []


async def test_without_either_nothing_is_asked(sock: Sock) -> None:
    wire, tcp = joined(Inner(), sock)
    wire.data_received(b"x")
    await asyncio.sleep(0)
    assert (tcp.writes, sock.options) == ([], [])
