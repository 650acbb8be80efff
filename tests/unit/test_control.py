import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tunnel.control import (
    NONCE,
    ControlError,
    ControlServer,
    NotRunningError,
    ask,
    control_file,
)


async def answer() -> dict[str, Any]:
    return {"fine": True}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ControlServer]:
    control = ControlServer(tmp_path, {"status": answer})
    await control.start()
    yield control
    control.stop()


def rewrite(home: Path, **changes: object) -> None:
    file = control_file(home)
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


async def test_the_owner_is_answered(server: ControlServer, tmp_path: Path) -> None:
    assert await ask(tmp_path, "status") == {"fine": True}


async def test_the_file_is_closed_to_others_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        control = ControlServer(tmp_path / "new", {})
        await control.start()
    finally:
        os.umask(before)
    if sys.platform != "win32":
        file = control_file(tmp_path / "new")
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
    control.stop()
    assert not file.exists()


async def test_a_wrong_secret_gets_nothing(server: ControlServer, tmp_path: Path) -> None:
    rewrite(tmp_path, secret="00" * NONCE)
    with pytest.raises(NotRunningError):
        await ask(tmp_path, "status")


async def test_a_stranger_is_not_obeyed(server: ControlServer, tmp_path: Path) -> None:
    port = json.loads(control_file(tmp_path).read_text())["port"]
    for proof in (b"\0" * NONCE, b"status\n" * 10, b""):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"n" * NONCE + proof + b"status\n")
        writer.write_eof()
        got = await asyncio.wait_for(reader.read(), 10)
        assert b"fine" not in got
        assert len(got) == 2 * NONCE
        writer.close()


async def test_the_servers_proof_cannot_be_sent_back_as_the_clients(
    server: ControlServer, tmp_path: Path
) -> None:
    """Reflection: the label of the direction is part of the proof."""
    port = json.loads(control_file(tmp_path).read_text())["port"]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"n" * NONCE)
    got = await reader.readexactly(2 * NONCE)
    writer.write(got[NONCE:] + b"status\n")
    assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()


async def test_an_impostor_on_the_port_learns_nothing(tmp_path: Path) -> None:
    heard = bytearray()

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readexactly(NONCE))
        writer.write(os.urandom(2 * NONCE) + b'{"fine": true}\n')
        heard.extend(await reader.read())
        writer.close()

    control = ControlServer(tmp_path, {"status": answer})
    await control.start()
    fake = await asyncio.start_server(impostor, "127.0.0.1", 0)
    secret = json.loads(control_file(tmp_path).read_text())["secret"]
    rewrite(tmp_path, port=fake.sockets[0].getsockname()[1])
    with pytest.raises(NotRunningError):
        await ask(tmp_path, "status")
    assert bytes.fromhex(secret) not in heard
    assert b"status" not in heard
    fake.close()
    control.stop()


async def test_a_file_that_was_left_behind(server: ControlServer, tmp_path: Path) -> None:
    kept = control_file(tmp_path).read_bytes()
    server.stop()
    control_file(tmp_path).write_bytes(kept)
    control_file(tmp_path).chmod(0o600)
    with pytest.raises(NotRunningError):
        await ask(tmp_path, "status")


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
async def test_a_file_that_others_can_read_is_not_used(
    server: ControlServer, tmp_path: Path
) -> None:
    control_file(tmp_path).chmod(0o644)
    with pytest.raises(ControlError, match="chmod 600"):
        await ask(tmp_path, "status")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"port": "x", "secret": "zz"}'])
async def test_a_damaged_file(server: ControlServer, tmp_path: Path, content: str) -> None:
    control_file(tmp_path).write_text(content)
    with pytest.raises(ControlError, match="damaged"):
        await ask(tmp_path, "status")


async def test_an_unknown_command(server: ControlServer, tmp_path: Path) -> None:
    with pytest.raises(NotRunningError):
        await ask(tmp_path, "format-disk")


async def test_the_file_of_a_successor_is_left_alone(server: ControlServer, tmp_path: Path) -> None:
    successor = ControlServer(tmp_path, {"status": answer})
    await successor.start()
    server.stop()
    assert await ask(tmp_path, "status") == {"fine": True}
    successor.stop()
