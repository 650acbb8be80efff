"""Calls of a stateless client that wait, in a session, for what the service wants of it.

Since 2026-07-28 a service asks by ending a call with `input_required`, and the client calls again
with the answers. A service of sessions asks in the middle of a call. So the call is parked
meanwhile, under a name that only its client knows.
"""

import asyncio
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

from ..mcp import Id
from .message import Message
from .service import OnMessage

PATIENCE = 600.0  # seconds that a client may take to answer


class Call:
    """One call in a session, and what the service wants in the middle of it.

    Args:
        message: the request that it was begun with.
    """

    def __init__(self, message: Message) -> None:
        self.id: Id = 0 if message.id is None else message.id
        """What the service knows it by."""
        self._wishes: asyncio.Queue[Message] = asyncio.Queue()
        self._task: asyncio.Task[Message] | None = None
        self._wish: Message | None = None
        self.expiry: asyncio.TimerHandle | None = None

    def run(self, work: Coroutine[Any, Any, Message]) -> None:
        """Make the call."""
        self._task = asyncio.ensure_future(work)

    def came(self, others: OnMessage) -> OnMessage:
        """Return what takes the messages that come on the call's stream; `others` go on."""

        def came(message: Message) -> None:
            (self._wishes.put_nowait if message.is_request else others)(message)

        return came

    @property
    def asked(self) -> Message:
        """What the service wants to know."""
        if self._wish is None:
            raise ValueError("the service has asked nothing")
        return self._wish

    def answer(self) -> Message:
        """Return the answer of a call that has ended; raises what it raised."""
        if self._task is None:
            raise ValueError("the call was not made")
        return self._task.result()

    async def until_asked(self) -> bool:
        """Wait; return whether the service wants something, else the call has ended."""
        if self._task is None:
            raise ValueError("the call was not made")
        wish = asyncio.ensure_future(self._wishes.get())
        try:
            await asyncio.wait({wish, self._task}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.cancel()
            raise
        finally:
            if not wish.done():
                wish.cancel()
        if self._task.done():
            return False
        self._wish = wish.result()
        return True

    def cancel(self) -> None:
        """Give it up."""
        if self._task is not None:
            self._task.cancel()


class Parking:
    """The calls that wait.

    Args:
        on_expired: told of a call whose client has not come back.
    """

    def __init__(self, on_expired: Callable[[Call], None]) -> None:
        self._on_expired = on_expired
        self._parked: dict[str, Call] = {}

    async def wait(self, call: Call) -> str | None:
        """Wait for what comes of a call; return the name it is parked under, None if it ended."""
        if not await call.until_asked():
            return None
        state = secrets.token_urlsafe(16)
        self._parked[state] = call
        call.expiry = asyncio.get_running_loop().call_later(PATIENCE, self._expire, state)
        return state

    def leave(self, state: str | None) -> Call | None:
        """Return the call that was parked under a name, if there is one."""
        call = self._parked.pop(state, None) if state is not None else None
        if call is not None and call.expiry is not None:
            call.expiry.cancel()
        return call

    def _expire(self, state: str) -> None:
        if (call := self.leave(state)) is not None:
            call.cancel()
            self._on_expired(call)

    def close(self) -> None:
        """Give up all of them."""
        for state in tuple(self._parked):
            if (call := self.leave(state)) is not None:
                call.cancel()
