"""`up`: the parts put together, from the first socket to the last request."""

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import __version__
from .choice import Paths
from .control import Command, ControlServer
from .custody.keeper import Keeper
from .forward import Forward
from .https import Session
from .lifecycle import State
from .listener import Listener
from .roads import make_paths
from .settings import Settings
from .sockets import Listening, allow_many_files
from .status import ForwardFacts, PathFacts, Snapshot, told

_log = logging.getLogger(__name__)


class Tunnel:
    """A tunnel: made from settings, run once.

    Raises (on construction):
        sockets.PortTakenError: an address cannot be listened on; nothing is left open.
    """

    def __init__(
        self,
        settings: Settings,
        home: Path,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._settings = settings
        self._started = time.time()
        self._stop = asyncio.Event()
        self._paths = Paths(make_paths(settings, uniform))
        self._listener = Listener(settings, self._paths)
        self._listening = Listening(settings.listen, self._listener.accept)
        self._keeper = Keeper(settings, self._site_ends, self._look)
        self._forwards: list[Forward] = []
        try:
            for rule in settings.forwards:
                link = next(path.link for path in self._paths.all if path.name == "ssh")
                forward = Forward(rule, link, settings.hold)
                link.on_lost.append(forward.abandon)
                self._forwards.append(forward)
        except BaseException:
            self._listening.close()
            for forward in self._forwards:
                forward.listening.close()
            raise
        commands: dict[str, Command] = {"who": self._who, "status": self._status}
        commands |= {"down": self._down, "keys": self._keys, "look": self._take_new_keys}
        self._control = ControlServer(home, commands)

    async def run(self, on_ready: Callable[[], None]) -> None:
        """Serve until told to stop; `on_ready` is called once the addresses accept.

        Raises:
            control.ControlError: another tunnel runs on this home.
            OSError: the control file cannot be written.
        """
        listenings = [self._listening, *(one.listening for one in self._forwards)]
        try:
            await self._control.start()
        except BaseException:
            for listening in listenings:
                listening.close()
            raise
        for listening in listenings:
            await listening.open()
        on_ready()
        tasks = [
            *(asyncio.ensure_future(path.link.run()) for path in self._paths.all),
            *(asyncio.ensure_future(path.upkeep()) for path in self._paths.all),
            *(asyncio.ensure_future(listening.keep()) for listening in listenings),
            asyncio.ensure_future(self._keeper.run()),
        ]
        stopping = asyncio.ensure_future(self._stop.wait())
        try:
            # None of the tasks ends by itself; one that does has met a defect, told below.
            await asyncio.wait({stopping, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            _log.info("stopping", extra={"running": self._listener.counters.running})
            self._listening.close()
            await self._listener.stop()
            for forward in self._forwards:
                forward.stop()
            for path in self._paths.all:
                path.close()
            self._control.stop()
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    def stop(self) -> None:
        """Stop in order."""
        self._stop.set()

    def _interrupt(self) -> None:
        """Stop in order; the second time at once, as a second Ctrl-C should."""
        if self._stop.is_set():
            self._control.stop()
            os._exit(130)
        self._stop.set()

    def take_signals(self) -> None:
        """Stop in order on SIGINT and SIGTERM (Ctrl-C and Ctrl-Break on Windows)."""
        if sys.platform == "win32":
            # No add_signal_handler there; the Python-level handler runs between loop callbacks.
            loop = asyncio.get_running_loop()
            signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(self._interrupt))
            signal.signal(signal.SIGBREAK, lambda *_: loop.call_soon_threadsafe(self._interrupt))
        else:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self._interrupt)

    def snapshot(self) -> Snapshot:
        """Return what is so at this moment."""
        listener = self._listener
        return Snapshot(
            version=__version__,
            pid=os.getpid(),
            started=self._started,
            listen=self._listening.addresses,
            target=self._settings.service,
            paths=[
                PathFacts(
                    name=path.name,
                    current=path is self._paths.current,
                    state=path.link.state,
                    since=path.link.since,
                    connects=path.link.connects,
                    answered=path.up and path.health.answered,
                    latency=path.health.latency,
                    problem=told(path.problem),
                )
                for path in self._paths.all
            ],
            forwards=[
                ForwardFacts(
                    forward.rule.name,
                    forward.listening.addresses,
                    str(forward.rule.target),
                    forward.open,
                    forward.connections,
                )
                for forward in self._forwards
            ],
            requests=listener.counters.requests,
            running=listener.counters.running,
            held=listener.hold.waiting,
            answered=listener.counters.answered,
            problems=dict(listener.counters.problems),
            notices=[notice.to_json() for notice in self._keeper.notices],
        )

    async def _status(self) -> dict[str, Any]:
        """Probe the way to the service, then tell; whoever asks may have mended what had failed."""
        for path in self._paths.all:
            if path.link.state is State.FAILED:
                path.link.look()
        await asyncio.gather(*(path.probe() for path in self._paths.all))
        self._paths.pick()
        return self.snapshot().to_json()

    async def _who(self) -> dict[str, Any]:
        return {"pid": os.getpid(), "listen": self._listening.addresses}

    def _look(self) -> None:
        """Have every path look at once: keys were replaced, which may mend what had failed."""
        for path in self._paths.all:
            path.link.look()

    def _site_ends(self) -> float | None:
        sessions = (path.link.connection for path in self._paths.all)
        ends = [one.site_ends for one in sessions if isinstance(one, Session)]
        return ends[0] if ends else None

    async def _take_new_keys(self) -> dict[str, Any]:
        self._look()
        return {}

    async def _keys(self) -> dict[str, Any]:
        """Tell what still stands on keys that are not those of now."""
        behind = running = 0
        for path in self._paths.all:
            connection = path.link.connection
            behind += connection is not None and connection.replaced
            running += path.pool.running_without(connection)
        return {"behind": behind, "running": running}

    async def _down(self) -> dict[str, Any]:
        asyncio.get_running_loop().call_soon(self._stop.set)
        return {"stopping": True}


def run(
    settings: Settings, home: Path, beside: Callable[[Tunnel], Any], on_ready: Callable[[], None]
) -> None:
    """Run a tunnel on an event loop of its own; `beside(tunnel)` may return a coroutine for a view.

    Raises:
        sockets.PortTakenError, OSError: see `Tunnel`.
    """

    async def main() -> None:
        allow_many_files()
        tunnel = Tunnel(settings, home)
        tunnel.take_signals()
        view = asyncio.ensure_future(beside(tunnel))
        try:
            await tunnel.run(on_ready)
        finally:
            view.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await view

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop where there is one: it carries half as much again."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
