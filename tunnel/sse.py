"""Ending a broken event stream in words, where that can be done without corrupting it.

A tool call's answer arrives as an event on the stream that its POST opened (MCP, Streamable HTTP).
When the connection behind dies first, the client would wait for an event that never comes. Between
two events an error with the caller's id can be put in its place; inside of one nothing can, and
the stream is cut, which clients see as an error too. Format: HTML Living Standard, section 9.2.
"""

import json
from collections.abc import Iterable

from .mcp import Id

KEPT = 64 << 10  # bytes of an event that are kept, to see whether it is the answer


class StreamTail:
    """Watches an event stream go by, in pieces of any size."""

    def __init__(self, ids: Iterable[Id]) -> None:
        self._unanswered = set(ids)
        self._event = b""
        self._overlong = False

    def feed(self, data: bytes) -> None:
        """Take note of `data`, which was passed on."""
        text = self._event + data
        held = b""
        if text.endswith(b"\r"):  # half of a line end, perhaps
            text, held = text[:-1], b"\r"
        *complete, rest = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n\n")
        for event in complete:
            self._take(event)
        rest += held
        if len(rest) > KEPT:
            rest, self._overlong = rest[-2:], True
        self._event = rest

    def _take(self, event: bytes) -> None:
        if self._overlong:  # too long to keep, so too long for anything but an answer
            self._overlong = False
            self._unanswered.clear()
            return
        lines = event.split(b"\n")
        data = b"\n".join(line[5:] for line in lines if line.startswith(b"data:"))
        try:
            message = json.loads(data)
        except RecursionError:  # like the overlong: more than a notice holds
            self._unanswered.clear()
            return
        except ValueError:
            return
        for one in message if isinstance(message, list) else [message]:
            if isinstance(one, dict) and ("result" in one or "error" in one):
                answered = one.get("id")
                if isinstance(answered, Id):
                    self._unanswered.discard(answered)

    @property
    def between_events(self) -> bool:
        """Whether the stream stands where an event may begin."""
        return not self._event and not self._overlong

    @property
    def unanswered(self) -> bool:
        """Whether one of the ids has had no answer yet."""
        return bool(self._unanswered)
