"""Event streams: taking events out of one, and ending a broken one in words where that is possible.

A tool call's answer arrives as an event on the stream that its POST opened (MCP, Streamable HTTP).
When the connection behind dies first, the client would wait for an event that never comes. Between
two events an error with the caller's id can be put in its place; inside of one nothing can, and
the stream is cut, which clients see as an error too. Format: HTML Living Standard, section 9.2.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from .mcp import Id

KEPT = 64 << 10  # bytes of an event that are kept, to see whether it is the answer
EVENT_LIMIT = 256 << 20  # bytes of an event that is read


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


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream."""

    data: bytes
    id: str
    """The last id that the stream has told, to go on from."""
    retry: float | None
    """Seconds to wait before the stream is asked for again, where this event says so."""


class EventReader:
    """Takes events out of a stream that comes in pieces of any size.

    Time and memory are linear in what comes, also where one event is many MB.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0
        self._after_cr = False
        self._id = ""
        self._moved = False
        self._retry: float | None = None

    def feed(self, piece: bytes) -> list[Event]:
        """Return the events that `piece` completes.

        Raises:
            ValueError: one of them is larger than `EVENT_LIMIT`.
        """
        if self._after_cr and piece.startswith(b"\n"):  # the other half of a line end
            piece = piece[1:]
            self._after_cr = False
        if not piece:
            return []
        self._after_cr = piece.endswith(b"\r")
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *ends, rest = piece.split(b"\n")
        events = []
        for end in ends:
            self._line.append(end)
            line, self._line = b"".join(self._line), []
            if (event := self._take(line)) is not None:
                events.append(event)
        if rest:
            self._line.append(rest)
            self._count(len(rest))
        return events

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > EVENT_LIMIT:
            raise ValueError(f"an event of more than {EVENT_LIMIT >> 20} MiB")

    def _take(self, line: bytes) -> Event | None:
        if not line:
            data, self._data, self._size = b"\n".join(self._data), [], 0
            retry, self._retry = self._retry, None
            moved, self._moved = self._moved, False
            # One without data tells nothing but where to go on (MCP 2025-11-25), or when.
            return Event(data, self._id, retry) if data or moved or retry is not None else None
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match name:
            case b"data":
                self._data.append(value)
                self._count(len(value))
            case b"id" if b"\0" not in value:
                self._id, self._moved = value.decode("utf-8", "replace"), True
            case b"retry" if value.isdigit() and len(value) < 9:
                self._retry = int(value) / 1000
        return None
