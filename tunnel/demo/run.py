"""`demo`: a droplet and its service in processes of their own, and the real tunnel to them.

What is written goes to a temporary home, what is started is stopped with it; the tunnel itself is
the same `up` that a user runs, with settings that `init` could have written.
"""

import contextlib
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from keys.files import write_private
from keys.sshkey import authorized_line, make_key, public_half

from .. import hostkey, initialise
from ..settings import Address

START = 30.0  # seconds for a part to say that it is ready
STOP = 5.0  # seconds for a part to end when asked


class DemoError(Exception):
    """The demo cannot run; says why, with an exit code for the command line."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


@contextlib.contextmanager
def _part(*arguments: str) -> Iterator[str]:
    """Run a part of the demo and give the address in its "... ready on ADDRESS" line.

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
    try:
        try:
            line = said.get(timeout=START)
        except queue.Empty:
            line = ""
        ready = re.search(r" ready on (\S+)", line)
        if ready is None:
            raise DemoError(f"{arguments[0]} did not start.")
        yield ready[1]
    finally:
        process.terminate()
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _port_of(address: str) -> int:
    found = re.search(r":(\d+)", address.removeprefix("http:"))
    if found is None:
        raise DemoError(f"A part of the demo says it listens on {address}.")
    return int(found[1])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run(port: int, say: Callable[[str], object]) -> int:
    """Run the demo on local `port` until it is interrupted; returns the exit code of `up`.

    Raises:
        DemoError: a part cannot be started.
    """
    if find_spec("fastmcp") is None:
        raise DemoError("The demo's service needs FastMCP: pip install 'catalyst-tunnel[demo]'", 2)
    port = port or _free_port()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and stop the parts on the way out
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="catalyst-demo-")))
        say("Starting the orchestration service (FastMCP) ...")
        service = stack.enter_context(_part("tunnel.demo.orchestration", "--port", "0"))
        target = Address("127.0.0.1", _port_of(service))

        identity = home / initialise.KEY
        make_key(identity)
        server = home / "droplet"
        line = authorized_line(public_half(identity), [str(target)], "demo")
        write_private(server / "authorized_keys", f"{line}\n".encode(), replace=False)
        say("Starting the droplet (an SSH server) ...")
        droplet = stack.enter_context(_part("tunnel.demo.droplet", str(server), str(target.port)))

        where = Address("127.0.0.1", _port_of(droplet))
        hostkey.pin(home / "known_hosts", where, public_half(server / "host_key"))
        answers = initialise.Answers(
            where.host, where.port, "demo", target, Address("127.0.0.1", port)
        )
        config = home / "config.toml"
        initialise.write_settings(config, answers)
        say(_WHAT_TO_TRY.format(port=port, config=config))
        up = subprocess.Popen([sys.executable, "-m", "tunnel", "up", "--config", str(config)])
        try:
            return up.wait()
        except KeyboardInterrupt:
            return up.wait(STOP * 2)  # Ctrl-C in a terminal reached it too
        finally:
            if up.poll() is None:
                up.terminate()
                up.wait(STOP * 2)


_WHAT_TO_TRY = """\

The tunnel comes up on http://localhost:{port} now. In another terminal:

  curl http://localhost:{port}/system/health
  catalyst-tunnel status --config {config}

Point any MCP client (Streamable HTTP) at http://localhost:{port}/mcp, for example:

  npx @modelcontextprotocol/inspector --cli http://localhost:{port}/mcp \\
      --transport http --method resources/list

Ctrl-C stops everything.
"""
