"""A lock between processes, held for as long as a file is open: a crash lets go of it."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from keys.files import make_private_directory


class LockedError(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock in `path`, which stays behind, empty.

    Raises:
        LockedError: another process holds it; nothing is waited for.
        OSError: the file cannot be made.
    """
    make_private_directory(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            _take(handle)
        except (BlockingIOError, PermissionError) as exc:
            raise LockedError from exc
        yield
    finally:
        os.close(handle)


def _take(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
