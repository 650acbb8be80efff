"""A file that may change while the program runs: load and check everything, then swap.

A file that cannot be used leaves the old content in force and the fault in words beside it
(ghostunnel's certloader taught this). Whoever holds a `Reloadable` decides when to look.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Reloadable(Generic[T]):
    """The content of a file, as last loaded whole.

    Raises (on construction): whatever `load` raises; there is no old content to fall back on.
    """

    def __init__(self, path: Path, load: Callable[[Path], T]) -> None:
        self.path = path
        self._load = load
        self._seen = _stamp(path)
        self.value = load(path)
        self.fault: str | None = None
        """Why the file as it is now could not be taken, or None."""

    def changed(self) -> bool:
        """Whether the file is another than the one that was last looked at."""
        return _stamp(self.path) != self._seen

    def reload(self) -> bool:
        """Look at the file again; return whether its content is now in force.

        `load` may raise OSError or ValueError; the old content then stays.
        """
        self._seen = _stamp(self.path)
        try:
            value = self._load(self.path)
        except (OSError, ValueError) as exc:
            self.fault = f"{self.path}: {getattr(exc, 'strerror', None) or exc}"
            return False
        self.value = value
        self.fault = None
        return True


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size
