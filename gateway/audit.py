"""The audit log: one JSON line an event, each carrying the hash of the line before it (`chain`).

Beside PATH lie PATH.head, the anchor: the last line's seq and hash, by which an end that was cut
off or written anew is noticed; PATH.lock, which keeps a second writer out; and PATH.torn-*, what a
crash left of a line. Whoever may write to all of them can forge the log as a whole, unless its head
is also kept elsewhere: `verify.verify` returns it.

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
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from keys.files import write_private

from .chain import GENESIS, LONGEST_LINE, Head, Line, beside, read_anchor

if sys.platform != "win32":
    import fcntl

LONGEST_TEXT = 256  # characters of a string
CHUNK = 1 << 14  # bytes read at once when reading backwards

_RESERVED = frozenset({"seq", "time", "prev", "hash"})
_PLAIN = frozenset({int, float, bool, type(None)})
_BEGINNING = b'{"seq":'
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


class AuditError(Exception):
    """The log cannot be written; the caller must deny."""


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


def _last_whole(fd: int, size: int, path: Path) -> tuple[Head | None, int]:
    """Return the last whole line's head, if there is one, and where that line ends."""
    end = size
    for start, raw in _backwards(fd, size):
        line = Line.read(raw)
        if line is not None and line.sound:
            return line.head, end
        if size - start > LONGEST_LINE:
            break
        end = start
    begins = _read_at(fd, 0, len(_BEGINNING))
    if end == 0 and _BEGINNING.startswith(begins):
        return None, 0
    raise AuditError(f"audit log: {path} does not end like an audit log; move it away")


def _contains(fd: int, end: int, known: Head) -> bool:
    """Whether a line follows `known`: a gateway that crashed had written on after it anchored."""
    for _, raw in _backwards(fd, end):
        line = Line.read(raw)
        if line is not None and line.head.seq <= known.seq + 1:
            return line.head.seq == known.seq + 1 and line.prev == known.hash
    return False


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
        self._head: Head | None = None  # None until the file has been looked at
        self._anchored: Head | None = None
        self._notes: list[dict[str, object]] = []  # events of our own that are still to be written
        self._second = -1  # in which the file was last looked at; -1: to be looked at
        self._date = ""  # that second, as a line has it

    def open(self) -> None:
        """Continue the chain of what is there; cut off and keep aside what a crash left of a line.

        Raises:
            AuditError: another process writes it, others may write to it, or it cannot be written.
        """
        try:
            self._lock = _open_private(beside(self._path, "lock"))
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
                kept = beside(self._path, name)
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

    def _continue(self, fd: int, end: int, last: Head | None, *, moved: bool) -> Head:
        known = self._head or read_anchor(self._path)
        if known is None:
            if last is not None or beside(self._path, "head").exists():
                self._notes.append({"event": "unanchored"})
            return last or GENESIS
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
        return Head(max(known.seq, found), known.hash)

    def _write(self, lines: list[str], now: float) -> int:
        seq, prev = self._head or GENESIS
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
        self._head = Head(seq, prev)
        return first

    def _write_anchor(self) -> None:
        head = self._head
        if head is None or head == self._anchored:
            return
        os.fsync(self._fd)  # before the anchor, which must never be ahead of the log
        content = f'{{"seq":{head.seq},"hash":"{head.hash}"}}\n'.encode("ascii")
        write_private(beside(self._path, "head"), content, replace=True)
        self._anchored = head


def _words(exc: OSError | AuditError) -> str:
    return str(exc) if isinstance(exc, AuditError) else f"audit log: {exc.strerror}"
