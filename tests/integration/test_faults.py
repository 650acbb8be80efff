"""The relay itself, against plain sockets: what it says it does to a connection, it does."""

import asyncio
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic

import pytest

from tests.faults import Relay, Way

DEADLINE = 5.0
QUIET = 0.15  # how long a stalled direction is watched for bytes that must not come


@dataclass
class Peer:
    """The target: every accepted connection, as a pair of streams."""

    port: int
    accepted: "asyncio.Queue[Pair]" = field(default_factory=asyncio.Queue)


@dataclass
class Pair:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def receive(self, size: int) -> bytes:
        return await asyncio.wait_for(self.reader.readexactly(size), DEADLINE)

    async def ended(self) -> bytes:
        """Read to the end: raises ConnectionResetError where the end was an RST."""
        return await asyncio.wait_for(self.reader.read(-1), DEADLINE)

    async def hears_nothing(self) -> bool:
        try:
            await asyncio.wait_for(self.reader.read(1), QUIET)
        except TimeoutError:
            return True
        return False


@asynccontextmanager
async def target() -> AsyncIterator[Peer]:
    pairs: list[Pair] = []
    peer = Peer(0)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pairs.append(Pair(reader, writer))
        peer.accepted.put_nowait(pairs[-1])

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    peer.port = server.sockets[0].getsockname()[1]
    try:
        yield peer
    finally:
        for pair in pairs:
            pair.writer.transport.abort()
        server.close()


@asynccontextmanager
async def joined(delay: float = 0.0) -> AsyncIterator[tuple[Relay, Pair, Pair]]:
    """A relay with one open connection: relay, client's side, target's side."""
    async with target() as peer, Relay("127.0.0.1", peer.port, delay=delay) as relay:
        client = await connect(relay)
        yield relay, client, await asyncio.wait_for(peer.accepted.get(), DEADLINE)
        client.writer.transport.abort()


async def connect(relay: Relay) -> Pair:
    return Pair(*await asyncio.open_connection(relay.host, relay.port))


async def eventually(condition: Callable[[], bool]) -> None:
    limit = monotonic() + DEADLINE
    while not condition():
        assert monotonic() < limit, "the condition never came true"
        await asyncio.sleep(0.005)


async def test_carries_bytes_both_ways_and_counts_connections() -> None:
    async with joined() as (relay, client, service):
        await client.send(b"ping")
        assert await service.receive(4) == b"ping"
        await service.send(b"pong")
        assert await client.receive(4) == b"pong"
        assert (relay.accepted, len(relay.connections)) == (1, 1)


async def test_passes_a_half_close_on_and_keeps_the_other_direction() -> None:
    async with joined(delay=0.01) as (relay, client, service):
        await client.send(b"question")
        client.writer.write_eof()
        assert await service.ended() == b"question"
        await service.send(b"answer")
        service.writer.write_eof()
        assert await client.ended() == b"answer"
        await eventually(lambda: not relay.connections)


async def test_delay_is_latency_not_a_sleep_for_each_chunk() -> None:
    async with joined(delay=0.05) as (_, client, service):
        begin = monotonic()
        for _ in range(20):
            await client.send(b"x" * 1000)
            await asyncio.sleep(0.001)
        assert await service.receive(1000)
        assert monotonic() - begin >= 0.045
        assert await service.receive(19_000)
        assert monotonic() - begin < 0.5  # 20 sleeps of 50 ms would be a second


