"""What a client asks first (who are you, what have you got): answered at once, whatever happens.

By the service if it answers in time, else from memory; and when the truth comes and is another, the
client is told that it changed.
"""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any

from .. import __version__
from . import eras
from .client import Client
from .memory import Memory
from .message import METHOD_NOT_FOUND, Json, Message, notification, response
from .session import RefusedError
from .talk import Talk
from .verdict import UnansweredError

AT_ONCE = 0.55  # seconds for the service to answer; a client is to wait for less than one
NOTHING_KNOWN = 0.8  # the same for a list of which nothing is in memory
PAGES = 1000  # of one list
RETRY = (0.5, 5.0)  # seconds before it is asked again for what was told from memory

_log = logging.getLogger(__name__)


class Firsts:
    """Answers `initialize`, `server/discover` and the list methods."""

    def __init__(self, talk: Talk, memory: Memory, client: Client) -> None:
        self._talk = talk
        self._memory = memory
        self._client = client
        self._listed: dict[str, Message] = {}
        """The last request for each list."""
        self._told: dict[str, list[Any]] = {}
        """What the client was given as each list."""
        self._stale: set[str] = set()
        self._refreshing: asyncio.Task[None] | None = None
        self._unknown = False
        """Whether the client was told of a service that nobody has heard of yet."""
        talk.on_begun_again.append(self._begun_again)

    async def initialize(self, message: Message) -> Message:
        """Return the answer to `initialize`."""
        self._talk.start_over()
        self._client.introduction = message.params

        async def introduce() -> Message:
            if await self._talk.route("session", message) == "session":
                result = self._memory.recall("initialize") or {}
            else:
                found = self._memory.recall("server/discover") or {}
                result = eras.initialization(found, message.params)
            return response(message.id, result)

        answer = await _at_once(introduce())
        if answer is not None and answer.result is not None:
            return response(message.id, eras.can_change(answer.result))
        known = eras.as_asked(self._described(), message.params)
        return response(message.id, eras.can_change(known))

    async def discover(self, message: Message) -> Message:
        """Return the answer to `server/discover`."""

        async def introduce() -> Message:
            if await self._talk.route("stateless", message) == "stateless":
                result = self._memory.recall("server/discover") or {}
            else:
                result = eras.discovery(self._memory.recall("initialize") or {})
            return response(message.id, result)

        answer = await _at_once(introduce())
        if answer is not None and answer.result is not None:
            return response(message.id, eras.can_change(answer.result))
        known = self._memory.recall("server/discover") or eras.discovery(self._described())
        return response(message.id, eras.can_change(known))

    def _described(self) -> Json:
        described = self._memory.describe()
        self._unknown = described is None
        return described or _nobody()

    async def lists(self, message: Message) -> Message:
        """Return the answer to a list method.

        Raises:
            UnansweredError, RefusedError: it asks for a further page, and there is no answer.
        """
        method = message.method or ""
        member = eras.LISTS[method]
        cursor = message.params.get("cursor")
        known = self._memory.recall(method)
        patience = AT_ONCE if known is not None else NOTHING_KNOWN
        answer = await _at_once(self._talk.ask(message), patience)
        if answer is None and cursor is not None:
            return await self._talk.ask(message)  # it has been given the pages before
        self._listed[method] = _first_page(message)
        if answer is None:
            known = known or {member: []}
            self._told[method] = known[member]
            self._stale.add(method)
            self._refresh()
            return _in_its_era(message, known)
        if answer.result is None:
            lacks = answer.error is not None and answer.error.get("code") == METHOD_NOT_FOUND
            # Where nobody knew the service, it was said that there might be some.
            return _in_its_era(message, {member: []}) if lacks and self._unknown else answer
        items = answer.result.get(member)
        self._memory.learn(method, cursor, answer.result)
        self._stale.discard(method)
        if isinstance(items, list):
            before = [] if cursor is None else self._told.get(method, [])
            self._told[method] = [*before, *items]
        return answer

    def _begun_again(self) -> None:
        """A service that was restarted may have other lists than before."""
        self._stale |= self._listed.keys()
        self._refresh()

    def _refresh(self) -> None:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.ensure_future(self._learn_truth())

    async def _learn_truth(self) -> None:
        """Ask for what is stale until the service answers, and tell what changed."""
        pause, most = RETRY
        while self._stale:
            method = min(self._stale)
            try:
                items = await self._whole(method)
            except (UnansweredError, RefusedError):
                await asyncio.sleep(pause)
                pause = min(pause * 2, most)
                continue
            self._stale.discard(method)
            if items != self._told.get(method):
                _log.info("changed", extra={"what": method})
                self._client.changed(notification(eras.CHANGED[method]))

    async def _whole(self, method: str) -> list[Any]:
        """Return a list as the service has it now, page by page."""
        items: list[Any] = []
        asking = self._listed[method]
        cursor: str | None = None
        for _ in range(PAGES):
            caller = self._client.number()
            answer = await self._talk.ask(Message({**asking.content, "id": caller}))
            result = answer.result or {}
            page = result.get(eras.LISTS[method])
            items += page if isinstance(page, list) else []
            self._memory.learn(method, cursor, result)
            following = result.get("nextCursor")
            if not isinstance(following, str) or following == cursor:
                break
            cursor = following
            asking = Message({**asking.content, "params": {**asking.params, "cursor": cursor}})
        return items

    async def close(self) -> None:
        """Stop asking."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)


async def _at_once(work: Coroutine[Any, Any, Message], seconds: float = AT_ONCE) -> Message | None:
    """Return the answer, or None where there is none in time."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            task.cancel()
    if task.cancelling():
        return None
    with contextlib.suppress(UnansweredError):
        return task.result()
    return None


def _nobody() -> Json:
    """Return what is said of a service that was never heard of, as a result of `initialize`."""
    return {
        "protocolVersion": eras.SESSIONS[-1],
        "capabilities": {"tools": {}, "resources": {}, "prompts": {}},
        "serverInfo": {"name": "catalyst-tunnel", "version": __version__},
        "instructions": (
            "The service behind this tunnel has not been reached yet, so its tools and resources "
            "are not known. They are told as soon as it answers. `catalyst-tunnel status` in a "
            "terminal says what is in the way."
        ),
    }


def _in_its_era(message: Message, result: Json) -> Message:
    """Return what is known as the answer to a client's request."""
    answer = response(message.id, result)
    stateless = eras.era(message) == "stateless"
    return eras.from_session(message.method, answer) if stateless else answer


def _first_page(message: Message) -> Message:
    params = {key: value for key, value in message.params.items() if key != "cursor"}
    return Message({**message.content, "params": params})
