"""Where requests go: to the tunnel that runs on this home, or by paths of our own.

Both are reached by HTTP, so whatever holds of `catalyst-tunnel up` (requests that wait, calls that
are never made twice, failures in words) holds here. Our own are reached without a port: over a pair
of sockets that nobody else can see.
"""

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..control import ControlError, NotRunningError, ask, control_file
from ..http import HttpConnection
from ..problems import Problem, ProblemError

LOOK = 2.0  # seconds between looks for a tunnel that was started
WHO = 2.0  # seconds that a tunnel may take to say where it listens
IDLE = 60.0  # seconds that a connection is kept
PROVEN = 0.5  # seconds for which a tunnel that proved itself is taken to be there still
SEE_OUT = 3600.0  # seconds that calls may still run on paths of our own once a tunnel is there

_log = logging.getLogger(__name__)


class Endpoint(Protocol):
    """Something that takes requests."""

    host: bytes
    """What to say in Host."""

    async def connect(self) -> HttpConnection:
        """Return a connection to it.

        Raises:
            OSError: it is not there any longer.
        """

    async def close(self, grace: float) -> None:
        """Let what runs finish for so many seconds, and end it."""


class Running:
    """The tunnel that runs on this home, in a process of its own."""

    def __init__(self, address: str) -> None:
        self.host = address.encode("ascii")
        host, _, port = address.rpartition(":")
        self._where = host.strip("[]"), int(port)

    async def connect(self) -> HttpConnection:
        """Return a connection to it.

        Raises:
            OSError: it has ended.
        """
        loop = asyncio.get_running_loop()
        _, http = await loop.create_connection(lambda: HttpConnection("client"), *self._where)
        return http

    async def close(self, grace: float) -> None:
        """Leave it alone: it is not ours to end."""


