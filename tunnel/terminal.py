"""The service asked from a terminal: a client of one command, in the bridge's own rooms.

It speaks MCP 2026-07-28; `bridge.talk` says it in older words where the service knows no other.
Whatever holds of the tunnel holds here: a call is made once and never again by itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from . import __version__
from .bridge import eras
from .bridge.client import Client
from .bridge.endpoint import Endpoints
from .bridge.memory import Memory, memory_file
from .bridge.message import METHOD_NOT_FOUND, Json, Message, notification, request
from .bridge.service import Service
from .bridge.session import RefusedError
from .bridge.talk import PAUSE, ROUNDS, Talk
from .bridge.verdict import UnansweredError
from .mcp import is_read
from .problems import CATALOGUE, Problem
from .shown import members

EXIT_REFUSED = 1
EXIT_SETTINGS = 2
EXIT_NOT_DELIVERED = 4
EXIT_UNKNOWN = 5

FAREWELL = 1.0  # seconds for the service to hear of a cancellation
GRACE = 0.3  # seconds for paths of our own to end
PROGRESS = "notifications/progress"

_ME: Json = {"clientInfo": {"name": "catalyst-tunnel", "version": __version__}}

_UNAVAILABLE = (-32013, -32014)
"""The codes of the tunnel and the gateway whose every bearer was not delivered."""

_NOT_DELIVERED = frozenset(
    {"gateway_missing", "session_lost", "target_prohibited", "target_refused", "upstream_refused"}
)
"""Those that were not delivered either, but share their JSON-RPC code with others."""

_UNKNOWN = frozenset({"internal_error", "outcome_unknown", "upstream_invalid", "upstream_silent"})

OnProgress = Callable[[float, float | None, str], None]
"""Takes how far a call is, of how much (if that is known), and a message, which may be empty."""


async def _room() -> None:
    """Wait for nothing: what comes is taken as it comes."""


class NoAnswerError(Exception):
    """There is no result; the message says why in words.

    Attributes:
        error: the JSON-RPC error.
        exit_code: see README, Exit codes.
    """

    def __init__(self, error: Json, exit_code: int) -> None:
        self.error = error
        self.exit_code = exit_code
        super().__init__(str(error.get("message") or "The service gave no reason."))


class Conversation:
    """What one command says to the service.

    Args:
        file: the settings; what is known of the service is beside it.
    """

    def __init__(self, file: Path) -> None:
        self._home = file.parent
        self._endpoints = Endpoints(file)
        self._memory = Memory(memory_file(file.parent))
        self._client = Client(self._came)
        service = Service(self._endpoints, _room)
        self._talk = Talk(service, self._memory, self._client)
        self._on_progress: OnProgress | None = None

    async def items(self, method: str) -> list[Json]:
        """Return a whole list, of as many pages as it has; it is remembered for the next time.

        Raises:
            NoAnswerError: it cannot be had.
        """
        member = eras.LISTS[method]
        found: list[Json] = []
        cursor: str | None = None
        while True:
            try:
                result = await self.ask(method, {} if cursor is None else {"cursor": cursor})
            except NoAnswerError as exc:
                if exc.error.get("code") == METHOD_NOT_FOUND:  # it has none, and says so like this
                    return []
                raise
            self._memory.learn(method, cursor, result)
            found += members(result, member)
            following = result.get("nextCursor")
            if not isinstance(following, str) or following == cursor:
                return found
            cursor = following

    async def call(self, tool: str, arguments: Json, on_progress: OnProgress) -> Json:
        """Call a tool, once. Where this is cancelled, so is the call, as far as it can be.

        Raises:
            NoAnswerError: it did not answer.
        """
        self._on_progress = on_progress
        return await self.ask("tools/call", {"name": tool, "arguments": arguments})

    async def ask(self, method: str, params: Json) -> Json:
        """Return the result of a request.

        Raises:
            NoAnswerError: there is none.
        """
        caller = self._client.number()
        meta = {"_meta": {"progressToken": caller}} if method == "tools/call" else {}
        message = request(caller, method, {**params, **meta})
        message = eras.to_stateless(message, _ME, None)
        try:
            answer = await self._answer(message)
        except UnansweredError as exc:
            error = exc.answer.error or {}
            raise NoAnswerError(error, exit_code(error, repeatable=is_read(method))) from exc
        except RefusedError as exc:
            raise NoAnswerError(exc.answer.error or {}, EXIT_REFUSED) from exc
        except (asyncio.CancelledError, NoAnswerError):
            # Its stream is closed, which tells a stateless service; one of sessions is told so.
            self._talk.tell(notification("notifications/cancelled", {"requestId": caller}))
            await self._talk.settle(FAREWELL)
            raise
        if answer.result is None:
            raise NoAnswerError(answer.error or {}, EXIT_REFUSED)
        return answer.result

    async def _answer(self, message: Message) -> Message:
        """Return the answer; a service that only wants to be asked again is.

        Raises:
            NoAnswerError: it wants what a command cannot give.
        """
        for _ in range(ROUNDS):
            answer = await self._talk.ask(message)
            if not eras.waits(answer):
                return answer
            if wishes := eras.wanted(answer):
                methods = ", ".join(sorted({str(wish.get("method")) for _, wish in wishes}))
                words = (
                    f"The tool asks its caller back ({methods}), which a command cannot answer. It "
                    "was cancelled, perhaps half done."
                )
                raise NoAnswerError({"message": words}, EXIT_UNKNOWN)
            await asyncio.sleep(PAUSE)
            message = eras.again(message, answer, {})
        raise NoAnswerError({"message": "The service does not come to an end."}, EXIT_UNKNOWN)

    def _came(self, message: Message) -> None:
        if message.method != PROGRESS or self._on_progress is None:
            return
        done, total = message.params.get("progress"), message.params.get("total")
        if isinstance(done, int | float):
            words = message.params.get("message")
            self._on_progress(
                done,
                total if isinstance(total, int | float) else None,
                words if isinstance(words, str) else "",
            )

    @property
    def obstacle(self) -> str | None:
        """Why no path of our own is up, in words; None where one is, or nothing is known."""
        problem = self._endpoints.obstacle
        return None if problem is None else problem.in_general

    async def tunnel_obstacle(self) -> str | None:
        """Return why the tunnel that runs has no path up, in words; None where it has, or is none.

        It tries what had failed when it is asked, so ask it once and not in a loop: a server that
        is tried too often shuts its door.
        """
        from .control import ControlError, NotRunningError, ask
        from .status import Snapshot

        try:
            snapshot = Snapshot.from_json(await ask(self._home, "status"))
        except (NotRunningError, ControlError, TypeError, KeyError):
            return None
        told = [path.problem for path in snapshot.paths if path.problem is not None]
        words = [_in_general(one) for one in told]
        return None if snapshot.up else " ".join(dict.fromkeys(words)) or None

    async def close(self) -> None:
        """End everything that was begun."""
        await self._talk.close()
        await self._endpoints.close(GRACE)


def _in_general(told: dict[str, str]) -> str:
    """Return a problem of a path as a command tells it, which may have called already."""
    if told["code"] in CATALOGUE:
        return Problem(told["code"], told["message"]).in_general
    return told["message"]


@contextlib.asynccontextmanager
async def conversation(file: Path) -> AsyncIterator[Conversation]:
    """A conversation that is closed in the end."""
    speaking = Conversation(file)
    try:
        yield speaking
    finally:
        await speaking.close()


def exit_code(error: Json, *, repeatable: bool) -> int:
    """Return the exit code for a request that was not answered by the service.

    Args:
        error: the JSON-RPC error that says why.
        repeatable: whether a second request would do no harm, whatever became of the first.
    """
    data = error.get("data")
    said = data if isinstance(data, dict) else {}
    code, status = said.get("code"), said.get("status")
    if code == "settings_faulty":
        return EXIT_SETTINGS
    if code in _NOT_DELIVERED or (code is not None and error.get("code") in _UNAVAILABLE):
        return EXIT_NOT_DELIVERED
    silent = code is None and isinstance(status, int) and status >= 500  # and so says nothing
    if not repeatable and (code in _UNKNOWN or silent):
        return EXIT_UNKNOWN
    return EXIT_REFUSED
