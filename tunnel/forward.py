"""A raw forward: TCP in here, TCP out over there, for what is not HTTP.

The local address outlives the link. A connection that comes while the link is down waits, unread,
within the same bound of time as a request. Ends pass on one direction at a time, as TCP has it.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import cast

from .http import reset_on_close
from .link import Connection, Link
from .problems import Problem, ProblemError
from .settings import ForwardRule
from .sockets import Listening

BUFFER = 1 << 20  # bytes written and not yet taken, after which the other side is paused
LIMIT = 512  # connections at a time; sshd keeps a file descriptor for each
SPARES = 2  # channels opened ahead: while one is taken up, the next is a round trip away
SPARE_AGE = 30.0  # seconds that a channel opened ahead of need is kept

_log = logging.getLogger(__name__)


class _End(asyncio.Protocol):
    """One end of a forwarded connection; what it receives goes to its peer."""

    def __init__(self, on_made: Callable[["_End"], None] | None = None) -> None:
        self._early = b""
        self.on_made = on_made
        self.peer: _End | None = None
        self.transport: asyncio.Transport | None = None
        self.ended = False
        self.lost = False
        self.on_lost: Callable[[], object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(BUFFER)
        if self.on_made is not None:
            self.on_made(self)

    def join(self, peer: "_End") -> None:
        """Connect two ends: each gets what the other has received so far, and what will come."""
        self.peer, peer.peer = peer, self
        for end in (self, peer):
            early, end._early = end._early, b""
            if early:
                end.data_received(early)
            if end.ended:
                end.eof_received()
            if end.lost:
                end._pass_on_loss(None)
            elif end.transport is not None:
                end.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.peer is None:
            self._early += data
            if self.transport is not None:
                self.transport.pause_reading()  # until there is somebody to read for
        elif self.peer.transport is not None:
            self.peer.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.peer is not None and self.peer.transport is not None:
            with contextlib.suppress(OSError):
                self.peer.transport.write_eof()
        return self.peer is None or not self.peer.ended

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self.on_lost is not None:
            self.on_lost()
        self._pass_on_loss(exc)

    def _pass_on_loss(self, exc: Exception | None) -> None:
        peer = self.peer
        if peer is None or peer.transport is None or peer.lost:
            return
        if self.ended and exc is None:
            peer.transport.close()
        else:
            peer.break_off()  # a break stays a break on the other side

    def break_off(self) -> None:
        """Close so that the other side sees a break and not an end."""
        if self.transport is not None:
            if self.on_made is not None:  # a local end, over TCP
                reset_on_close(self.transport)
            self.transport.abort()

    def pause_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.lost:
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.lost:
            self.peer.transport.resume_reading()


class Forward:
    """Serves one [[forward]]."""

    def __init__(self, rule: ForwardRule, link: Link, hold: float) -> None:
        self._link = link
        self._hold = hold
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(LIMIT)
        self._spares: list[_End] = []
        self._warming: set[asyncio.Task[None]] = set()
        self.rule = rule
        self.listening = Listening(rule.listen, self._accept)
        self.connections = 0
        """Connections accepted since the start."""

    @property
    def open(self) -> int:
        """Connections open now."""
        return len(self._tasks)

    def _accept(self) -> _End:
        return _End(self._begin)

    def _begin(self, local: _End) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(local))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        local.on_lost = task.cancel  # a client that leaves ends whatever is done for it

    async def _serve(self, local: _End) -> None:
        try:
            async with asyncio.timeout(self._hold) as deadline, self._slots:
                far = await self._find()
                deadline.reschedule(None)
                local.join(far)
                self._warm()
                await asyncio.get_running_loop().create_future()  # until `local` is lost
        except TimeoutError:
            self._refuse(local, Problem("hold_expired", f"Down for {self._hold:g} s."))
        except ProblemError as exc:
            self._refuse(local, exc.problem)

    def _refuse(self, local: _End, problem: Problem) -> None:
        _log.warning("forward refused", extra={"forward": self.rule.name, "problem": problem})
        local.break_off()

    async def _find(self) -> _End:
        """Return the far end of a channel to the target, opened ahead of need or now.

        Raises:
            ProblemError: the droplet cannot or may not reach the target.
        """
        while self._spares:
            spare = self._spares.pop()
            if not spare.ended and not spare.lost:
                return spare
        while True:
            connection = await self._link.ready()
            try:
                return await connection.open(_End, self.rule.target)
            except ProblemError as exc:
                if exc.problem.code != "link_lost":
                    raise

    def _warm(self) -> None:
        """Open channels for the next clients, so that they need not wait a round trip for one."""
        while len(self._spares) + len(self._warming) < SPARES:
            task = asyncio.ensure_future(self._open_spare())
            self._warming.add(task)
            task.add_done_callback(self._warming.discard)

    async def _open_spare(self) -> None:
        connection = self._link.connection
        if connection is None:
            return
        try:
            spare = await connection.open(_End, self.rule.target)
        except ProblemError as exc:
            _log.debug("no spare", extra={"forward": self.rule.name, "problem": exc.problem})
        else:
            self._spares.append(spare)
            asyncio.get_running_loop().call_later(SPARE_AGE, self._drop, spare)

    def _drop(self, spare: _End) -> None:
        if spare in self._spares:
            self._spares.remove(spare)
            if spare.transport is not None:
                spare.transport.abort()

    def abandon(self, connection: Connection) -> None:
        """Drop the spares of an SSH connection that was given up; joined ones may recover."""
        for spare in list(self._spares):
            self._drop(spare)

    def stop(self) -> None:
        """Stop accepting and end what is open: nobody can tell when a raw connection is done."""
        self.listening.close()
        for spare in list(self._spares):
            self._drop(spare)
        for task in (*self._tasks, *self._warming):
            task.cancel()
