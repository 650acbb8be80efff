"""Holding requests while no path is up: bounded in time, in number and in bytes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from .problems import Problem, ProblemError

REQUESTS = 4096  # a minute at a request every 15 ms
BYTES = 64 << 20  # of bodies

T = TypeVar("T")


def _told(reason: Problem | None) -> str:
    return f" {reason}" if reason else ""


class Hold:
    """What waits now, and the bounds on it."""

    def __init__(self, seconds: float, requests: int = REQUESTS, size: int = BYTES) -> None:
        self.seconds = seconds
        self._requests = requests
        self._size = size
        self.waiting = 0
        """Requests that wait now."""
        self.held_bytes = 0
        """Bytes of bodies that wait with them."""

    async def wait(self, ready: Awaitable[T], size: int, why: Callable[[], Problem | None]) -> T:
        """Wait for `ready` on behalf of a request with `size` bytes of body.

        Args:
            ready: what the request waits for.
            size: bytes that are kept in memory meanwhile.
            why: returns the reason that no path is up, told when the wait ends without success.

        Raises:
            ProblemError: hold_full at once, or hold_expired after `seconds`.
        """
        if self.waiting >= self._requests or self.held_bytes + size > self._size:
            asyncio.ensure_future(ready).cancel()
            raise ProblemError("hold_full", f"The tunnel is down and its queue full.{_told(why())}")
        self.waiting += 1
        self.held_bytes += size
        try:
            async with asyncio.timeout(self.seconds):
                return await ready
        except TimeoutError as exc:
            text = f"The tunnel was down for {self.seconds:g} s.{_told(why())}"
            raise ProblemError("hold_expired", text) from exc
        finally:
            self.waiting -= 1
            self.held_bytes -= size
