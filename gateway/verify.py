"""`audit verify`: lines of the audit log that were removed, changed, moved or put in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .chain import GENESIS, LONGEST_LINE, Head, Line, beside, read_anchor

LISTED = 100  # findings of lines that a report lists; a file of rubbish has one a line


@dataclass(frozen=True)
class Finding:
    """What is wrong with a line, or after it."""

    line: int
    """Counted from 1 in its file; 0 where there is no line."""
    text: str


@dataclass(frozen=True)
class Report:
    """What a check found."""

    lines: int
    first: int
    """Sequence number of the first line; 0 when there is none; above 1 when older files went."""
    last: int
    head: str
    """Hash of the last line: what to keep elsewhere."""
    findings: tuple[Finding, ...]


def verify(paths: Sequence[Path]) -> Report:
    """Check a log, line by line in constant memory; it may be in use meanwhile.

    Args:
        paths: one log, or rotated ones and then it, oldest first. The anchor is the last one's.

    Raises:
        OSError: a file cannot be read.
    """
    anchor = read_anchor(paths[-1])  # before the lines: the log may grow meanwhile
    check = _Check(anchor, named=len(paths) > 1)
    for path in paths:
        check.begin(path.name)
        with path.open("rb") as file:
            while raw := file.readline(LONGEST_LINE):
                check.line(raw)
    return check.end(beside(paths[-1], "head").name)


class _Check:
    def __init__(self, anchor: Head | None, *, named: bool) -> None:
        self._anchor = anchor
        self._named = named
        self._findings: list[Finding] = []
        self._file = ""
        self._number = 0
        self._lines = 0
        self._first: Line | None = None
        self._seq = 0  # of the line before
        self._hash: str | None = GENESIS.hash  # of the line before; None where it cannot be read
        self._anchor_seen = anchor == GENESIS

    def begin(self, name: str) -> None:
        self._file, self._number = name, 0

    def line(self, raw: bytes) -> None:
        self._number += 1
        self._lines += 1
        line = Line.read(raw)
        if line is None:
            whole = raw.endswith(b"\n")
            self._found("is not a line of this log" if whole else "is torn: its end is missing")
            self._seq, self._hash = self._seq + 1, None
            return
        if not line.sound:
            self._found("was changed: its hash does not fit")
        self._link(line)
        if line.event == "unanchored":
            self._found("the anchor was gone when the gateway started here: lines may be missing")
        if self._anchor is not None and line.head.seq == self._anchor.seq:
            self._anchor_seen = True
            if line.head != self._anchor:
                self._found("is not the one that was anchored")
        self._first = self._first or line
        self._seq, self._hash = line.head

    def _link(self, line: Line) -> None:
        seq, due = line.head.seq, self._seq + 1
        if self._lines == 1 and line.event == "rotated" and seq > 1:
            # Only such a line may begin without what came before: older files are given or kept.
            self._anchor_seen = self._anchor_seen or self._anchor == (seq - 1, line.prev)
            return
        if seq > due:
            self._found(f"has number {seq} where {due} is due: {_count(seq - due)} missing before")
        elif seq < due:
            self._found(f"has number {seq} where {due} is due: repeated, moved or put in")
        elif self._hash not in (None, line.prev):
            self._found("does not follow from the line before it: one of the two was replaced")

    def end(self, anchor_name: str) -> Report:
        if self._anchor is None:
            self._add(f"{anchor_name} is missing or broken: a missing end would not be noticed")
        elif self._anchor.seq > self._seq:
            self._add(f"{_count(self._anchor.seq - self._seq)} missing at the end")
        elif not self._anchor_seen:
            self._add(f"the line that was anchored, number {self._anchor.seq}, is not there")
        first = self._first.head.seq if self._first else 0
        head = self._hash or ""
        return Report(self._lines, first, self._seq, head, tuple(self._findings))

    def _found(self, text: str) -> None:
        if len(self._findings) < LISTED:
            self._add(text)
        elif len(self._findings) == LISTED:
            self._add("what is wrong from here on is not listed")

    def _add(self, text: str) -> None:
        told = f"{self._file}: {text}" if self._named else text
        self._findings.append(Finding(self._number, told))


def _count(lines: int) -> str:
    return "1 line is" if lines == 1 else f"{lines} lines are"
