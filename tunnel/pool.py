"""HTTP connections to the service, opened ahead of need, so that a new client waits for nothing.

A connection that served before may be closed by the service at any moment (uvicorn does so after
5 s), and a request that meets that moment has an unknown outcome. So what may change state goes
out on a connection that is fresh, or was used within the last second.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from .http import HttpConnection
from .link import Connection
from .problems import ProblemError

SPARE = 1  # connections kept open that never served
LIMIT = 512  # connections at a time; sshd keeps a file descriptor for each
SLOT_WAIT = 30.0  # seconds that a request waits where all of them are in use
REUSE = 4.0  # seconds idle after which a connection is not used again for a read
REUSE_ONCE = 1.0  # the same for a request that must not meet a closing connection
SPARE_AGE = 45.0  # seconds that a spare may wait: servers drop silent clients after a minute
RESERVED = 8  # one of so many is left to calls and probes

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Upstream:
    """A pooled connection, its owner (the SSH connection below it), and its history."""

    http: HttpConnection
    owner: Connection
    idle_since: float
    served: int = 0
    fresh: bool = True
    """Whether it was opened for the exchange that it carries now."""
    repeatable: bool = True
    """Whether the request on it may be sent again; it is then broken when the owner is doubted."""
    waiting_since: float | None = None
    """Loop time of the request on it while no answer to it has begun."""
    slots: list[asyncio.Semaphore] = field(default_factory=list)


class Pool:
    """Keeps and hands out connections of one path."""

    def __init__(
        self,
        open_one: Callable[[], Awaitable[tuple[HttpConnection, Connection]]],
        spare_age: float = SPARE_AGE,
    ) -> None:
        self._open_one = open_one
        self._spare_age = spare_age
        self._idle: list[Upstream] = []
        self._busy: set[Upstream] = set()
        self._opening: set[asyncio.Future[tuple[HttpConnection, Connection]]] = set()
        self._slots = asyncio.Semaphore(LIMIT)
        self._read_slots = asyncio.Semaphore(LIMIT - LIMIT // RESERVED)
        self._warming: asyncio.Task[None] | None = None

    async def acquire(self, *, repeatable: bool, probe: bool = False) -> Upstream:
        """Return a connection for one exchange; waits where `LIMIT` are in use.

        Reads leave one in `RESERVED` to others: a client that hangs on many answers must not keep
        a call from being made, or a probe from being answered.

        Raises:
            ProblemError: no connection can be opened.
        """
        slots = [self._slots] if probe or not repeatable else [self._read_slots, self._slots]
        held: list[asyncio.Semaphore] = []
        try:
            for slot in slots:
                await _take_slot(slot)
                held.append(slot)
            upstream = self._take(REUSE if repeatable else REUSE_ONCE)
            if upstream is None:
                upstream = await self._open()
            else:
                upstream.fresh = False
        except BaseException:
            for slot in held:
                slot.release()
            raise
        upstream.slots = held
        upstream.repeatable = repeatable
        upstream.waiting_since = asyncio.get_running_loop().time()
        self._busy.add(upstream)
        self.warm()
        return upstream

    def release(self, upstream: Upstream) -> None:
        """Take a connection back after its exchange; it is closed unless it can serve again."""
        self._busy.discard(upstream)
        for slot in upstream.slots:
            slot.release()
        if upstream.http.reusable and not upstream.http.spoilt and upstream.owner.alive:
            upstream.http.next_message()
            upstream.served += 1
            upstream.idle_since = asyncio.get_running_loop().time()
            self._idle.append(upstream)
        else:
            upstream.http.abort()

    @property
    def waiting_since(self) -> float | None:
        """Loop time of the oldest request that may be repeated and has had no answer yet."""
        times = [
            one.waiting_since
            for one in self._busy
            if one.repeatable and one.waiting_since is not None
        ]
        return min(times, default=None)

    def running_without(self, owner: Connection | None) -> int:
        """Return how many requests run over other connections than `owner`."""
        return sum(one.owner is not owner for one in self._busy)

    def warm(self) -> None:
        """See to it that a spare is open, in the background."""
        if self._warming is None and self._spares() < SPARE:
            self._warming = asyncio.ensure_future(self._warm())

    def abandon(self, owner: Connection, *, running: bool = True) -> None:
        """Drop what runs over `owner`, except requests that must not be sent again.

        Those may still be answered, if the connection below them recovers.

        Args:
            owner: the connection below.
            running: whether requests that run are dropped too, or only what is idle.
        """
        for upstream in [one for one in self._idle if one.owner is owner]:
            self._idle.remove(upstream)
            upstream.http.abort()
        if not running:
            return
        for upstream in [one for one in self._busy if one.owner is owner and one.repeatable]:
            upstream.http.abort()
        for opening in tuple(self._opening):
            opening.cancel()

    def close(self) -> None:
        """Close everything."""
        if self._warming is not None:
            self._warming.cancel()
        for upstream in (*self._idle, *self._busy):
            upstream.http.abort()
        self._idle.clear()

    def _spares(self) -> int:
        return sum(1 for upstream in self._idle if not upstream.served)

    def _take(self, reuse: float) -> Upstream | None:
        """Return the idle connection used last that is young enough; drop those past use."""
        now = asyncio.get_running_loop().time()
        kept: list[Upstream] = []
        for upstream in self._idle:
            age = REUSE if upstream.served else self._spare_age
            if upstream.http.spoilt or now - upstream.idle_since > age:
                upstream.http.abort()
            else:
                kept.append(upstream)
        self._idle = kept
        for index in range(len(kept) - 1, -1, -1):
            if not kept[index].served or now - kept[index].idle_since <= reuse:
                return kept.pop(index)
        return None

    async def _open(self) -> Upstream:
        opening = asyncio.ensure_future(self._open_one())
        self._opening.add(opening)
        try:
            http, owner = await opening
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ProblemError("link_lost", "The connection was given up.") from None
        finally:
            self._opening.discard(opening)
        return Upstream(http, owner, asyncio.get_running_loop().time())

    async def _warm(self) -> None:
        try:
            upstream = await self._open()
        except ProblemError as exc:
            _log.debug("no spare", extra={"problem": exc.problem})
        else:
            self._idle.insert(0, upstream)
        finally:
            self._warming = None


async def _take_slot(slots: asyncio.Semaphore) -> None:
    """Take one of `slots`, waiting for `SLOT_WAIT` seconds where there is none."""
    if not slots.locked():
        await slots.acquire()
        return
    try:
        async with asyncio.timeout(SLOT_WAIT):
            await slots.acquire()
    except TimeoutError as exc:
        raise ProblemError("busy", "Too many requests are running.") from exc
