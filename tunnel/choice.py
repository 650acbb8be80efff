"""Which path a request takes: the preferred one that is good, and no going to and fro."""

import asyncio
import functools
from collections.abc import Collection, Coroutine, Iterable, Sequence

from .link import Connection
from .paths import Path
from .problems import Problem

SETTLE = 10.0  # seconds that a preferred path must have been good before it is taken again


class Paths:
    """The paths of a tunnel, the preferred one first."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.all = tuple(paths)
        self.current: Path | None = None
        """The one that requests take now."""
        for path in self.all:
            path.link.on_doubt.append(functools.partial(self._doubt, path))
            path.on_bad = functools.partial(self._leave, path)

    def pick(self, avoid: Collection[Path] = ()) -> Path | None:
        """Return the path for the next request, or None where none is up but those to avoid."""
        if len(self.all) == 1:
            only = self.current = self.all[0]
            return only if only.up and only not in avoid else None
        candidates = [path for path in self.all if path.up and path not in avoid]
        if not candidates:
            return None
        best = min(map(_rank, candidates))
        eligible = [path for path in candidates if _rank(path) == best]
        chosen = self._settled(eligible) if self.current in eligible else eligible[0]
        if not avoid:
            self.current = chosen
        return chosen

    def _settled(self, eligible: list[Path]) -> Path:
        """Return the current path, or a preferred one that has been good for long enough."""
        now = asyncio.get_running_loop().time()
        for path in eligible:
            if path is self.current:
                break
            if path.good_since is not None and now - path.good_since >= SETTLE:
                break
        return path

    @property
    def problem(self) -> Problem | None:
        """Why no path is up, as the preferred one says it."""
        return next((path.problem for path in self.all if path.problem is not None), None)

    async def ready(self) -> None:
        """Wait until any path is up."""
        await _first(path.ready() for path in self.all)

    async def good(self) -> None:
        """Wait until a probe is answered on any path."""
        await _first(path.answered() for path in self.all)

    def _leave(self, path: Path) -> None:
        """Have what may move leave a path whose probe failed, if there is a better one."""
        connection = path.link.connection
        rank = _rank(path)
        if connection is not None and any(
            other is not path and other.up and _rank(other) < rank for other in self.all
        ):
            path.pool.abandon(connection)

    def _doubt(self, doubted: Path, connection: Connection) -> None:
        """Have what may move leave a path that fell silent, if there is another one to go to."""
        if any(path is not doubted and _rank(path) < _DOUBTED for path in self.all if path.up):
            doubted.good_since = None
            doubted.pool.abandon(connection)


async def _first(events: Iterable[Coroutine[None, None, None]]) -> None:
    waiting = [asyncio.ensure_future(event) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in waiting:
            one.cancel()


_DOUBTED = 2


def _rank(path: Path) -> int:
    """Return 0 for a path on which the service answers, more for each doubt."""
    if path.link.doubted:
        return _DOUBTED
    return 0 if path.good_since is not None else 1
