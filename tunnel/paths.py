"""A path is a way to the service at the level of HTTP: connections, and whether they get through.

The ssh path runs over channels of an SSH connection, the https path over TLS; what they have in
common is here. Health is that of the whole way: a link may be up while nothing answers behind it,
so a probe, a request to the service and back, decides.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11

from .http import ConnectionGoneError, HttpConnection
from .link import Connection, Link
from .pool import Pool, Upstream
from .problems import Problem, ProblemError
from .settings import Address
from .tokens import Ruling, Tokens, Verdict

_log = logging.getLogger(__name__)

PROBE_EVERY = 30.0  # seconds between probes
PROBE_SOON = 2.0  # seconds to the next one after one that was not answered
PROBE_DEADLINE = 5.0  # seconds for an answer
PROBE_TARGET = b"/health"
STALL = 1.5  # seconds that a read may wait before the path is asked for a sign of life
STALL_DEADLINE = 2.5  # seconds that it is then given
LOOK = 0.5  # seconds between looks for such reads
SILENT_AGE = 8.0  # seconds


@dataclass(frozen=True, slots=True)
class Health:
    """What the last probe found."""

    answered: bool
    latency: float | None  # seconds there and back
    status: int | None  # of HTTP
    problem: Problem | None


class Path:
    """The service as it is reached through one link.

    Args:
        name: what people call it.
        link: what it runs over.
        target: the address that its connections are opened to.
        tokens: returns the credentials for a connection, where a gateway is behind it.
        base: what the service's paths are below, over there.
        host: what to say in Host, or None to leave it as the client said it.
    """

    def __init__(
        self,
        name: str,
        link: Link,
        target: Address,
        tokens: Callable[[Any], Tokens] | None = None,
        base: bytes = b"",
        host: bytes | None = None,
    ) -> None:
        self.name = name
        self.link = link
        self.target = target
        self._tokens = tokens
        self._base = base
        self._host = host
        # Whoever is in front of a gateway has less patience with a connection that says nothing.
        self.pool = Pool(self._open) if tokens is None else Pool(self._open, SILENT_AGE)
        self.health = Health(False, None, None, None)
        self.good_since: float | None = None
        """Loop time since when every probe was answered, or None."""
        self.on_bad: Callable[[], None] | None = None
        """Called when a probe was not answered."""
        self._answered = asyncio.Event()
        self._told: str | None = None
        link.on_lost.append(self._lost)

    @property
    def up(self) -> bool:
        """Whether a request may be sent now."""
        return self.link.connection is not None and self.link.connection.alive

    @property
    def problem(self) -> Problem | None:
        """Why it is not up, or what the last probe met."""
        return self.link.problem or self.health.problem

    async def ready(self) -> None:
        """Wait until the path is up."""
        await self.link.ready()

    def lost(self, upstream: Upstream) -> bool:
        """Return whether `upstream` ended with what is below it, and not by the service's will.

        What ends an https connection without an answer is the network or NGINX: the gateway, which
        stands between, answers for a service that hangs up.
        """
        if self._host is not None:
            self.link.look()
            return True
        return not upstream.owner.alive or self.link.doubted

    def _lost(self, connection: Connection) -> None:
        taken_over = self.link.connection is not None
        if not taken_over:
            self.good_since = None
        self.pool.abandon(connection, running=not taken_over)

    async def _open(self) -> tuple[HttpConnection, Connection]:
        connection = self.link.connection
        if connection is None:
            raise ProblemError("link_lost", "The link is down.")
        try:
            http = await connection.open(lambda: HttpConnection("client"), self.target)
        except ProblemError as exc:
            if exc.problem.code == "target_refused" and self._tokens is not None:
                text = "Nothing listens where the gateway should."
                raise ProblemError("gateway_down", text) from exc
            raise
        return http, connection

    # Credentials

    def dress(self, head: h11.Request, upstream: Upstream) -> h11.Request:
        """Return `head` as it is sent on `upstream`."""
        if self._tokens is None:
            return head
        return self._tokens(upstream.owner).dress(head, self._base, self._host)

    def judge(self, answer: h11.Response, upstream: Upstream) -> Verdict:
        """Return what an answer on `upstream` means for the request."""
        if self._tokens is None:
            return _PASS
        verdict = self._tokens(upstream.owner).judge(answer)
        if verdict.problem is not None and verdict.problem.code in _SHUT:
            self.good_since = None
            upstream.owner.drop()
        return verdict

    # Health

    async def probe(self, deadline: float = PROBE_DEADLINE) -> Health:
        """Ask the service for a sign of life and return what came of it, within the deadline."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(deadline):
                status = await self._ask()
        except ProblemError as exc:
            self.health = Health(False, None, None, exc.problem)
        except TimeoutError:
            text = f"Nothing came back within {deadline:g} s."
            self.health = Health(False, None, None, Problem("upstream_silent", text))
            self.link.look()
        except ConnectionGoneError:
            text = "The connection ended while it was probed."
            self.health = Health(False, None, None, Problem("upstream_closed", text))
            self.link.look()
        except h11.RemoteProtocolError:
            text = f"What listens on {self.target} does not speak HTTP."
            self.health = Health(False, None, None, Problem("upstream_invalid", text))
        else:
            self.health = Health(True, loop.time() - began, status, None)
        if not self.health.answered:
            self.good_since = None
            if self.on_bad is not None:
                self.on_bad()
            return self.health
        if self.good_since is None:
            self.good_since = loop.time()
        self._answered.set()
        self._answered.clear()
        return self.health

    async def answered(self) -> None:
        """Wait until a probe is answered."""
        await self._answered.wait()

    async def _ask(self) -> int:
        if self.link.connection is None:
            raise ProblemError("link_lost", "The link is down.")
        again = True
        while True:
            upstream = await self.pool.acquire(repeatable=True, probe=True)
            try:
                answer = await self._exchange(upstream)
            finally:
                self.pool.release(upstream)
            verdict = self.judge(answer, upstream)
            if verdict.problem is None:
                return answer.status_code
            if verdict.ruling is not Ruling.ANEW or not again:
                raise ProblemError(verdict.problem.code, verdict.problem.message)
            again = False

    async def _exchange(self, upstream: Upstream) -> h11.Response:
        host = self._host or str(self.target).encode()
        head = h11.Request(method=b"GET", target=PROBE_TARGET, headers=[(b"Host", host)])
        upstream.http.write(self.dress(head, upstream), h11.EndOfMessage())
        answer: h11.Response | None = None
        while not isinstance(event := await upstream.http.receive(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                answer = event
        if answer is None:
            raise ConnectionGoneError
        return answer

    async def upkeep(self) -> None:
        """Probe each time the link comes up, and every so often, until cancelled."""
        while True:
            seen = await self.link.ready()
            self._tell(await self.probe())
            self.pool.warm()
            await self._quiet(seen)

    async def _quiet(self, connection: Connection) -> None:
        """Return when it is time for the next probe."""
        loop = asyncio.get_running_loop()
        probed = loop.time()
        due = probed + (PROBE_EVERY if self.health.answered else PROBE_SOON)
        while (now := loop.time()) < due:
            await asyncio.wait({connection.lost}, timeout=min(LOOK, due - now))  # leaves it alone
            if connection.lost.done() or self.link.connection is not connection:
                return
            waiting = self.pool.waiting_since
            if waiting is not None and loop.time() - max(waiting, probed) >= STALL:
                self._tell(await self.probe(STALL_DEADLINE))
                probed = loop.time()
                if not self.health.answered:
                    due = min(due, probed + PROBE_SOON)

    def _tell(self, health: Health) -> None:
        """Log what a probe found, where it is news."""
        code = health.problem.code if health.problem else ""
        if code == self._told:
            return
        self._told = code
        if health.problem is None:
            _log.info("service answers", extra={"path": self.name, "status": health.status})
        else:
            _log.warning(
                "service does not answer", extra={"path": self.name, "problem": health.problem}
            )

    def close(self) -> None:
        """Close all its connections."""
        self.pool.close()


_PASS = Verdict(Ruling.PASS)

_SHUT = frozenset(
    {
        "certificate_refused",
        "gateway_busy",
        "gateway_down",
        "gateway_missing",
        "link_lost",
        "token_refused",
    }
)
"""What a gateway's door says while it lets nothing of ours through."""
