"""What asyncio leaves to its users about tasks."""

import asyncio
from typing import Any


def retrieve(task: asyncio.Future[Any]) -> None:
    """Take a task's exception, whether or not anybody still waits for it.

    For a task that several may wait for, or whose waiter may be cancelled in the turn in which it
    fails: asyncio would log an exception that nobody took, with a traceback.
    """
    if not task.cancelled():
        task.exception()
