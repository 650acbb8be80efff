"""Carrying one request to the service and its answer back: never lost, never doubled.

What happens when the connection behind dies depends on what is known at that moment:

    nothing of the request was written            it is sent on another connection
    it is a read, and the client has no answer    the same
    it may change state                           the client is told: outcome unknown
    the answer has begun                          its stream is ended in words, or cut

A read's answer is passed on from its first byte of content, not from its head, so that a service
that says "200" and dies can be asked again.
"""

import asyncio
import itertools
from dataclasses import dataclass

import h11

from . import mcp
from .hold import Hold
from .http import ConnectionGoneError, HttpConnection, end_to_end, header
from .paths import SshPath
from .pool import Upstream
from .problems import Problem, ProblemError
from .request import Request
from .sse import StreamTail

ATTEMPTS = 20  # a read that outlives no connection is given up


class ClientGoneError(Exception):
    """The local client left; there is nobody to answer."""


@dataclass(eq=False)
class _Broken(Exception):
    """An attempt ended without an answer."""

    problem: Problem
    by_service: bool
    """Whether the service ended it, and not the loss of the link."""


class Exchange:
    """One request and its answer."""

    def __init__(
        self, request: Request, client: HttpConnection, path: SshPath, hold: Hold, silence: float
    ) -> None:
        self._request = request
        self._client = client
        self._path = path
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
            upstream = await self._connection()
            try:
                await self._attempt(upstream)
                return
            except _Broken as broken:
                if self.begun:
                    self._break_off(broken.problem)
                    return
                if self._spoilt:
                    text = "The request's body is not what its head said."
                    raise ProblemError("request_invalid", text) from broken
                untouched = self._request.complete and upstream.http.written == 0
                if not untouched and not self._request.repeatable:
                    raise ProblemError("outcome_unknown", broken.problem.message) from broken
                if attempt == ATTEMPTS:
                    raise ProblemError("link_lost", f"Lost {ATTEMPTS} times over.") from broken
                if broken.by_service:
                    # A connection that had waited may have been closed for its age; one that
                    # was opened for this request was closed over it.
                    if asked_anew or upstream.fresh:
                        raise ProblemError(broken.problem.code, broken.problem.message) from broken
                    asked_anew = True
            finally:
                self._path.pool.release(upstream)

    def if_stopped(self) -> Problem:
        """Return what the client is to be told when the tunnel stops before the answer began."""
        if self._left and not self._request.repeatable:
            return Problem("outcome_unknown", "The tunnel was stopped.")
        return Problem("stopping", "The tunnel was stopped.")

    async def _connection(self) -> Upstream:
        """Return a connection to the service, waiting for a path within the hold's bounds."""
        while True:
            if not self._path.up:
                size = len(self._request.body)
                self.waiting = True
                try:
                    await self._hold.wait(self._path.ready(), size, lambda: self._path.problem)
                finally:
                    self.waiting = False
            try:
                return await self._path.pool.acquire(repeatable=self._request.repeatable)
            except ProblemError as exc:
                if exc.problem.code != "link_lost":
                    raise

    async def _attempt(self, upstream: Upstream) -> None:
        service = upstream.http
        pump: asyncio.Task[None] | None = None
        try:
            if self._request.complete:
                body = [h11.Data(data=self._request.body)] if self._request.body else []
                service.write(self._request.head, *body, h11.EndOfMessage())
            else:
                service.write(self._request.head)
                pump = asyncio.ensure_future(self._pump(service))
            self._left = True
            await self._relay(service, await self._answer(service))
        except ConnectionGoneError as exc:
            raise self._broken(upstream) from exc
        except h11.RemoteProtocolError as exc:
            if service.ended:
                raise self._broken(upstream) from exc
            problem = Problem("upstream_invalid", "The service's answer is not HTTP/1.1.")
            raise _Broken(problem, by_service=True) from exc
        finally:
            if pump is not None:
                pump.cancel()

    def _broken(self, upstream: Upstream) -> _Broken:
        if self._path.lost(upstream):
            return _Broken(Problem("link_lost", "The link was lost."), by_service=False)
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
        self.standing = streams and message is None
        if streams:
            self._tail = StreamTail(message.ids if message else ())
        self.status = answer.status_code
        head = h11.Response(
            status_code=answer.status_code,
            headers=end_to_end(answer.headers.raw_items()),
            reason=answer.reason,
        )
        waiting: list[h11.Event] = [head]
        if not self._request.repeatable or self.standing:
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
