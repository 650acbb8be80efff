"""A way in of its own, made with given keys and no others, for questions about just those keys.

What requests of clients take is kept up elsewhere (`paths`); this one is fresh, and closed when
the questions are answered.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

import h11

from keys.pointer import Family

from .. import https, ssh
from ..http import ConnectionGoneError, HttpConnection
from ..link import Connection
from ..problems import ProblemError
from ..settings import Address, Settings
from ..tokens import Clock, Ruling, Tokens, Verdict

ANSWER = 15.0  # seconds for an answer; the registrar issues certificates, and writes to the disk
SIZE = 1 << 20  # bytes of an answer
HEALTH = b"/health"

_BEHIND = frozenset({"target_refused", "upstream_closed"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and what it means for the request."""

    status: int
    body: bytes
    verdict: Verdict


class WayIn:
    """One connection to the droplet, and the credentials that go with it."""

    def __init__(
        self,
        connection: Connection,
        target: Address,
        tokens: Callable[[], Tokens] | None,
        base: bytes = b"",
        host: bytes | None = None,
    ) -> None:
        self._connection = connection
        self._target = target
        self._tokens = tokens
        self._base = base
        self._host = host
        self.site_ends: float | None = None
        """When NGINX's own certificate ends (seconds since the epoch), where it was seen."""

    async def ask(
        self, method: str, target: bytes, body: bytes = b"", kind: str | None = None
    ) -> Answer:
        """Send one request and return its answer; a wrong clock is corrected on the way.

        Raises:
            ProblemError: none came.
        """
        answer = await self._ask(method, target, body, kind)
        if answer.verdict.ruling is Ruling.ANEW:
            answer = await self._ask(method, target, body, kind)
        return answer

    async def prove(self) -> None:
        """See a request go to the service and back, or to where the service should be.

        Raises:
            ProblemError: why it does not.
        """
        try:
            problem = (await self.ask("GET", HEALTH)).verdict.problem
        except ProblemError as exc:
            problem = exc.problem
        if problem is not None and problem.code not in _BEHIND:
            raise ProblemError(problem.code, problem.message)

    async def _ask(self, method: str, target: bytes, body: bytes, kind: str | None) -> Answer:
        fields = [(b"Host", self._host or str(self._target).encode())]
        if body:
            fields.append((b"Content-Length", str(len(body)).encode()))
        if kind is not None:
            fields.append((b"Content-Type", kind.encode()))
        head = h11.Request(method=method.encode(), target=target, headers=fields)
        tokens = None if self._tokens is None else self._tokens()
        if tokens is not None:
            head = tokens.dress(head, self._base, self._host)
        http = await self._connection.open(lambda: HttpConnection("client"), self._target)
        try:
            async with asyncio.timeout(ANSWER):
                told, content = await _exchange(http, head, body)
        except TimeoutError as exc:
            text = f"No answer has come within {ANSWER:g} s."
            raise ProblemError("upstream_silent", text) from exc
        except ConnectionGoneError as exc:
            raise ProblemError("link_lost", "The connection ended before the answer.") from exc
        except h11.RemoteProtocolError as exc:
            raise ProblemError("upstream_invalid", "The answer is not HTTP/1.1.") from exc
        finally:
            http.abort()
        verdict = Verdict(Ruling.PASS) if tokens is None else tokens.judge(told)
        return Answer(told.status_code, content, verdict)


async def _exchange(
    http: HttpConnection, head: h11.Request, body: bytes
) -> tuple[h11.Response, bytes]:
    http.write(head, *([h11.Data(data=body)] if body else []), h11.EndOfMessage())
    told: h11.Response | None = None
    content = b""
    while not isinstance(event := await http.receive(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            told = event
        elif isinstance(event, h11.Data):
            content += event.data
            if len(content) > SIZE:
                raise ProblemError("upstream_invalid", "The answer is too large.")
    if told is None:
        raise ConnectionGoneError
    return told, content


@contextlib.asynccontextmanager
async def way_in(settings: Settings, name: str, clock: Clock) -> AsyncIterator[WayIn]:
    """Come in by the path `name`, with the keys that the settings name.

    Raises:
        ProblemError: why that fails.
    """
    if name == "https" and settings.https is not None:
        session = await https.connect(settings.https, clock)
        host = settings.https.authority.encode("ascii")
        where = Address(settings.https.host, settings.https.port)
        way = WayIn(session, where, lambda: session.tokens, settings.https.base, host)
        way.site_ends = session.site_ends
        try:
            yield way
        finally:
            session.abort()
        return
    carrier = await ssh.connect(settings.ssh)
    try:
        tokens: Callable[[], Tokens] | None = None
        if settings.ssh.gateway and settings.https is not None:
            made = https.load_tokens(settings.https, clock, None)
            tokens = lambda: made  # noqa: E731
        yield WayIn(carrier, settings.ssh.target, tokens)
    finally:
        carrier.abort()


def gateway_paths(settings: Settings) -> list[str]:
    """Return the paths of the settings that have the gateway behind them."""
    return [
        name
        for name in settings.paths
        if settings.https is not None and (name == "https" or settings.ssh.gateway)
    ]


def paths_for(settings: Settings, families: Collection[Family]) -> list[str]:
    """Return the paths that keys of these families are used on."""
    wanted = set()
    if "ssh" in families:
        wanted.add("ssh")
    if "token" in families:
        wanted |= set(gateway_paths(settings))
    if "cert" in families:
        wanted.add("https")
    return [name for name in settings.paths if name in wanted]
