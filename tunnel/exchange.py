"""Carrying one request to the service and its answer back: never lost, never doubled.

What happens when the connection behind dies depends on what is known at that moment:

    nothing of the request was written            it is sent on another connection
    it is a read, and the client has no answer    the same
    it may change state                           the client is told: outcome unknown
    the answer has begun                          its stream is ended in words, or cut

An answer that is no event stream is passed on from its first byte of content, not from its head:
a service that says "200" and dies can be asked again, or the caller be told in words.
"""

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import dataclass

import h11

from . import mcp
from .choice import Paths
from .hold import Hold
from .http import ConnectionGoneError, HttpConnection, end_to_end, header
from .paths import Path
from .pool import Upstream
from .problems import Problem, ProblemError
from .request import Request
from .sse import StreamTail
from .tokens import Ruling

ATTEMPTS = 20  # a read that outlives no connection is given up


_AWAY = frozenset({"gateway_busy", "gateway_down"})
"""Refusals that nothing was delivered over, and that pass when the gateway is back."""


class ClientGoneError(Exception):
    """The local client left; there is nobody to answer."""


@dataclass(eq=False)
class _Broken(Exception):
    """An attempt ended without an answer."""

    problem: Problem
    by_service: bool = False
    """Whether the service ended it, and not the loss of the link."""
    delivered: bool = True
    """Whether it may have reached the service."""
    elsewhere: bool = False
    """Whether this path will not take it, and only another may."""


