"""The demo's parts as processes: started, waited for, and stopped with the demo."""

import contextlib
import queue
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

START = 30.0  # seconds for a part to say that it is ready
STOP = 5.0  # seconds for a part to end when asked


class DemoError(Exception):
    """The demo cannot run; says why, with an exit code for the command line."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


@contextlib.contextmanager
def part(*arguments: str) -> Iterator[str]:
    """Run a Python module of ours and give the address in its "... ready on ADDRESS" line.

    Raises:
        DemoError: it ended, or did not say so in time.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True
    )
    said: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        if process.stdout is not None:
            for line in process.stdout:
                said.put(line)
        said.put("")

    threading.Thread(target=listen, daemon=True).start()
    with stopping(process):
        try:
            line = said.get(timeout=START)
        except queue.Empty:
            line = ""
        ready = re.search(r" ready on (\S+)", line)
        if ready is None:
            raise DemoError(f"{arguments[0]} did not start.")
        yield ready[1]


@contextlib.contextmanager
def program(arguments: list[str], port: int, log: Path) -> Iterator[None]:
    """Run a program that listens on `port` of 127.0.0.1; what it says goes to `log`.

    Raises:
        DemoError: it ended, or did not listen in time.
    """
    with log.open("wb") as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=said)
    with stopping(process):
        deadline = time.monotonic() + START
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise DemoError(f"{arguments[0]} did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield


@contextlib.contextmanager
def stopping(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> Iterator[None]:
    """Stop `process` at the end of the block."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def command(*arguments: str, stdin: str = "") -> str:
    """Run a Python module of ours to its end and return what it printed.

    Raises:
        DemoError: it failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=START,
        check=False,
    )
    if done.returncode:
        raise DemoError(f"{' '.join(arguments[:2])} failed: {done.stderr.strip()}")
    return done.stdout


def port_of(address: str) -> int:
    """Return the port in an address that a part has told."""
    found = re.search(r":(\d+)", address.removeprefix("http:"))
    if found is None:
        raise DemoError(f"A part of the demo says it listens on {address}.")
    return int(found[1])


def free_port() -> int:
    """Return a port that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