async def test_bulk_under_delay_keeps_its_order() -> None:
    count = 4 << 20
    sent = b"".join(struct.pack(">I", number) for number in range(count // 4))
    async with joined(delay=0.005) as (_, client, service):
        writing = asyncio.create_task(client.send(sent))
        received = await service.receive(count)
        await writing
    assert received == sent


async def test_a_target_that_does_not_read_holds_its_client_back() -> None:
    async with joined() as (relay, client, _service):
        client.writer.write(b"x" * (64 << 20))
        connection = relay.connections[0]
        await eventually(lambda: not connection.up.reading)
        held = client.writer.transport.get_write_buffer_size()
        assert held > 32 << 20, "the relay swallowed what nobody read"


async def test_stall_holds_both_ways_and_resume_delivers_all() -> None:
    async with joined() as (relay, client, service):
        relay.stall()
        await client.send(b"up")
        await service.send(b"down")
        assert await service.hears_nothing()
        assert await client.hears_nothing()
        relay.resume()
        assert await service.receive(2) == b"up"
        assert await client.receive(4) == b"down"


async def test_stall_of_one_way_leaves_the_other() -> None:
    async with joined() as (relay, client, service):
        relay.stall(Way.DOWN)
        await service.send(b"down")
        await client.send(b"up")
        assert await service.receive(2) == b"up"
        assert await client.hears_nothing()
        relay.resume(Way.DOWN)
        assert await client.receive(4) == b"down"


async def test_a_stall_hides_the_end_of_a_connection_too() -> None:
    async with joined() as (relay, client, service):
        relay.stall()
        client.writer.close()
        assert await service.hears_nothing()
        relay.resume()
        assert await service.ended() == b""


async def test_new_connections_of_a_stalled_relay_open_and_hear_nothing() -> None:
    async with target() as peer, Relay("127.0.0.1", peer.port) as relay:
        relay.stall()
        client = await connect(relay)
        await client.send(b"hello?")
        assert await client.hears_nothing()
        assert peer.accepted.empty()
        relay.resume()
        service = await asyncio.wait_for(peer.accepted.get(), DEADLINE)
        assert await service.receive(6) == b"hello?"


async def test_reset_is_an_rst_at_both_ends() -> None:
    async with joined() as (relay, client, service):
        relay.reset_all()
        for end in (client, service):
            with pytest.raises(ConnectionResetError):
                await end.ended()
        await eventually(lambda: not relay.connections)


async def test_drop_is_a_fin_at_both_ends() -> None:
    async with joined() as (relay, client, service):
        relay.drop_all()
        assert await client.ended() == b""
        assert await service.ended() == b""
        await eventually(lambda: not relay.connections)


async def test_half_close_of_one_way_leaves_the_other() -> None:
    async with joined() as (relay, client, service):
        relay.half_close_all(Way.DOWN)
        assert await client.ended() == b""
        await service.send(b"vanishes")
        await client.send(b"arrives")
        assert await service.receive(7) == b"arrives"


async def test_an_rst_from_one_end_reaches_the_other() -> None:
    async with (
        target() as peer,
        Relay("127.0.0.1", peer.port) as outer,
        Relay("127.0.0.1", outer.port) as inner,
    ):
        client = await connect(inner)
        service = await asyncio.wait_for(peer.accepted.get(), DEADLINE)
        outer.reset_all()
        for end in (client, service):
            with pytest.raises(ConnectionResetError):
                await end.ended()


async def test_refuse_keeps_open_connections_and_accept_takes_the_same_port() -> None:
    async with joined() as (relay, client, service):
        port = relay.port
        relay.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connect(relay)
        await client.send(b"still here")
        assert await service.receive(10) == b"still here"
        relay.accept()
        assert relay.port == port
        again = await connect(relay)
        await eventually(lambda: len(relay.connections) == 2)
        again.writer.transport.abort()


async def test_a_target_that_refuses_resets_the_client() -> None:
    async with target() as peer:
        nobody = Relay("127.0.0.1", peer.port)
        async with nobody:
            nobody.refuse()
            async with Relay(nobody.host, nobody.port) as relay:
                client = await connect(relay)
                with pytest.raises(ConnectionResetError):
                    await client.ended()


@pytest.mark.skipif(sys.platform == "win32", reason="the process runs on uvloop")
async def test_the_process_obeys_words_on_stdin() -> None:
    async with target() as peer:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.faults"),
            *("--target", f"127.0.0.1:{peer.port}", "--delay-ms", "10"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None

        async def tell(*words: str) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            for word in words:
                process.stdin.write(f"{word}\n".encode())
                answer = await asyncio.wait_for(process.stdout.readline(), DEADLINE)
                assert answer.decode() == f"ok {word}\n"

        try:
            ready = await asyncio.wait_for(process.stdout.readline(), DEADLINE)
            assert ready.startswith(b"relay ready on 127.0.0.1:")
            port = int(ready.rpartition(b":")[2])
            client = Pair(*await asyncio.open_connection("127.0.0.1", port))
            service = await asyncio.wait_for(peer.accepted.get(), DEADLINE)

            await tell("stall")
            await client.send(b"held")
            assert await service.hears_nothing()
            await tell("resume")
            assert await service.receive(4) == b"held"

            await tell("refuse")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)
            await tell("accept")

            await tell("reset")
            for end in (client, service):
                with pytest.raises(ConnectionResetError):
                    await end.ended()
            again = Pair(*await asyncio.open_connection("127.0.0.1", port))
            await asyncio.wait_for(peer.accepted.get(), DEADLINE)
            await tell("drop")
            assert await again.ended() == b""
            await tell("quit")
            assert await asyncio.wait_for(process.wait(), DEADLINE) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