class Own:
    """Paths that this process keeps up by itself.

    Raises (on construction):
        settings.SettingsError: they cannot be used.
    """

    host = b"localhost"

    def __init__(self, file: Path) -> None:
        # Late: these cost ten times what is needed where a tunnel runs.
        from ..choice import Paths
        from ..listener import Listener
        from ..roads import make_paths
        from ..settings import load

        settings = load(file)
        self._paths = Paths(make_paths(settings, random.uniform))
        self._listener = Listener(settings, self._paths)
        self._tasks = [
            asyncio.ensure_future(keep())
            for path in self._paths.all
            for keep in (path.link.run, path.upkeep)
        ]

    async def connect(self) -> HttpConnection:
        """Return a connection to it."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        for one in (ours, theirs):
            one.setblocking(False)
        await loop.connect_accepted_socket(self._listener.accept, theirs)
        _, http = await loop.connect_accepted_socket(lambda: HttpConnection("client"), ours)
        return http

    @property
    def obstacle(self) -> Problem | None:
        """Why no path is up; None where one is, or nothing is known yet."""
        up = any(path.up for path in self._paths.all)
        return None if up else self._paths.problem

    async def close(self, grace: float) -> None:
        """Let what runs finish for so many seconds, and end the paths."""
        await self._listener.stop(grace)
        for path in self._paths.all:
            path.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass(slots=True)
class _Idle:
    http: HttpConnection
    owner: Endpoint
    since: float


class Endpoints:
    """The endpoint of the moment: a tunnel that runs comes first, and may come and go."""

    def __init__(self, file: Path, make_own: Callable[[Path], Endpoint] = Own) -> None:
        self._file = file
        self._make_own = make_own
        self._choosing = asyncio.Lock()
        self._seen: tuple[int, int] | None = None
        self._running: Running | None = None
        self._proven = 0.0
        """When the tunnel that runs proved itself last."""
        self._own: Endpoint | None = None
        self._idle: list[_Idle] = []
        self._owners: dict[HttpConnection, Endpoint] = {}
        self._retiring: set[asyncio.Task[None]] = set()

    async def connect(self) -> tuple[HttpConnection, bytes]:
        """Return a connection for one request, and what to say in Host.

        Raises:
            ProblemError: settings_faulty; busy, where this process can have no more sockets.
        """
        while True:
            endpoint = await self._current()
            if (kept := self._take(endpoint)) is not None:
                return kept, endpoint.host
            try:
                http = await endpoint.connect()
            except OSError as exc:
                if not isinstance(endpoint, Running):
                    raise ProblemError("busy", f"No socket can be had ({exc.strerror}).") from exc
                self._gone(endpoint)
                continue
            if isinstance(endpoint, Running) and not await self._is_still(endpoint):
                http.abort()
                self._gone(endpoint)
                continue
            self._owners[http] = endpoint
            return http, endpoint.host

    def _gone(self, tunnel: Running) -> None:
        _log.info("tunnel gone")
        if self._running is tunnel:
            self._running = None

    async def _is_still(self, tunnel: Running) -> bool:
        """Return whether what a connection was made to is the tunnel.

        One that was killed leaves its file behind, and its port to whoever takes it next.
        """
        if time.monotonic() - self._proven < PROVEN:
            return True
        found = await self._find()
        return found is not None and found.host == tunnel.host

    @property
    def obstacle(self) -> Problem | None:
        """Why no path of our own is up, where we have some and it is known."""
        return self._own.obstacle if isinstance(self._own, Own) else None

    def give_back(self, http: HttpConnection) -> None:
        """Take a connection back after its exchange; it is closed unless it can serve again."""
        owner = self._owners.pop(http)
        if http.reusable and not http.spoilt and owner in (self._running, self._own):
            http.next_message()
            self._idle.append(_Idle(http, owner, time.monotonic()))
            return
        if http.ended:
            self._doubt(owner)
        http.abort()

    def _doubt(self, owner: Endpoint) -> None:
        """Take note that `owner` has ended a connection: it may be on its way out, or gone."""
        self._proven = 0.0
        for one in [one for one in self._idle if one.owner is owner]:
            self._idle.remove(one)
            one.http.abort()

    def _take(self, endpoint: Endpoint) -> HttpConnection | None:
        while self._idle:
            one = self._idle.pop()
            fresh = time.monotonic() - one.since < IDLE
            if one.owner is endpoint and fresh and not one.http.spoilt:
                self._owners[one.http] = endpoint
                return one.http
            one.http.abort()
        return None

    async def _current(self) -> Endpoint:
        known = self._running or self._own
        if known is not None and self._stamp() == self._seen:
            return known
        async with self._choosing:
            await self._look()
            if self._running is not None:
                return self._running
            if self._own is None:
                self._own = self._start()
            return self._own

    def _start(self) -> Endpoint:
        from ..settings import SettingsError

        try:
            own = self._make_own(self._file)
        except SettingsError as exc:
            raise ProblemError("settings_faulty", " ".join(exc.faults)) from exc
        _log.info("own paths", extra={"config": str(self._file)})
        return own

    async def _look(self) -> None:
        """See whether a tunnel was started or has ended since the last look."""
        if self._stamp() != self._seen:
            await self._choose()

    async def _choose(self) -> None:
        """Take the tunnel that runs; where there is none, what was begun by ourselves stays."""
        self._seen = stamp = self._stamp()
        self._running = None if stamp is None else await self._find()
        if self._running is not None:
            _log.info("tunnel found", extra={"address": self._running.host.decode("ascii")})
        if self._running is not None and self._own is not None:
            own, self._own = self._own, None
            task = asyncio.ensure_future(own.close(SEE_OUT))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    async def _find(self) -> Running | None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(WHO):
                told = await ask(self._file.parent, "who")
            running = Running(str(told["listen"][0]))
        except (NotRunningError, ControlError, TimeoutError, LookupError, TypeError, ValueError):
            return None  # ended without tidying up, or of a version that does not say
        self._proven = began
        return running

    def _stamp(self) -> tuple[int, int] | None:
        try:
            info = control_file(self._file.parent).stat()
        except OSError:
            return None
        return info.st_mtime_ns, info.st_ino

    async def watch(self) -> None:
        """Move to a tunnel that was started, until cancelled; streams that stand move too.

        One that did not answer is asked again: it may have been on its way up.
        """
        while True:
            await asyncio.sleep(LOOK)
            if self._stamp() != self._seen or (self._running is None and self._seen is not None):
                async with self._choosing:
                    await self._choose()

    async def close(self, grace: float) -> None:
        """End everything that was started here."""
        for one in self._idle:
            one.http.abort()
        for http in tuple(self._owners):
            http.abort()
        for task in tuple(self._retiring):
            task.cancel()
        if self._own is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    await self._own.close(0.0)
