"""What the demo shows by itself: both paths, a call that is refused, and a failover."""

import json
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from .parts import DemoError, stopping

DEADLINE = 30.0  # seconds for a tunnel to come up


class Far(Protocol):
    """What the tour does to the far side."""

    @property
    def has_gateway(self) -> bool:
        """Whether there is a gateway."""

    @property
    def has_https(self) -> bool:
        """Whether there is an https path."""

    def start_ssh(self) -> None:
        """Start the SSH server."""

    def stop_ssh(self) -> None:
        """Stop it."""


def show(
    droplet: Far, port: int, config: Path, observer: Path, say: Callable[[str], object]
) -> None:
    """Show what there is to see; the tunnel of `config` is being started on `port`.

    Raises:
        DemoError: it does not come up.
    """
    _until_up(config, 2 if droplet.has_https else 1)
    say(f"\nBoth paths are up:\n{_status(config)}" if droplet.has_https else "")
    if droplet.has_gateway:
        _refused(observer, say)
    if droplet.has_https:
        _failover(droplet, port, config, say)


def _until_up(config: Path, paths: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        told = _ask(config, "--json")
        if sum(path["answered"] for path in json.loads(told or "{}").get("paths", ())) >= paths:
            return
        time.sleep(0.1)
    raise DemoError("The tunnel does not come up.")


def _ask(config: Path, *options: str) -> str:
    arguments = [sys.executable, "-m", "tunnel", "status", "--config", str(config), *options]
    return subprocess.run(arguments, capture_output=True, text=True, check=False).stdout


def _status(config: Path) -> str:
    return "".join(f"  {line}\n" for line in _ask(config).splitlines())


def _refused(config: Path, say: Callable[[str], object]) -> None:
    """Have an observer call a tool."""
    say("An observer, who may read but not call, calls start_trading_cycle:")
    arguments = [sys.executable, "-m", "tunnel", "up", "--config", str(config)]
    with stopping(subprocess.Popen(arguments, stderr=subprocess.DEVNULL)):
        _until_up(config, 1)
        listen = tomllib.loads(config.read_text(encoding="utf-8"))["tunnel"]["listen"]
        params = {"name": "start_trading_cycle", "arguments": {"mode": "normal"}}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        status, answer = _http(f"http://{listen}/mcp", call)
        say(f"  HTTP {status}: {answer}\n")


def _failover(droplet: Far, port: int, config: Path, say: Callable[[str], object]) -> None:
    say("The SSH server is stopped. The next request, at once:")
    droplet.stop_ssh()
    began = time.monotonic()
    status, answer = _http(f"http://127.0.0.1:{port}/system/health")
    took = (time.monotonic() - began) * 1000
    say(f"  HTTP {status} after {took:.0f} ms: {answer}\n{_status(config)}")
    droplet.start_ssh()
    say("It is back; requests return to the ssh path once it has been good for a while.")


def _http(url: str, message: Any = None) -> tuple[int, str]:
    body = None if message is None else json.dumps(message).encode()
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    request = urllib.request.Request(url, body, headers)  # noqa: S310  it is our own address
    try:
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:  # noqa: S310
            return answer.status, answer.read().decode().strip()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read().decode().strip()
