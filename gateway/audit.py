"""The audit log: one JSON line an event, each carrying the hash of the line before it.

    {"seq":7,"time":"2026-11-23T18:19:11.123456Z",...facts...,"prev":"<64 hex>","hash":"<64 hex>"}

`hash` is the SHA-256 of the line's bytes up to its last `,"hash":"`, `prev` is the hash of the line
before (64 zeros for the first): checking needs no canonical form, only the bytes.

Beside PATH lie PATH.head, the anchor: the last line's seq and hash, by which an end that was cut
off or written anew is noticed; PATH.lock, which keeps a second writer out; and PATH.torn-*, what a
crash left of a line. Whoever may write to all of them can forge the log as a whole, unless its head
is also kept elsewhere: `verify` returns it.

The log writes events of its own: `recovered` (half a line was cut off), `rotated` (first in a file
whose forerunner was moved away), `broken` (the end found is not the known one; the chain goes on
from the known one, so the break stays visible) and `unanchored` (no anchor was there at the start).
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from keys.files import write_private

if sys.platform != "win32":
    import fcntl

LONGEST_TEXT = 256  # characters of a string
LONGEST_LINE = 1 << 20  # bytes; bounds what a reader holds in memory
LISTED = 100  # findings of lines that a report lists; a file of rubbish has one a line
CHUNK = 1 << 14  # bytes read at once when reading backwards

_RESERVED = frozenset({"seq", "time", "prev", "hash"})
_PLAIN = frozenset({int, float, bool, type(None)})
_SEAL = len(',"hash":""}\n') + 64  # bytes of a line that its hash does not cover
_BEGINNING = b'{"seq":'
_LINE = re.compile(
    rb'\{"seq":([1-9][0-9]{0,17}),"time":"[^"]*"(?:,"event":"([a-z]+)")?(?:,.*)?'
    rb',"prev":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}\n'
)
_ANCHOR = re.compile(rb'\{"seq":(0|[1-9][0-9]{0,17}),"hash":"([0-9a-f]{64})"\}\n')
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class AuditError(Exception):
    """The log cannot be written; the caller must deny."""


class _Head(NamedTuple):
    seq: int
    hash: str


_GENESIS = _Head(0, "0" * 64)


class _Line(NamedTuple):
    head: _Head
    prev: str
    event: str
    sound: bool  # whether the hash fits

    @classmethod
    def read(cls, raw: bytes) -> "_Line | None":
        match = _LINE.fullmatch(raw)
        if match is None:
            return None
        seq, event, prev, digest = int(match[1]), match[2] or b"", match[3], match[4].decode()
        sound = hashlib.sha256(raw[:-_SEAL]).hexdigest() == digest
        return cls(_Head(seq, digest), prev.decode(), event.decode(), sound)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name}.{ending}")


def _cut(value: object) -> object:
    if isinstance(value, str):
        return value if len(value) <= LONGEST_TEXT else f"{value[: LONGEST_TEXT - 1]}…"
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return {_cut(key): _cut(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(one) for one in value]
    return value


class Prepared:
    """Facts that are encoded already.

    Raises (on construction): what `AuditLog.append` says of facts.
    """

    __slots__ = ("members",)

    def __init__(self, facts: Mapping[str, object]) -> None:
        self.members = _members(facts)


def _members(facts: Mapping[str, object]) -> str:
    if not _RESERVED.isdisjoint(facts):
        raise ValueError(f"the log itself writes {', '.join(sorted(_RESERVED & facts.keys()))}")
    members = _encode({key: _cut(value) for key, value in facts.items()})[1:-1]
    if len(members) > LONGEST_LINE - 1024:
        raise ValueError("the facts are too long for a line of the audit log")
    return f",{members}" if members else ""


def _number(name: str, value: float) -> str:
    if name in _RESERVED or not math.isfinite(value):
        raise ValueError(f"{name} cannot be told as {value}")
    return f',"{name}":{value!r}'


def _open_private(path: Path) -> int:
    if sys.platform == "win32":
        raise AuditError("audit log: the gateway does not run on Windows")
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    info = os.fstat(fd)
    fault = None
    if not stat.S_ISREG(info.st_mode):
        fault = f"{path} is not a regular file"
    elif info.st_uid not in (0, os.geteuid()):
        fault = f"{path} belongs to another user"
    elif info.st_mode & 0o027:  # a group that may read it is the administrator's choice
        fault = f"{path} is open to others (mode {stat.S_IMODE(info.st_mode):04o}): chmod 600 it"
    if fault:
        os.close(fd)
        raise AuditError(f"audit log: {fault}")
    return fd


def _read_at(fd: int, start: int, size: int) -> bytes:
    os.lseek(fd, start, os.SEEK_SET)  # writes append, wherever this leaves the position
    return os.read(fd, size)


def _backwards(fd: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield where a line begins and its bytes, the last line before `end` first."""
    held = b""
    while end or held:
        cut = held.rfind(b"\n", 0, max(len(held) - 1, 0))
        if cut < 0 and end and len(held) <= LONGEST_LINE:
            start = max(0, end - CHUNK)
            held = _read_at(fd, start, end - start) + held
            end = start
            continue
        yield end + cut + 1, held[cut + 1 :]
        held = held[: cut + 1]