class Exchange:
    """One request and its answer."""

    def __init__(
        self, request: Request, client: HttpConnection, paths: Paths, hold: Hold, silence: float
    ) -> None:
        self._request = request
        self._client = client
        self._paths = paths
        self._avoid: set[Path] = set()
        self._renewed: set[Path] = set()
        self._brought_down: set[Path] = set()
        self._refusal: Problem | None = None
        self._hold = hold
        self._silence = silence
        self.begun = False
        """Whether the client has been given the head of an answer."""
        self._tail: StreamTail | None = None
        self.status = 0
        """HTTP status that the client was given."""
        self.standing = False
        """Whether the answer is a stream that the service may keep open for ever."""
        self.waiting = False
        """Whether no path is up and the request waits for one."""
        self._left = False
        self._spoilt = False

    async def run(self) -> None:
        """See the request through to its answer.

        Raises:
            ProblemError: no answer was begun; the caller is to be told this problem.
            ClientGoneError: there is nobody to tell.
        """
        asked_anew = False
        for attempt in itertools.count(1):
            path, upstream = await self._connection()
            try:
                await self._attempt(path, upstream)
                return
            except _Broken as broken:
                if self.begun:
                    self._break_off(broken.problem)
                    return
                self._may_go_on(upstream, broken)
                if attempt == ATTEMPTS:
                    raise ProblemError("link_lost", f"Lost {ATTEMPTS} times over.") from broken
                if broken.elsewhere:
                    self._refused(path, broken.problem)
                elif broken.by_service:
                    # A connection that had waited may have been closed for its age; one that
                    # was opened for this request was closed over it.
                    if asked_anew or upstream.fresh:
                        raise ProblemError(broken.problem.code, broken.problem.message) from broken
                    asked_anew = True
            finally:
                path.pool.release(upstream)

    def _may_go_on(self, upstream: Upstream, broken: _Broken) -> None:
        """Return where the request may be sent again, whatever it does.

        Raises:
            ProblemError: it may not.
        """
        if self._spoilt:
            text = "The request's body is not what its head said."
            raise ProblemError("request_invalid", text) from broken
        untouched = not broken.delivered or upstream.http.written == 0
        if untouched and not self._request.complete:  # its body is half gone
            raise ProblemError(broken.problem.code, broken.problem.message) from broken
        if not untouched and not self._request.repeatable:
            raise ProblemError("outcome_unknown", broken.problem.message) from broken

    def _refused(self, path: Path, problem: Problem) -> None:
        """Take note that `path` did not take the request; the first reason is the one to tell."""
        self._avoid.add(path)
        self._refusal = self._refusal or problem

    def if_stopped(self) -> Problem:
        """Return what the client is to be told when the tunnel stops before the answer began."""
        if self._left and not self._request.repeatable:
            return Problem("outcome_unknown", "The tunnel was stopped.")
        return Problem("stopping", "The tunnel was stopped.")

    async def _connection(self) -> tuple[Path, Upstream]:
        """Return a connection to the service, waiting for a path within the hold's bounds."""
        while True:
            path = self._paths.pick(self._avoid)
            if path is None and self._refusal is not None:
                if self._refusal.code not in _AWAY:
                    raise ProblemError(self._refusal.code, self._refusal.message)
                await self._wait(self._paths.good())
                self._avoid.clear()
                self._refusal = None
                continue
            if path is None:
                await self._wait(self._paths.ready())
                continue
            try:
                return path, await path.pool.acquire(repeatable=self._request.repeatable)
            except ProblemError as exc:
                if exc.problem.code != "link_lost":
                    self._refused(path, exc.problem)

    async def _wait(self, ready: Coroutine[None, None, None]) -> None:
        """Wait for `ready` within the hold's bounds."""
        self.waiting = True
        try:
            await self._hold.wait(ready, len(self._request.body), self._why)
        finally:
            self.waiting = False

    def _why(self) -> Problem | None:
        return self._refusal or self._paths.problem

    async def _attempt(self, path: Path, upstream: Upstream) -> None:
        service = upstream.http
        pump: asyncio.Task[None] | None = None
        head = path.dress(self._request.head, upstream)
        try:
            if self._request.complete:
                body = [h11.Data(data=self._request.body)] if self._request.body else []
                service.write(head, *body, h11.EndOfMessage())
            else:
                service.write(head)
                pump = asyncio.ensure_future(self._pump(service))
            self._left = True
            answer = await self._answer(service)
            upstream.waiting_since = None
            self._weigh(path, upstream, answer)
            await self._relay(service, answer)
        except ConnectionGoneError as exc:
            raise self._broken(path, upstream) from exc
        except h11.RemoteProtocolError as exc:
            if service.ended:
                raise self._broken(path, upstream) from exc
            problem = Problem("upstream_invalid", "The service's answer is not HTTP/1.1.")
            raise _Broken(problem, by_service=True) from exc
        finally:
            if pump is not None:
                pump.cancel()

    def _weigh(self, path: Path, upstream: Upstream, answer: h11.Response) -> None:
        """Return where `answer` is for the client."""
        verdict = path.judge(answer, upstream)
        if verdict.problem is None:
            return
        match verdict.ruling:
            case Ruling.ANEW if path not in self._renewed:
                self._renewed.add(path)
                raise _Broken(verdict.problem, delivered=False)
            case ruling:
                # Where the path has gone down over it, it may be waited for; but only once, since
                # it may be this very request that brings it down.
                elsewhere = path.up or path in self._brought_down
                self._brought_down.add(path)
                delivered = ruling is Ruling.BROKEN
                raise _Broken(verdict.problem, delivered=delivered, elsewhere=elsewhere)

    def _broken(self, path: Path, upstream: Upstream) -> _Broken:
        if path.lost(upstream):
            return _Broken(Problem("link_lost", "The link was lost."))
        text = "The service closed the connection before it answered."
        return _Broken(Problem("upstream_closed", text), by_service=True)

    async def _pump(self, service: HttpConnection) -> None:
        """Send the body on as the client sends it; stop where either side ends."""
        client = self._client
        try:
            if self._request.body:
                service.write(h11.Data(data=self._request.body))
                await service.drain()
            if client.state.they_are_waiting_for_100_continue:
                client.write(
                    h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                )
            while not isinstance(event := await client.receive(), h11.EndOfMessage):
                service.write(event)
                await service.drain()
            service.write(event)
        except ConnectionGoneError:
            return  # whoever is gone, the answering half notices and decides
        except (h11.RemoteProtocolError, h11.LocalProtocolError):
            self._spoilt = True
            service.abort()  # a body cut short must not reach the service as a whole one

    async def _answer(self, service: HttpConnection) -> h11.Response:
        """Return the head of the final answer; interim ones are passed on."""
        try:
            async with asyncio.timeout(self._silence):
                while True:
                    event = await service.receive()
                    if isinstance(event, h11.Response):
                        return event
                    if isinstance(event, h11.InformationalResponse) and event.status_code != 100:
                        self._tell(event)
        except TimeoutError as exc:
            text = f"The service has not answered for {self._silence:g} s."
            raise ProblemError("upstream_silent", text) from exc

    async def _relay(self, service: HttpConnection, answer: h11.Response) -> None:
        streams = header(answer.headers, b"content-type").startswith(b"text/event-stream")
        message = self._request.message
        self.standing = streams and (message is None or message.name == mcp.LISTEN)
        if streams:
            self._tail = StreamTail(message.ids if message else ())
        self.status = answer.status_code
        head = h11.Response(
            status_code=answer.status_code,
            headers=end_to_end(answer.headers.raw_items()),
            reason=answer.reason,
        )
        waiting: list[h11.Event] = [head]
        if streams and (self.standing or not self._request.repeatable):
            self._tell(*waiting)
            waiting.clear()
        while True:
            event = await service.receive()
            self._tell(*waiting, event)
            waiting.clear()
            if isinstance(event, h11.EndOfMessage):
                return
            if self._tail is not None and isinstance(event, h11.Data):
                self._tail.feed(event.data)
            try:
                await self._client.drain()
            except ConnectionGoneError as exc:
                raise ClientGoneError from exc

    def _tell(self, *events: h11.Event) -> None:
        if self._client.speaks_1_0:  # it knows neither interim answers nor trailers
            events = tuple(
                h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event
                for event in events
                if not isinstance(event, h11.InformationalResponse)
            )
            if not events:
                return
        try:
            self._client.write(*events)
        except (ConnectionGoneError, h11.LocalProtocolError) as exc:
            raise ClientGoneError from exc  # gone, or out of step: both end with a reset
        self.begun = self.begun or not isinstance(events[0], h11.InformationalResponse)

    def _break_off(self, problem: Problem) -> None:
        """End an answer that has begun, so that the client knows it is not whole."""
        tail = self._tail
        if tail is None or not tail.between_events:
            self._client.abort()
            return
        closing: list[h11.Event] = []
        if tail.unanswered:
            if not self._request.repeatable:
                problem = Problem("outcome_unknown", problem.message)
            told = mcp.error(problem, self._request.message)
            closing.append(h11.Data(data=b"event: message\ndata: " + told + b"\n\n"))
        self._tell(*closing, h11.EndOfMessage())
