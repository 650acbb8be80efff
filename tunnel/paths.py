"""A path is a way to the service at the level of HTTP: connections, and whether they get through.

The ssh path runs them over channels of the link. Its health is that of the whole way: a link may
be up while nothing answers behind it, so a probe, a request to the service and back, decides.
"""

import asyncio
import logging
from dataclasses import dataclass

import h11

from .http import ConnectionGoneError, HttpConnection
from .link import Connection, Link
from .pool import Pool, Upstream
from .problems import Problem, ProblemError
from .settings import Address

_log = logging.getLogger(__name__)

PROBE_EVERY = 30.0  # seconds between probes
PROBE_DEADLINE = 5.0  # seconds for an answer
PROBE_TARGET = b"/health"


@dataclass(frozen=True, slots=True)
class Health:
    """What the last probe found."""

    answered: bool
    latency: float | None  # seconds there and back
    status: int | None  # of HTTP
    problem: Problem | None


class SshPath:
    """The service as it is reached through the link."""

    name = "ssh"

    def __init__(self, link: Link, target: Address) -> None:
        self.link = link
        self.target = target
        self.pool = Pool(self._open)
        self.health = Health(False, None, None, None)
        self._told: str | None = None
        link.on_lost.append(self.pool.abandon)

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
        """Return whether the SSH connection below `upstream` has been given up."""
        return not upstream.owner.alive

    async def _open(self) -> tuple[HttpConnection, Connection]:
        connection = self.link.connection
        if connection is None:
            raise ProblemError("link_lost", "The link is down.")
        http = await connection.open(lambda: HttpConnection("client"), self.target)
        return http, connection

    async def probe(self) -> Health:
        """Ask the service for a sign of life and return what came of it, within the deadline."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(PROBE_DEADLINE):
                status = await self._ask()
        except ProblemError as exc:
            self.health = Health(False, None, None, exc.problem)
        except TimeoutError:
            text = f"Nothing came back within {PROBE_DEADLINE:g} s."
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
        return self.health

    async def _ask(self) -> int:
        if self.link.connection is None:
            raise ProblemError("link_lost", "The link is down.")
        upstream = await self.pool.acquire(repeatable=True)
        try:
            host = str(self.target).encode()
            upstream.http.write(
                h11.Request(method=b"GET", target=PROBE_TARGET, headers=[(b"host", host)]),
                h11.EndOfMessage(),
            )
            status = 0
            while True:
                match await upstream.http.receive():
                    case h11.Response(status_code=status):
                        pass
                    case h11.EndOfMessage():
                        return status
        finally:
            self.pool.release(upstream)

    async def upkeep(self) -> None:
        """Probe each time the link comes up, and every `PROBE_EVERY` seconds, until cancelled."""
        while True:
            seen = await self.link.ready()
            self._tell(await self.probe())
            self.pool.warm()
            await asyncio.wait({seen.lost}, timeout=PROBE_EVERY)  # which leaves `lost` alone

    def _tell(self, health: Health) -> None:
        """Log what a probe found, where it is news."""
        code = health.problem.code if health.problem else ""
        if code == self._told:
            return
        self._told = code
        if health.problem is None:
            _log.info("service answers", extra={"status": health.status})
        else:
            _log.warning("service does not answer", extra={"problem": health.problem})

    def close(self) -> None:
        """Close all its connections."""
        self.pool.close()
