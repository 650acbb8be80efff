"""Every request of the client gets one answer, unless it was cancelled; nothing ends the bridge
but the end of stdin.
"""

import asyncio
import logging

from ..mcp import Id, is_read
from ..problems import Problem
from . import eras
from .client import Client
from .firsts import Firsts
from .memory import Memory
from .message import (
    INTERNAL_ERROR,
    INVALID_REQUEST,
    Message,
    MessageError,
    outer_id,
    read,
    refusal,
    response,
    told,
)
from .service import Service
from .session import RefusedError
from .stdio import LINE, Line, Overlong, Stdio
from .talk import Talk
from .verdict import UnansweredError

GRACE = 0.4  # seconds that running requests are given when stdin has ended

_log = logging.getLogger(__name__)


class Bridge:
    """One client on stdin and stdout, and the service."""

    def __init__(self, stdio: Stdio, service: Service, memory: Memory) -> None:
        self._stdio = stdio
        self._client = Client(lambda message: stdio.send(message.to_bytes()))
        self._talk = Talk(service, memory, self._client)
        self._firsts = Firsts(self._talk, memory, self._client)
        self._ending = False
        self._running: dict[Id, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Serve until stdin ends, and end everything that was begun for it."""
        try:
            async for line in self._stdio.lines():
                self._take(line)
                await self._stdio.drain()
            if self._running:
                await asyncio.wait(self._running.values(), timeout=GRACE)
        finally:
            self._ending = True
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            await self._firsts.close()
            await self._talk.close()

    def _take(self, line: Line) -> None:
        if isinstance(line, Overlong):
            words = f"That line has {line.size >> 20} MiB; {LINE >> 20} MiB are taken."
            self._client.send(refusal(outer_id(line.head, line.tail), INVALID_REQUEST, words))
            return
        try:
            message = read(line)
        except MessageError as exc:
            for answer in exc.answers:
                self._client.send(answer)
            return
        if message.is_response:
            self._client.answered(message)
        elif message.is_request and message.id is not None:
            self._begin(message.id, message)
        else:
            self._notified(message)

    def _begin(self, caller: Id, message: Message) -> None:
        if caller in self._running:
            words = "A request with that id is running: this one was not sent."
            self._client.send(refusal(caller, INVALID_REQUEST, words))
            return
        self._running[caller] = asyncio.ensure_future(self._run(caller, message))

    async def _run(self, caller: Id, message: Message) -> None:
        try:
            answer = await self._answer(message)
        except (UnansweredError, RefusedError) as exc:
            answer = exc.answer
        except asyncio.CancelledError:
            if self._ending:
                answer = _unfinished(message, "stdin ended before the answer came.")
            elif _is_cancelled():
                raise
            else:  # what it waited for was given up, and was never sent
                problem = Problem("session_lost", "The client has introduced itself anew.")
                answer = told(caller, problem)
        except Exception:  # noqa: BLE001  a defect must cost one request, not the bridge
            _log.exception("defect")
            answer = _unfinished(message, "The tunnel failed on this request.")
        finally:
            del self._running[caller]
        if (error := answer.error) is not None:
            _log.info("error", extra={"what": _shown(message), "code": error.get("code")})
        self._client.send(answer.with_id(caller))

    async def _answer(self, message: Message) -> Message:
        match message.method:
            case "initialize":
                return await self._firsts.initialize(message)
            case "server/discover":
                return await self._firsts.discover(message)
            case method if method in eras.LISTS:
                return await self._firsts.lists(message)
            case "ping":
                return response(message.id, {})
            case _:
                return await self._talk.ask(message)

    def _notified(self, message: Message) -> None:
        if message.method == "notifications/initialized":
            return  # each session is told so by the bridge itself, as often as it is begun
        if message.method == "notifications/cancelled":
            caller = message.params.get("requestId")
            task = self._running.get(caller) if isinstance(caller, Id) else None
            if task is None:
                return  # it has been answered
            self._talk.cancelled(message)
            task.cancel()  # which closes its stream: what ends a stateless request
            return
        self._talk.tell(message)


def _is_cancelled() -> bool:
    """Return whether it is the task that was cancelled, and not something that it waits for."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _unfinished(message: Message, words: str) -> Message:
    """Return the answer to a request that the bridge could not see through to its end."""
    if is_read(message.method):
        return refusal(message.id, INTERNAL_ERROR, words)
    return told(message.id, Problem("outcome_unknown", words))


def _shown(message: Message) -> str:
    """Return what the log calls a request; a client's free text stays out of it."""
    method = message.method or ""
    return method if method.isascii() and method.isprintable() and len(method) <= 64 else "other"
