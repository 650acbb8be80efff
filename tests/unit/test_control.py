import asyncio
import json
import os
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tunnel import control as module
from tunnel.control import (
    NONCE,
    ControlError,
    ControlServer,
    NotRunningError,
    ask,
    control_file,
)

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners are POSIX")
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def answer() -> dict[str, Any]:
    return {"fine": True}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlServer]:
    control = ControlServer(tmp_path, {"status": answer})
    await control.start()
    yield control
    control.stop()


def told(home: Path) -> dict[str, Any]:
    where: dict[str, Any] = json.loads(control_file(home).read_text())
    return where


def rewrite(home: Path, **changes: object) -> None:
    control_file(home).write_text(json.dumps({**told(home), **changes}))


async def test_the_owner_is_answered(server: ControlServer, tmp_path: Path) -> None:
    for _ in range(3):
        assert await ask(tmp_path, "status") == {"fine": True}
    assert told(tmp_path)["pid"] == os.getpid()


async def test_each_command_has_its_own_answer(tmp_path: Path) -> None:
    async def down() -> dict[str, Any]:
        return {"stopping": True}

    control = ControlServer(tmp_path, {"status": answer, "down": down})
    await control.start()
    assert await ask(tmp_path, "down") == {"stopping": True}
    assert await ask(tmp_path, "status") == {"fine": True}
    control.stop()


async def test_an_answer_may_be_long(tmp_path: Path) -> None:
    """A status with some hundred forwards is longer than a stream reader's line."""

    async def long() -> dict[str, Any]:
        return {"forwards": ["127.0.0.1:5000"] * 20_000}

    control = ControlServer(tmp_path, {"status": long})
    await control.start()
    assert len((await ask(tmp_path, "status"))["forwards"]) == 20_000
    control.stop()


