"""`stdio`: a bridge as a process, from its descriptors to its last line."""

import asyncio
import contextlib
import logging
import os
import queue
import signal
import sys
import threading
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from keys.files import make_private_directory

from .. import log
from .bridge import Bridge
from .endpoint import Endpoints
from .memory import Memory, memory_file
from .service import Service
from .stdio import Stdio, take_over

FLUSH = 0.1  # seconds for the client to read what was sent last, and what was logged
FAREWELL = 0.15  # seconds for paths of our own to end
WAITING = 1000  # lines of the log that wait for whoever reads stderr
LOG_SIZE = 1 << 20  # bytes
LOGS = 3  # older files that are kept


def run(file: Path, *, verbose: bool) -> None:
    """Serve one client on stdin and stdout until stdin ends.

    Args:
        file: the settings; memory and logs are beside it.
        verbose: whether every event is logged.

    Raises:
        OSError: there is no stdin or no stdout.
    """
    source, sink = take_over()
    _configure_log(file.parent / "logs", verbose=verbose)
    asyncio.run(_serve(file, source, sink))
    logging.shutdown()
    os._exit(0)  # whatever a thread is still waiting for


async def _serve(file: Path, source: int, sink: int) -> None:
    stdio = Stdio(source, sink)
    endpoints = Endpoints(file)
    memory = Memory(memory_file(file.parent))
    bridge = Bridge(stdio, Service(endpoints, stdio.drain), memory)
    watching = asyncio.ensure_future(endpoints.watch())
    serving = asyncio.ensure_future(bridge.run())
    if sys.platform != "win32":  # there, Ctrl-C raises KeyboardInterrupt in asyncio.run
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    try:
        await asyncio.wait({serving})
    finally:
        watching.cancel()
        await endpoints.close(FAREWELL)
        await stdio.close(FLUSH)
    if not serving.cancelled():
        serving.result()


def _configure_log(directory: Path, *, verbose: bool) -> None:
    """Log to stderr, which clients show, and to a file that outlives them."""
    handlers: list[logging.Handler] = [Aside(sys.stderr)]
    with contextlib.suppress(OSError):  # a full or read-only disk does not keep a client waiting
        make_private_directory(directory)
        path = directory / "stdio.log"
        rotating = RotatingFileHandler(path, maxBytes=LOG_SIZE, backupCount=LOGS, delay=True)
        rotating.rotator = _rotate
        handlers.append(rotating)
    log.configure(handlers, "text", verbose=verbose)
    for handler in handlers:
        handler.addFilter(_with_pid)


def _rotate(source: str, target: str) -> None:
    """Give a log its next name; on Windows that waits until no other copy has it open."""
    with contextlib.suppress(OSError):
        Path(source).replace(target)


class Aside(logging.Handler):
    """Writes beside the work, in a thread: a client that reads no stderr must not stop the bridge.

    What it does not read in time is lost there; the file has it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        super().__init__()
        self._stream = stream
        self._waiting: queue.Queue[str | threading.Event] = queue.Queue(WAITING)
        threading.Thread(target=self._write, daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record, without waiting."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(self.format(record))

    def flush(self) -> None:
        """Give what was taken a moment to be written."""
        written = threading.Event()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(written)
            written.wait(FLUSH)

    def _write(self) -> None:
        while True:
            one = self._waiting.get()
            if isinstance(one, threading.Event):
                one.set()
            elif self._stream is not None:
                with contextlib.suppress(OSError, ValueError):
                    self._stream.write(f"{one}\n")
                    self._stream.flush()


def _with_pid(record: logging.LogRecord) -> bool:
    """Tell the copies that write to one file apart."""
    record.pid = os.getpid()
    return True
