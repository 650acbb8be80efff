"""What a person sees in the terminal while `up` runs: events above, one live line below."""

import asyncio
import contextlib
import logging
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from .status import PathFacts, Snapshot
from .up import Tunnel

REFRESH = 0.5  # seconds

_STYLES = {logging.INFO: "green", logging.WARNING: "yellow", logging.ERROR: "red"}


def duration(seconds: float) -> str:
    """Return seconds as people say them: 45s, 12m, 3h05m, 2d03h."""
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def describe(path: PathFacts, now: float) -> str:
    """Return one path in a few words."""
    text = f"{path.name} {path.state} {duration(now - path.since)}"
    if path.answered and path.latency is not None:
        text += f", service answers in {path.latency * 1000:.0f} ms"
    elif path.state == "up":
        text += ", service does not answer"
    return text


def live_line(snapshot: Snapshot, now: float) -> Text:
    """Return the line: state, path, latency, requests, reconnects."""
    line = Text("● ", style="green" if snapshot.up else "red")
    line.append("; ".join(describe(path, now) for path in snapshot.paths), style="bold")
    line.append(f"  {snapshot.requests} request{'' if snapshot.requests == 1 else 's'}")
    if snapshot.running:
        line.append(f", {snapshot.running} running")
    if snapshot.held:
        line.append(f", {snapshot.held} waiting")
    reconnects = sum(max(path.connects - 1, 0) for path in snapshot.paths)
    line.append(f"  {reconnects} reconnect{'' if reconnects == 1 else 's'}", style="dim")
    return line


class TerminalView(logging.Handler):
    """Shows events as they come, above a line that is always current."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one event."""
        style = _STYLES.get(record.levelno, "dim")
        with contextlib.suppress(OSError):  # the terminal is gone; the tunnel stays
            self._console.print(Text(self.format(record), style=style))

    async def show(self, tunnel: Tunnel) -> None:
        """Keep the live line current until cancelled."""
        live = Live(console=self._console, auto_refresh=False, transient=True)
        with contextlib.suppress(OSError), live:
            while True:
                live.update(live_line(tunnel.snapshot(), time.time()), refresh=True)
                await asyncio.sleep(REFRESH)