async def test_nothing_runs_here(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        await ask(tmp_path, "status")
    with pytest.raises(NotRunningError):
        await ask(tmp_path / "nowhere", "status")


@POSIX
async def test_the_file_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    control = ControlServer(tmp_path / "new", {})
    before = os.umask(0)
    try:
        await control.start()
    finally:
        os.umask(before)
    file = control_file(tmp_path / "new")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    control.stop()


async def test_it_listens_on_loopback_only_and_no_longer_than_it_runs(tmp_path: Path) -> None:
    control = ControlServer(tmp_path, {"status": answer})
    await control.start()
    port = told(tmp_path)["port"]
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.2", port)
    control.stop()
    assert not control_file(tmp_path).exists()
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_each_tunnel_has_its_own_secret(tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        control = ControlServer(tmp_path, {})
        await control.start()
        seen.add(told(tmp_path)["secret"])
        control.stop()
    assert len(seen) == 3
    assert all(len(bytes.fromhex(secret)) == NONCE for secret in seen)


# Those who do not know the secret.


async def test_a_wrong_secret_gets_nothing(server: ControlServer, tmp_path: Path) -> None:
    rewrite(tmp_path, secret="00" * NONCE)
    with pytest.raises(NotRunningError):
        await ask(tmp_path, "status")


@pytest.mark.parametrize("proof", [b"\0" * NONCE, b"status\n" * 10, b"n" * NONCE, b"", b"x"])
async def test_a_stranger_is_not_obeyed(
    server: ControlServer, tmp_path: Path, proof: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", told(tmp_path)["port"])
    writer.write(b"n" * NONCE + proof + b"status\n")
    writer.write_eof()
    got = await asyncio.wait_for(reader.read(), 10)
    assert len(got) == 2 * NONCE  # its nonce and proof, and not a byte of an answer
    writer.close()


async def test_a_stranger_who_says_nothing_is_shown_out(
    server: ControlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.02)
    reader, writer = await asyncio.open_connection("127.0.0.1", told(tmp_path)["port"])
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_strangers_keep_nobody_out(server: ControlServer, tmp_path: Path) -> None:
    port = told(tmp_path)["port"]
    strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
    assert await ask(tmp_path, "status") == {"fine": True}
    for _, writer in strangers:
        writer.close()


async def test_the_servers_proof_cannot_be_sent_back_as_the_clients(
    server: ControlServer, tmp_path: Path
) -> None:
    """Reflection: the label of the direction is part of the proof."""
    reader, writer = await asyncio.open_connection("127.0.0.1", told(tmp_path)["port"])
    writer.write(b"n" * NONCE)
    got = await reader.readexactly(2 * NONCE)
    writer.write(got[NONCE:] + b"status\n")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


class Tap:
    """Passes bytes on to `port` and keeps what crosses, a list for each direction."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked = bytearray()
        self.answered = bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.port)

        async def copy(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray
        ) -> None:
            while data := await source.read(65536):
                kept += data
                sink.write(data)
            sink.close()

        await asyncio.gather(
            copy(reader, far_writer, self.asked), copy(far_reader, writer, self.answered)
        )


async def impostor(home: Path, serve: Serve) -> asyncio.Server:
    """Put another server in the place that the control file names."""
    fake = await asyncio.start_server(serve, "127.0.0.1", 0)
    rewrite(home, port=fake.sockets[0].getsockname()[1])
    return fake


async def test_the_secret_never_crosses_the_socket_and_nothing_can_be_replayed(
    server: ControlServer, tmp_path: Path
) -> None:
    port = told(tmp_path)["port"]
    secret = told(tmp_path)["secret"]
    tap = Tap(port)
    fake = await impostor(tmp_path, tap.serve)
    assert await ask(tmp_path, "status") == {"fine": True}
    crossed = bytes(tap.asked) + bytes(tap.answered)
    for form in (secret.encode(), secret.upper().encode(), bytes.fromhex(secret)):
        assert form not in crossed

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(bytes(tap.asked))
    writer.write_eof()
    again = await asyncio.wait_for(reader.read(), 10)
    assert len(again) == 2 * NONCE
    assert again != bytes(tap.answered[: 2 * NONCE])
    writer.close()
    fake.close()


async def _random(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(os.urandom(2 * NONCE) + b'{"fine": true}\n')


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(2 * await reader.readexactly(NONCE) + b'{"fine": true}\n')


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


@pytest.mark.parametrize("behave", [_random, _echo, _http, _hang_up])
async def test_an_impostor_on_the_port_learns_nothing(
    server: ControlServer, tmp_path: Path, behave: Serve
) -> None:
    heard = bytearray()
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.readexactly(NONCE)
        replay = asyncio.StreamReader()
        replay.feed_data(first)
        await behave(replay, writer)
        if writer.can_write_eof() and not writer.is_closing():
            writer.write_eof()
        heard.extend(first + await reader.read())
        writer.close()
        done.set()

    fake = await impostor(tmp_path, serve)
    with pytest.raises(NotRunningError):
        await ask(tmp_path, "status")
    await asyncio.wait_for(done.wait(), 5)
    assert len(heard) == NONCE  # the client's nonce, which is worth nothing
    assert bytes.fromhex(told(tmp_path)["secret"]) not in heard
    fake.close()


async def test_an_impostor_that_is_silent_does_not_hold_us_up(
    server: ControlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has proved nothing: no tunnel runs, and a new one may."""
    monkeypatch.setattr(module, "DEADLINE", 0.05)
    silent = await impostor(tmp_path, lambda reader, writer: asyncio.sleep(0))
    with pytest.raises(NotRunningError):
        await asyncio.wait_for(ask(tmp_path, "status"), 5)
    server.stop()
    successor = ControlServer(tmp_path, {"status": answer})
    await successor.start()
    assert await ask(tmp_path, "status") == {"fine": True}
    successor.stop()
    silent.close()


# The tunnel itself, at odds.


async def test_a_tunnel_that_runs_but_does_not_answer_is_told_from_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(module, "PROBE_TIME", 0.05)
    control = ControlServer(tmp_path, {"status": hang})
    await control.start()
    with pytest.raises(ControlError, match="does not answer"):
        await ask(tmp_path, "status")
    control.stop()


async def test_an_unknown_command(server: ControlServer, tmp_path: Path) -> None:
    for command in ("format-disk", "", "Status", "x" * 100_000):
        with pytest.raises(NotRunningError):
            await ask(tmp_path, command)
    assert await ask(tmp_path, "status") == {"fine": True}


async def test_a_file_that_was_left_behind(server: ControlServer, tmp_path: Path) -> None:
    kept = control_file(tmp_path).read_bytes()
    server.stop()
    control_file(tmp_path).write_bytes(kept)
    control_file(tmp_path).chmod(0o600)
    with pytest.raises(NotRunningError):
        await ask(tmp_path, "status")


async def test_a_file_that_was_left_behind_is_replaced(
    server: ControlServer, tmp_path: Path
) -> None:
    rewrite(tmp_path, port=1, secret="ab" * NONCE)
    successor = ControlServer(tmp_path, {"status": answer})
    await successor.start()
    assert await ask(tmp_path, "status") == {"fine": True}
    successor.stop()


async def test_one_tunnel_a_home(server: ControlServer, tmp_path: Path) -> None:
    before = control_file(tmp_path).read_bytes()
    second = ControlServer(tmp_path, {"status": answer})
    with pytest.raises(ControlError, match=rf"pid {os.getpid()}"):
        await second.start()
    second.stop()
    assert control_file(tmp_path).read_bytes() == before
    assert await ask(tmp_path, "status") == {"fine": True}


async def test_another_home_is_free(server: ControlServer, tmp_path: Path) -> None:
    other = ControlServer(tmp_path / "other", {"status": answer})
    await other.start()
    assert await ask(tmp_path / "other", "status") == {"fine": True}
    other.stop()
    assert await ask(tmp_path, "status") == {"fine": True}


async def test_the_file_of_a_successor_is_left_alone(server: ControlServer, tmp_path: Path) -> None:
    control_file(tmp_path).unlink()  # somebody tidied up
    successor = ControlServer(tmp_path, {"status": answer})
    await successor.start()
    server.stop()
    assert await ask(tmp_path, "status") == {"fine": True}
    successor.stop()


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense"])
async def test_stopping_leaves_a_file_that_it_does_not_know(tmp_path: Path, content: str) -> None:
    control = ControlServer(tmp_path, {})
    await control.start()
    control_file(tmp_path).write_text(content)
    control.stop()
    assert control_file(tmp_path).read_text() == content


# The control file, spoilt.


@POSIX
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606, 0o620])
async def test_a_file_that_others_can_touch_is_not_used(
    server: ControlServer, tmp_path: Path, mode: int
) -> None:
    control_file(tmp_path).chmod(mode)
    with pytest.raises(ControlError, match="chmod 600"):
        await ask(tmp_path, "status")


@POSIX
@pytest.mark.skipif(
    sys.platform != "win32" and os.geteuid() != 0, reason="only root gives files away"
)
async def test_a_file_of_another_user_is_not_used(server: ControlServer, tmp_path: Path) -> None:
    os.chown(control_file(tmp_path), 65534, -1)
    with pytest.raises(ControlError, match="another user"):
        await ask(tmp_path, "status")


async def test_a_directory_in_the_files_place(tmp_path: Path) -> None:
    control_file(tmp_path).mkdir(parents=True)
    with pytest.raises(ControlError):
        await ask(tmp_path, "status")


GOOD = '"secret": "abab"'


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"port": 5000}',
        "{" + GOOD + "}",
        '{"port": "x", "secret": "zz"}',
        '{"port": 5000, "secret": "zz"}',
        '{"port": 5000, "secret": 7}',
        '{"port": null, ' + GOOD + "}",
        '{"port": 99999, ' + GOOD + "}",
        '{"port": -1, ' + GOOD + "}",
        '{"port": 1e999, ' + GOOD + "}",
        "\0\0\0\0",
    ],
)
async def test_a_damaged_file(server: ControlServer, tmp_path: Path, content: str) -> None:
    control_file(tmp_path).write_text(content)
    with pytest.raises(ControlError, match="damaged"):
        await ask(tmp_path, "status")


async def test_a_file_that_is_not_text(server: ControlServer, tmp_path: Path) -> None:
    control_file(tmp_path).write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ControlError, match="damaged"):
        await ask(tmp_path, "status")
