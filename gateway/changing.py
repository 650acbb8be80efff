"""Changing the registry: one at a time, and only what is still as it was read.

The lock keeps commands and the registrar apart, also while they use the CA. A person with an
editor holds no lock, so the file is looked at once more before it is replaced.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from . import registry as registries
from .registry import Registry
from .settings import Layout

if sys.platform != "win32":
    import fcntl


class ConflictError(Exception):
    """Somebody else changed the registry meanwhile. It is left as he made it."""


@contextlib.contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Keep others from changing registry or CA meanwhile.

    Raises:
        OSError: the lock cannot be had.
    """
    with os.fdopen(_open(layout.lock), "r+b") as file:
        if sys.platform != "win32":
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(path: Path) -> int:
    if sys.platform == "win32":
        raise OSError("the gateway does not run on Windows")
    # Closed to others: whoever can open it can hold it, and keep a client from being revoked.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


class Draft:
    """The registry as it was read, and the way to put another in its place."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.registry
        self.registry, self._text = registries.read(self._path)

    def save(self, changed: Registry) -> Registry:
        """Put `changed` in place as the next generation, and return it; no change is none.

        Raises:
            ConflictError: the file is not what was read any longer.
            OSError: it cannot be written; the old one is left as it was.
        """
        if changed == self.registry:
            return self.registry
        if self._path.read_bytes() != self._text:
            raise ConflictError(
                f"{self._path} was changed meanwhile and is left alone. Run the command again."
            )
        following = replace(changed, generation=self.registry.generation + 1)
        registries.save(self._path, following)
        self.registry, self._text = following, registries.to_text(following).encode()
        return following


@contextlib.contextmanager
def drafting(layout: Layout) -> Iterator[Draft]:
    """Hold the lock, and hand out what the registry says.

    Raises:
        ValueError: it is not a registry; names the file.
        OSError: it cannot be read, or the lock not be had.
    """
    with locked(layout):
        yield Draft(layout)
