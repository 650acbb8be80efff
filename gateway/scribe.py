"""The audit log as requests use it: the lines of one turn of the event loop are written together.

Whoever must be on record before going on waits for that; the others only leave a note.
"""

import asyncio
import logging
from collections.abc import Mapping

from .audit import AuditError, AuditLog, Prepared

_log = logging.getLogger(__name__)

_Line = tuple[Prepared, Mapping[str, float]]


class Scribe:
    """Gathers lines for an audit log."""

    def __init__(self, log: AuditLog) -> None:
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._lines: list[_Line] = []
        self._waiting: list[tuple[int, asyncio.Future[int]]] = []

    async def record(self, facts: Prepared) -> int:
        """Return the number of the line with `facts` once it is in the log.

        Raises:
            AuditError: it cannot be written.
        """
        written: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append((len(self._lines), written))
        self._add(facts, {})
        return await written

    def note(self, facts: Prepared, **numbers: float) -> None:
        """Have a line with `facts` and `numbers` written in this turn, if it can be."""
        self._add(facts, numbers)

    def _add(self, facts: Prepared, numbers: Mapping[str, float]) -> None:
        if not self._lines:
            self._loop.call_soon(self.flush)
        self._lines.append((facts, numbers))

    def flush(self) -> None:
        """Write what was gathered."""
        lines, self._lines = self._lines, []
        waiting, self._waiting = self._waiting, []
        if not lines:
            return
        try:
            first = self._log.extend(lines)
        except AuditError as exc:
            _log.debug("audit log", exc_info=True)  # told by /ready, and to whoever waits
            for _, written in waiting:
                if not written.done():
                    written.set_exception(exc)
            return
        for place, written in waiting:
            if not written.done():
                written.set_result(first + place)
