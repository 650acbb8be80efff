"""What the service last said of itself: what clients are told at once when it cannot be asked.

Kept in the home for the next start, in a file for the owner only. Several copies may write it; each
writes a whole file, and the last one stands.
"""

import logging
from pathlib import Path
from typing import Any, cast

from keys import strictjson
from keys.files import private_file_fault, write_private

from . import eras
from .message import Json

_log = logging.getLogger(__name__)

_DESCRIPTIONS = ("initialize", "server/discover")
_KNOWN = (*_DESCRIPTIONS, *eras.LISTS)
SIZE = 16 << 20  # bytes of a file that is read


def memory_file(home: Path) -> Path:
    """Return the file that keeps what the service said, for a home."""
    return home / "cache" / "service.json"


class Memory:
    """What is known of the service, in memory and in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._said: dict[str, Json] = _read(file)

    def recall(self, method: str) -> Json | None:
        """Return the last result of `method`, or None; of a list that comes in pages, all of it."""
        return self._said.get(method)

    def describe(self) -> Json | None:
        """Return what the service last said of itself as the result of `initialize`."""
        if (initialized := self._said.get("initialize")) is not None:
            return initialized
        discovered = self._said.get("server/discover")
        return None if discovered is None else eras.initialization(discovered, {})

    def schema(self, tool: str) -> Json | None:
        """Return the input schema of a tool, where it is known."""
        for one in (self._said.get("tools/list") or {}).get("tools", ()):
            if isinstance(one, dict) and one.get("name") == tool:
                schema = one.get("inputSchema")
                return cast(Json, schema) if isinstance(schema, dict) else None
        return None

    def learn(self, method: str, cursor: str | None, result: Json) -> None:
        """Take note of a result, of the page after `cursor` where there is one."""
        member = eras.LISTS.get(method)
        kept = dict(result)
        if member is not None:
            items = result.get(member)
            if not isinstance(items, list):
                return
            kept = {member: items}
            if cursor is not None:
                before = (self._said.get(method) or {}).get(member, [])
                kept = {member: [*before, *(one for one in items if one not in before)]}
        if self._said.get(method) == kept or not _sound(method, kept):
            return
        self._said[method] = kept
        try:
            text = strictjson.dumps({"version": 1, "said": self._said})
            write_private(self._file, text, replace=True)
        except OSError as exc:
            _log.warning("memory not written", extra={"why": exc.strerror})


def _read(file: Path) -> dict[str, Json]:
    """Return what is in the file; nothing where it is not ours, not there, or damaged."""
    try:
        if private_file_fault(file) is not None or file.stat().st_size > SIZE:
            return {}
        content: Any = strictjson.loads(file.read_bytes())
        said = content["said"] if content["version"] == 1 else {}
        return {
            method: said[method]
            for method in _KNOWN
            if isinstance(said.get(method), dict) and _sound(method, said[method])
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _sound(method: str, result: Json) -> bool:
    member = eras.LISTS.get(method)
    if member is None:
        return isinstance(result.get("capabilities"), dict)
    return isinstance(result.get(member), list)
