"""The bridge's log: to a stderr that nobody reads, and to files that do not grow without end."""

import asyncio
import contextlib
import io
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnel.bridge import run


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("tunnel").level
    root.handlers[:] = []  # pytest's own are not closed
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = before[0], before[1]
    logging.getLogger("tunnel").setLevel(before[2])


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("tunnel", logging.INFO, __file__, 1, text, None, None)


def test_lines_come_in_their_order() -> None:
    stream = io.StringIO()
    aside = run.Aside(stream)
    for number in range(100):
        aside.emit(record(str(number)))
    aside.flush()
    assert stream.getvalue().split() == [str(number) for number in range(100)]


async def test_a_stream_that_takes_nothing_does_not_stop_the_work() -> None:
    source, sink = os.pipe()
    stream = os.fdopen(sink, "w")
    aside = run.Aside(stream)
    for number in range(3 * run.WAITING):
        aside.emit(record(f"{number} " + "x" * 1000))
    aside.flush()  # returns though nothing was read
    os.close(source)  # the client is gone: what waits goes nowhere, and nobody is told
    async with asyncio.timeout(10):
        while aside._waiting.qsize():
            await asyncio.sleep(0.005)
    with contextlib.suppress(BrokenPipeError):
        stream.close()


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_without_a_stream(stream: io.StringIO | None) -> None:
    if stream is not None:
        stream.close()
    aside = run.Aside(stream)
    aside.emit(record("x"))
    aside.flush()


def test_logs_are_rotated_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "LOG_SIZE", 1000)
    monkeypatch.setattr("sys.stderr", None)
    run._configure_log(tmp_path / "logs", verbose=False)
    for number in range(200):
        logging.getLogger("tunnel.x").info("event", extra={"number": number, "pad": "x" * 50})
    names = sorted(one.name for one in (tmp_path / "logs").iterdir())
    assert names == ["stdio.log", "stdio.log.1", "stdio.log.2", "stdio.log.3"]
    assert "number=199" in (tmp_path / "logs" / "stdio.log").read_text()
    assert all(one.stat().st_size <= 1000 for one in (tmp_path / "logs").iterdir())


def test_a_log_that_cannot_be_renamed_is_written_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on Windows, where another copy has it open."""

    def refuse(self: Path, target: str) -> None:
        raise PermissionError(13, "in use")

    monkeypatch.setattr(run, "LOG_SIZE", 1000)
    monkeypatch.setattr(Path, "replace", refuse)
    run._configure_log(tmp_path / "logs", verbose=False)
    for number in range(50):
        logging.getLogger("tunnel.x").info("event", extra={"number": number, "pad": "x" * 50})
    text = (tmp_path / "logs" / "stdio.log").read_text()
    assert "number=0 " in text
    assert "number=49 " in text
    assert "Traceback" not in capsys.readouterr().err


def test_a_directory_that_cannot_be_made_costs_the_file_only(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    run._configure_log(tmp_path / "logs", verbose=False)
    logging.getLogger("tunnel.x").info("event")
