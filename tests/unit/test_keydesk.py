"""What the gateway makes of the registrar: answers, refusals, rubbish and silence."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway import keydesk
from gateway.decision import DeniedError
from gateway.keydesk import KeyDesk
from gateway.settings import Layout


@contextlib.asynccontextmanager
async def saying(layout: Layout, text: bytes | None) -> AsyncIterator[list[bytes]]:
    """A registrar that says `text` and hangs up, or nothing at all."""
    heard: list[bytes] = []
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readline())
        if text is None:
            await gone.wait()
        else:
            writer.write(text)
        writer.close()

    layout.registrar.parent.mkdir()
    server = await asyncio.start_unix_server(serve, str(layout.registrar))
    async with server:
        yield heard
        gone.set()


async def refusal(layout: Layout) -> DeniedError:
    with pytest.raises(DeniedError) as told:
        await KeyDesk(layout).relay(b"a.b.c")
    return told.value


async def test_an_answer(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    async with saying(layout, b'{"answer":{"catalyst":"retired"}}\n') as heard:
        response = await KeyDesk(layout).relay(b"a.b.c")
    assert (response.status, json.loads(response.text or "")) == (200, {"catalyst": "retired"})
    assert response.headers["Proxy-Status"] == "catalyst-gateway"
    assert heard == [b"a.b.c\n"]


async def test_a_refusal(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    text = b'{"code":"generation_mismatch","reason":"6","generation":7}\n'
    async with saying(layout, text):
        told = await refusal(layout)
    assert (told.code, told.reason, told.told) == ("generation_mismatch", "6", {"generation": 7})
    assert told.entry.status == 409


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"x\n",
        b"[]\n",
        b"{}\n",
        b"null\n",
        b'{"answer":',
        b'{"answer":{},"answer":{}}\n',
        b"x" * 200_000,
        b'"answer"\n',
    ],
)
async def test_what_is_no_answer(tmp_path: Path, text: bytes) -> None:
    layout = Layout(tmp_path)
    async with saying(layout, text):
        told = await refusal(layout)
    assert told.code == "registrar_unavailable"


async def test_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keydesk, "SILENCE", 0.05)
    layout = Layout(tmp_path)
    async with saying(layout, None):
        told = await refusal(layout)
    assert (told.code, told.reason) == ("registrar_unavailable", "TimeoutError")


async def test_nobody(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    assert (await refusal(layout)).reason == "FileNotFoundError"
    async with saying(layout, b""):
        pass
    assert (await refusal(layout)).reason in ("ConnectionRefusedError", "FileNotFoundError")
