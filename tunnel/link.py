"""The link: one way to the droplet, kept up for as long as the process lives.

It supervises an SSH connection (`ssh.Carrier`) or an https session (`https.Session`) alike.

`run` dials, watches and dials again; `ready` waits until it is up. What to do when is in the
table of `lifecycle`, how long to wait in `backoff`; this file is the loop around them.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from .backoff import Backoff
from .channels import P
from .lifecycle import Event, State, after
from .problems import Problem, ProblemError
from .settings import Address

TICK = 0.25  # seconds between looks at a connection that is up
ANXIOUS = 0.75  # seconds that something we sent may stay without a byte in return
DOUBT = 0.6  # seconds without a sign of life after which whoever has another path may take it
PATIENCE = 3.25  # seconds that a doubted peer is given to say anything
AGAIN = 2.0  # seconds between tries to replace a connection that is up
JUMP = 5.0  # seconds by which a look may come late before it counts as sleep

_log = logging.getLogger(__name__)


class Vital(Protocol):
    """When the peer last spoke, and since when it owes an answer (loop times, seconds)."""

    heard: float
    asked: float | None


class Connection(Protocol):
    """What the link needs of what it keeps up."""

    lost: asyncio.Future[None]

    @property
    def replaced(self) -> bool:
        """Whether another is wanted, made with newer keys; this one serves until there is one."""

    @property
    def alive(self) -> bool:
        """Whether it takes new channels."""

    @property
    def wire(self) -> Vital | None:
        """The bytes below, where they can be watched."""

    async def open(self, factory: Callable[[], P], target: Address) -> P:
        """Open a channel."""

    def ping(self) -> None:
        """Make the peer speak."""

    def calm(self) -> None:
        """Stop pinging."""

    def drop(self) -> None:
        """Take note that requests are turned away at the other end."""

    def retire(self) -> None:
        """Finish what runs, take nothing new."""

    def abort(self) -> None:
        """End it now."""


class Link:
    """Supervises one connection.

    Attributes:
        state: where it is in its life.
        problem: why it is not up, or None.
        connection: the connection while it is up, else None.
        connects: how often it came up.
        since: wall time of the last change of state, seconds since the epoch.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        *,
        keepalive: float,
        name: str = "ssh",
        uniform: Callable[[float, float], float] = random.uniform,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._connect = connect
        self._keepalive = keepalive
        self._name = name
        self._wall = wall
        self._backoff = Backoff(uniform)
        self._look = asyncio.Event()
        self._changed = asyncio.Condition()
        self._told: Problem | None = None
        self.state = State.IDLE
        self.problem: Problem | None = None
        self.connection: Connection | None = None
        self.connects = 0
        self.since = wall()
        self.on_lost: list[Callable[[Connection], None]] = []
        """Called when a connection is given up; it may still live on, retired."""
        self.doubted = False
        """Whether the peer was asked for a sign of life and has not given one yet."""
        self.on_doubt: list[Callable[[Connection], None]] = []

    def look(self) -> None:
        """Look at once: prove the connection that is up, or dial without waiting any longer."""
        self._look.set()

    async def ready(self) -> Connection:
        """Wait until the link is up and return its connection."""
        async with self._changed:
            while self.connection is None or not self.connection.alive:
                await self._changed.wait()
            return self.connection

    async def run(self) -> None:
        """Keep the link up until cancelled."""
        await self._take(Event.START)
        try:
            while True:
                try:
                    connection = await self._connect()
                except ProblemError as exc:
                    _log.debug("connect failed", exc_info=exc)
                    await self._fail(exc.problem)
                else:
                    await self._serve(connection)
                    _log.warning("link lost", extra={"path": self._name, "problem": self.problem})
                    await self._wait(self._backoff.next())
        finally:
            await self._take(Event.STOP)

    async def _take(self, event: Event) -> None:
        self.state = after(self.state, event)
        self.since = self._wall()
        async with self._changed:
            self._changed.notify_all()

    async def _fail(self, problem: Problem) -> None:
        if problem != self._told:  # once, not on every try
            _log.warning("link down", extra={"path": self._name, "problem": problem})
        self.problem = self._told = problem
        await self._take(Event.REFUSED if problem.permanent else Event.LOST)
        await self._wait(self._backoff.slow() if problem.permanent else self._backoff.next())

    async def _serve(self, connection: Connection) -> None:
        """Return when `connection` and all that took its place are lost."""
        loop = asyncio.get_running_loop()
        event = Event.CONNECTED
        while True:
            began = loop.time()
            self.connection = connection
            self.problem = self._told = None
            self.connects += 1
            await self._take(event)
            _log.info("link up", extra={"path": self._name, "connects": self.connects})
            successor: Connection | None = None
            try:
                successor = await self._watch(connection)
            except BaseException:
                connection.abort()
                raise
            finally:
                self.connection = successor
                self.doubted = False
            if successor is None:
                self._backoff.lived(loop.time() - began)
                self.problem = Problem("link_lost", "The connection was lost.")
            connection.retire()
            for tell in self.on_lost:
                tell(connection)
            if successor is None:
                await self._take(Event.LOST)
                return
            connection, event = successor, Event.REPLACED

    async def _wait(self, delay: float) -> None:
        """Wait for `delay` seconds; end early when the machine slept or somebody says look."""
        loop = asyncio.get_running_loop()
        end = loop.time() + delay
        event = Event.RETRY_DUE
        self._look.clear()
        while (left := end - loop.time()) > 0:
            before = self._wall()
            try:
                async with asyncio.timeout(min(left, 1.0)):
                    await self._look.wait()
            except TimeoutError:
                if self._wall() - before <= JUMP:
                    continue
            event = Event.WOKE
            break
        await self._take(event)

    async def _watch(self, connection: Connection) -> Connection | None:
        """Return when `connection` is lost or has been silent for too long, or with the one that
        takes its place.
        """
        succession = _Succession(self._connect, self._name)
        try:
            return await self._look_after(connection, succession)
        finally:
            succession.end()

    async def _look_after(
        self, connection: Connection, succession: "_Succession"
    ) -> Connection | None:
        loop = asyncio.get_running_loop()
        pinged: float | None = None
        self._look.clear()
        lost = connection.lost
        while not lost.done():
            before, wall_before = loop.time(), self._wall()
            await self._pause(lost)
            now = loop.time()
            late = max(now - before, self._wall() - wall_before) > JUMP
            look = self._look.is_set() or late
            self._look.clear()
            if connection.replaced and (successor := succession.step()) is not None:
                return successor
            wire = connection.wire
            if wire is None:
                continue
            if late:
                pinged = None  # whatever was overdue while we slept, ask again
            if pinged is not None and wire.heard >= pinged:
                pinged = None
                self.doubted = False
                connection.calm()
            if pinged is None:
                owed = wire.asked is not None and now - wire.asked >= ANXIOUS
                if look or owed or now - wire.heard >= self._keepalive:
                    pinged = now
                    connection.ping()
            elif now - pinged >= PATIENCE:
                return None
            elif now - pinged >= DOUBT and not self.doubted:
                self.doubted = True
                for tell in self.on_doubt:
                    tell(connection)
        return None

    async def _pause(self, lost: asyncio.Future[None]) -> None:
        looked = asyncio.ensure_future(self._look.wait())
        either: set[asyncio.Future[Any]] = {lost, looked}
        try:
            await asyncio.wait(either, timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
        finally:
            looked.cancel()


class _Succession:
    """Makes the connection that takes the place of one that is up, trying until it can be made."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], name: str) -> None:
        self._connect = connect
        self._name = name
        self._dialling: asyncio.Future[Connection] | None = None
        self._due = 0.0
        self._told: Problem | None = None

    def step(self) -> Connection | None:
        """Begin, or go on; return the new connection once it is up."""
        now = asyncio.get_running_loop().time()
        if self._dialling is None:
            if now >= self._due:
                self._dialling = asyncio.ensure_future(self._connect())
            return None
        if not self._dialling.done():
            return None
        dialled, self._dialling = self._dialling, None
        try:
            return dialled.result()
        except ProblemError as exc:
            self._due = now + AGAIN
            if exc.problem != self._told:
                self._told = exc.problem
                extra = {"path": self._name, "problem": exc.problem}
                _log.warning("kept the old keys", extra=extra)
            return None

    def end(self) -> None:
        """Give up a connection that is not wanted any longer."""
        if self._dialling is not None:
            self._dialling.add_done_callback(_abort)
            self._dialling.cancel()


def _abort(dialled: asyncio.Future[Connection]) -> None:
    if not dialled.cancelled() and dialled.exception() is None:
        dialled.result().abort()