def _last_whole(fd: int, size: int, path: Path) -> tuple[_Head | None, int]:
    """Return the last whole line's head, if there is one, and where that line ends."""
    end = size
    for start, raw in _backwards(fd, size):
        line = _Line.read(raw)
        if line is not None and line.sound:
            return line.head, end
        if size - start > LONGEST_LINE:
            break
        end = start
    begins = _read_at(fd, 0, len(_BEGINNING))
    if end == 0 and _BEGINNING.startswith(begins):
        return None, 0
    raise AuditError(f"audit log: {path} does not end like an audit log; move it away")


def _contains(fd: int, end: int, known: _Head) -> bool:
    """Whether a line follows `known`: a gateway that crashed had written on after it anchored."""
    for _, raw in _backwards(fd, end):
        line = _Line.read(raw)
        if line is not None and line.head.seq <= known.seq + 1:
            return line.head.seq == known.seq + 1 and line.prev == known.hash
    return False


def _read_anchor(path: Path) -> _Head | None:
    try:
        match = _ANCHOR.fullmatch(_beside(path, "head").read_bytes())
    except FileNotFoundError:
        return None
    return _Head(int(match[1]), match[2].decode()) if match else None


class AuditLog:
    """The writing end, for one thread of one process.

    No line is synced by itself, which would cost milliseconds a request: what was written outlives
    a crash of the process, while a power failure may take what came after the last `anchor()`.
    """

    def __init__(self, path: Path, wall: Callable[[], float] = time.time) -> None:
        self._path = path
        self._wall = wall
        self.fault: str | None = None
        """Why the last append failed; None once one succeeded."""
        self._lock = -1
        self._fd = -1
        self._size = 0  # bytes of the file, as we know it
        self._head: _Head | None = None  # None until the file has been looked at
        self._anchored: _Head | None = None
        self._notes: list[dict[str, object]] = []  # events of our own that are still to be written
        self._second = -1  # in which the file was last looked at; -1: to be looked at
        self._date = ""  # that second, as a line has it

    def open(self) -> None:
        """Continue the chain of what is there; cut off and keep aside what a crash left of a line.

        Raises:
            AuditError: another process writes it, others may write to it, or it cannot be written.
        """
        try:
            self._lock = _open_private(_beside(self._path, "lock"))
            if sys.platform != "win32":
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._attach(moved=False)
            self._settle(self._wall())
            self._write_anchor()
        except BlockingIOError as exc:
            self._release()
            raise AuditError(f"audit log: another process writes {self._path}") from exc
        except OSError as exc:
            self._release()
            raise AuditError(_words(exc)) from exc
        except AuditError:
            self._release()
            raise

    def append(self, facts: "Mapping[str, object] | Prepared", **numbers: float) -> int:
        """Write a line, whole or not at all, and return its sequence number.

        Args:
            facts: what JSON can tell; strings of more than 256 characters are cut. Those that
                come again and again may be prepared once.
            numbers: facts that are numbers, which are told last.

        Raises:
            AuditError: it cannot be written now; the next call tries again.
            ValueError: a fact has a name that the log itself writes, is NaN, or is far too long.
            TypeError: a fact cannot be told in JSON.
        """
        prepared = facts if isinstance(facts, Prepared) else Prepared(facts)
        return self.extend([(prepared, numbers)])

    def extend(self, lines: "Sequence[tuple[Prepared, Mapping[str, float]]]") -> int:
        """Write lines at once, all of them or none, and return the first one's sequence number.

        Raises:
            AuditError, ValueError: see `append`.
        """
        members = [
            prepared.members + "".join([_number(*pair) for pair in numbers.items()])
            for prepared, numbers in lines
        ]
        try:
            now = self._wall()
            if int(now) != self._second:
                self._settle(now)
            seq = self._write(members, now)
        except (OSError, AuditError) as exc:
            self._second = -1
            self.fault = _words(exc)
            raise AuditError(self.fault) from exc
        self.fault = None
        return seq

    def reopen(self) -> None:
        """Go on in a new file where the old one was moved away.

        Raises:
            AuditError: it cannot be made; the next append tries again.
        """
        try:
            self._settle(self._wall())
        except OSError as exc:
            raise AuditError(_words(exc)) from exc

    def anchor(self) -> None:
        """Sync the log and put its head down, if it changed: two syncs and a rename.

        Raises:
            AuditError: the anchor stays as it was. Lines can be written all the same.
        """
        try:
            self._settle(self._wall())
            self._write_anchor()
        except OSError as exc:
            raise AuditError(_words(exc)) from exc

    def close(self) -> None:
        """Anchor, where the disk lets us, and let go of the log; harmless when it is not open."""
        with contextlib.suppress(AuditError):
            self.anchor()
        self._release()

    def _release(self) -> None:
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = self._second = -1
        self._head = self._anchored = None
        self._notes.clear()

    def _settle(self, now: float) -> None:
        """Once a second: see that the file is still there and ours, and write what is owed."""
        if self._fd < 0:
            raise AuditError("audit log: it is not open")
        self._second = -1
        self._date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(now)))
        self._look()
        while self._notes:
            self._write([_members(self._notes[0])], now)
            del self._notes[0]
        self._second = int(now)

    def _look(self) -> None:
        ours = os.fstat(self._fd)
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            there = None
        if there is not None and os.path.samestat(ours, there):
            if ours.st_size != self._size:  # somebody else cut it or wrote to it
                self._attach(moved=False)
            return
        with contextlib.suppress(OSError):  # a full disk must not keep the log from being rotated
            self._write_anchor()
        self._attach(moved=ours.st_nlink > 0)  # a file that was deleted has no name left

    def _attach(self, *, moved: bool) -> None:
        """Open the file, mend its end and find the line from which the chain goes on."""
        fd = _open_private(self._path)
        try:
            size = os.fstat(fd).st_size
            last, end = _last_whole(fd, size, self._path)
            if end < size:
                torn = _read_at(fd, end, size - end)
                name = f"torn-{last.seq + 1 if last else 1}-{hashlib.sha256(torn).hexdigest()[:8]}"
                kept = _beside(self._path, name)
                write_private(kept, torn, replace=True)
                os.ftruncate(fd, end)
                self._notes.append({"event": "recovered", "bytes": len(torn), "kept": kept.name})
            head = self._continue(fd, end, last, moved=moved)
        except BaseException:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size, self._head = fd, end, head

    def _continue(self, fd: int, end: int, last: _Head | None, *, moved: bool) -> _Head:
        known = self._head or _read_anchor(self._path)
        if known is None:
            if last is not None or _beside(self._path, "head").exists():
                self._notes.append({"event": "unanchored"})
            return last or _GENESIS
        if last is None and (moved or known.seq == 0):
            if moved:
                self._notes.append({"event": "rotated"})
            return known
        if last == known:
            return known
        after = last is not None and last.seq > known.seq
        if last is not None and after and self._head is None and _contains(fd, end, known):
            return last
        found = last.seq if last else 0
        self._notes.append({"event": "broken", "known": known.seq, "found": found})
        return _Head(max(known.seq, found), known.hash)

    def _write(self, lines: list[str], now: float) -> int:
        seq, prev = self._head or _GENESIS
        first = seq + 1
        time = f',"time":"{self._date}.{int(now % 1 * 1e6):06d}Z"'
        sealed: list[bytes] = []
        for members in lines:
            seq += 1
            covered = f'{{"seq":{seq}{time}{members},"prev":"{prev}"'.encode("ascii")
            prev = hashlib.sha256(covered).hexdigest()
            sealed += covered, b',"hash":"', prev.encode("ascii"), b'"}\n'
        data = b"".join(sealed)
        try:
            if (written := os.write(self._fd, data)) < len(data):
                # A disk that is nearly full takes a part, and says why only when asked again.
                written += os.write(self._fd, data[written:])
                if written < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            # Where this fails too, the next look finds the half line and cuts it off.
            with contextlib.suppress(OSError):
                if os.fstat(self._fd).st_size > self._size:  # truncating must never lengthen it
                    os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)
        self._head = _Head(seq, prev)
        return first

    def _write_anchor(self) -> None:
        head = self._head
        if head is None or head == self._anchored:
            return
        os.fsync(self._fd)  # before the anchor, which must never be ahead of the log
        content = f'{{"seq":{head.seq},"hash":"{head.hash}"}}\n'.encode("ascii")
        write_private(_beside(self._path, "head"), content, replace=True)
        self._anchored = head


def _words(exc: OSError | AuditError) -> str:
    return str(exc) if isinstance(exc, AuditError) else f"audit log: {exc.strerror}"


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
    anchor = _read_anchor(paths[-1])  # before the lines: the log may grow meanwhile
    check = _Check(anchor, named=len(paths) > 1)
    for path in paths:
        check.begin(path.name)
        with path.open("rb") as file:
            while raw := file.readline(LONGEST_LINE):
                check.line(raw)
    return check.end(_beside(paths[-1], "head").name)


class _Check:
    def __init__(self, anchor: _Head | None, *, named: bool) -> None:
        self._anchor = anchor
        self._named = named
        self._findings: list[Finding] = []
        self._file = ""
        self._number = 0
        self._lines = 0
        self._first: _Line | None = None
        self._seq = 0  # of the line before
        self._hash: str | None = _GENESIS.hash  # of the line before; None where it cannot be read
        self._anchor_seen = anchor == _GENESIS

    def begin(self, name: str) -> None:
        self._file, self._number = name, 0

    def line(self, raw: bytes) -> None:
        self._number += 1
        self._lines += 1
        line = _Line.read(raw)
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

    def _link(self, line: _Line) -> None:
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
