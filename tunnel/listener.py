"""Serving local clients, whatever the paths do: it belongs to the process, not to a connection.

Each local connection is served by one task: read a request, check who sends it, hand it to an
`Exchange`, and answer in words where that fails. Connections come from `sockets.Listening`, or
from this very process (`bridge.endpoint`).
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import h11

from . import guard, mcp
from .choice import Paths
from .exchange import ClientGoneError, Exchange
from .hold import Hold
from .http import ConnectionGoneError, HttpConnection
from .problems import Problem, ProblemError
from .request import Request, read_request
from .settings import Settings

HEAD_PAUSE = 30.0  # seconds that a client may take for a request's head once it has begun
IDLE = 3600.0  # seconds that a kept connection may stay silent
LINGER = 2.0  # seconds that what nobody wants is still read, before the connection is closed
GRACE = 5.0  # seconds that running requests are given when the tunnel stops

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Counters:
    """What went through since the start."""

    requests: int = 0
    running: int = 0
    answered: int = 0
    problems: dict[str, int] = field(default_factory=dict)

    def count(self, problem: Problem) -> None:
        """Count an answer that told a problem."""
        self.problems[problem.code] = self.problems.get(problem.code, 0) + 1


class Listener:
    """Serves local clients."""

    def __init__(self, settings: Settings, paths: Paths) -> None:
        self._settings = settings
        self._paths = paths
        self._tasks: dict[asyncio.Task[None], _Client] = {}
        self._stopping = False
        self.hold = Hold(settings.hold)
        self.counters = Counters()

    def accept(self) -> HttpConnection:
        """Return the protocol for one more local connection, and serve it."""
        connection = _Client()
        task = asyncio.ensure_future(self._serve(connection))
        connection.task = task
        self._tasks[task] = connection
        task.add_done_callback(self._tasks.pop)
        return connection

    async def stop(self, grace: float = GRACE) -> None:
        """Take nothing new, let running requests finish for `grace` seconds, then cut the rest."""
        self._stopping = True
        for task, client in self._tasks.items():
            exchange = client.exchange
            if exchange is None or exchange.standing or exchange.waiting:
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)

    async def _serve(self, client: "_Client") -> None:
        """Serve one local connection to its end."""
        try:
            while not self._stopping:
                received = await self._next_head(client)
                await self._handle(received, client)
                if not client.reusable:
                    await client.linger(LINGER)
                    break
                client.next_message()
            client.close()
        except ConnectionGoneError:
            client.close()
        except ClientGoneError:
            client.abort()  # an answer cut short must not look whole
        except asyncio.CancelledError:
            self._cut(client)
            raise
        except h11.RemoteProtocolError as exc:
            self._refuse(client, exc)
            await client.linger(LINGER)
            client.close()
        except Exception:  # noqa: BLE001  whatever a defect is, no client may be left hanging
            _log.exception("defect")
            client.abort()

    async def _next_head(self, client: "_Client") -> h11.Request:
        """Return the next request's head; its client may idle before it, but not inside it."""
        loop = asyncio.get_running_loop()
        begun = client.spoilt  # a pipelined head may have begun already

        def begin() -> None:
            nonlocal begun
            begun = True
            deadline.reschedule(loop.time() + HEAD_PAUSE)

        try:
            async with asyncio.timeout(HEAD_PAUSE if begun else IDLE) as deadline:
                client.on_data = begin
                event = await client.receive()
        except TimeoutError as exc:
            if begun:
                text = f"The request's head did not end within {HEAD_PAUSE:g} s."
                self._answer(client, Problem("request_slow", text), None)
            raise ClientGoneError from exc
        finally:
            client.on_data = None
        if not isinstance(event, h11.Request):
            raise ConnectionGoneError
        return event

    async def _handle(self, received: h11.Request, client: "_Client") -> None:
        counters = self.counters
        counters.requests += 1
        counters.running += 1
        client.method = received.method
        loop = asyncio.get_running_loop()
        began = loop.time()
        request: Request | None = None
        problem: Problem | None = None
        try:
            problem = guard.check(received.headers, self._settings.allowed_origins)
            if problem is None and received.method == b"CONNECT":
                problem = Problem("method_refused", "CONNECT is not served here.")
            if problem is None:
                request = await read_request(received, client)
                client.exchange = Exchange(
                    request, client, self._paths, self.hold, self._settings.silence
                )
                await client.exchange.run()
                counters.answered += 1
        except ProblemError as exc:
            problem = exc.problem
        except (ConnectionGoneError, ClientGoneError, h11.RemoteProtocolError):
            raise
        except asyncio.CancelledError:
            exchange = client.exchange
            if self._stopping and request and exchange and not exchange.begun:
                self._answer(client, exchange.if_stopped(), request.message)
            raise
        except Exception:  # noqa: BLE001  a defect must cost one request, not the tunnel
            _log.exception("defect")
            if client.exchange is not None and client.exchange.begun:
                raise ClientGoneError from None
            problem = Problem("internal_error", "The tunnel failed on this request.")
        finally:
            counters.running -= 1
            exchange, client.exchange = client.exchange, None
            if problem is not None:
                counters.count(problem)
            level = logging.DEBUG if problem is None else logging.WARNING
            if _log.isEnabledFor(level):
                facts = {
                    "what": request.name if request else received.method.decode("ascii"),
                    "status": problem.status if problem else exchange.status if exchange else 0,
                    "seconds": round(loop.time() - began, 4),
                    "problem": problem,
                }
                _log.log(level, "request", extra=facts)
        if problem is not None:
            self._answer(client, problem, request.message if request else None)

    def _answer(self, client: "_Client", problem: Problem, message: mcp.Message | None) -> None:
        """Answer with `problem`; the connection ends where the request was not read to its end."""
        body = mcp.error(problem, message)
        headers = [
            (b"Content-Type", b"application/json"),
            (b"Content-Length", b"%d" % len(body)),
            (b"Cache-Control", b"no-store"),
        ]
        if problem.status == 503:
            headers.append((b"Retry-After", b"5"))
        if client.state.their_state is not h11.DONE or self._stopping:
            headers.append((b"Connection", b"close"))
        head = h11.Response(
            status_code=problem.status, headers=headers, reason=_REASONS[problem.status]
        )
        content = [] if client.method == b"HEAD" else [h11.Data(data=body)]
        client.write(head, *content, h11.EndOfMessage())

    def _refuse(self, client: "_Client", exc: h11.RemoteProtocolError) -> None:
        """Answer what is not HTTP/1.1, without echoing any of it."""
        if client.state.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            client.abort()
            return
        too_large = exc.error_status_hint == 431
        problem = (
            Problem("headers_too_large", "The header fields are longer than 64 KiB.")
            if too_large
            else Problem("request_invalid", "That is not an HTTP/1.1 request.")
        )
        self.counters.count(problem)
        try:
            self._answer(client, problem, None)
        except (ConnectionGoneError, h11.LocalProtocolError):
            client.abort()

    def _cut(self, client: "_Client") -> None:
        """End a connection whose task was cancelled: its client left, or the tunnel stops."""
        if client.state.our_state is h11.SEND_BODY:
            client.abort()
        else:
            client.close()


class _Client(HttpConnection):
    """A local connection; a client that leaves while it is served cancels what runs for it."""

    def __init__(self) -> None:
        super().__init__("server")
        self.task: asyncio.Task[None] | None = None
        self.exchange: Exchange | None = None
        self.method = b""
        self.on_data: Callable[[], None] | None = None
        """Called when the first bytes of a request arrive."""
        self.on_gone = self._left

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.on_data is not None:
            self.on_data()
            self.on_data = None

    def _left(self) -> None:
        if self.exchange is not None and self.task is not None:
            self.task.cancel()


_REASONS = {
    400: b"Bad Request",
    403: b"Forbidden",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
