"""Which ssh session came in with which key, and how exactly those are ended.

sshd does not tell. But it asks for each key that it is offered (`authorized`), from the process
that the connection belongs to: so a note is kept, before the answer, that this process was offered
this key. A note is an empty file, PID.START.FINGERPRINT, the last in base64url. Whatever has
offered a key that is not accepted any longer is ended; it may have come in with another, and comes
back.

The notes are written by an account that is trusted with less than we are. So a process is ended
only if it is a connection of sshd's, and of the account that tunnels come in by. Linux: proc(5).
"""

import base64
import contextlib
import os
import re
import signal
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .settings import Layout

if sys.platform == "win32":
    raise ImportError("The gateway is for the droplet: Linux, or another POSIX system.")

_PROC = Path("/proc")
_NOTE = re.compile(r"([1-9][0-9]{0,9})\.([0-9]{1,20})\.([A-Za-z0-9_-]{43})")
_TITLE = re.compile(r"sshd(?:-session|-auth)?: ([a-z_][a-z0-9_-]{0,31})(?:@| \[|$)")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, told apart from a later one with the same number."""

    pid: int
    start: int
    """When it began, in clock ticks since the machine did."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What `end` came to, in connections."""

    count: int
    missed: int
    """Those that we may not end."""


@dataclass(frozen=True, slots=True)
class _Seen:
    process: Process
    parent: int
    name: str
    title: str

    @property
    def account(self) -> str | None:
        """Whose connection it is, where it is one of sshd's."""
        match = _TITLE.match(self.title) if self.name.startswith("sshd") else None
        return match[1] if match else None

    @property
    def coming(self) -> bool:
        """Whether it is the part of a connection that is there until the login is over."""
        return self.account is not None and self.title.endswith(" [net]")


def note(layout: Layout, pid: int, fingerprint: str) -> None:
    """Keep that the sshd which `pid` works for was offered the key; forget what is over.

    Raises:
        OSError: it cannot be kept.
    """
    seen = _look(pid)
    while seen is not None and not seen.name.startswith("sshd"):  # a script in between
        seen = _look(seen.parent)
    if seen is None:
        raise ProcessLookupError("it is not sshd that asks")
    raw = base64.b64decode(fingerprint.removeprefix("SHA256:") + "=")
    name = base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")
    file = layout.sessions / f"{seen.process.pid}.{seen.process.start}.{name}"
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    for old, process, _ in _notes(layout):
        if not _alive(process):
            old.unlink(missing_ok=True)


def end(layout: Layout, account: str, accepted: frozenset[str], *, unknown: bool) -> Ended:
    """End the connections of `account` that offered a key which is not accepted.

    Args:
        layout: where the notes are.
        account: that tunnels come in by.
        accepted: fingerprints.
        unknown: whether to end also those of which no note tells the key, once they are in.
    """
    everything = {seen.process.pid: seen for seen in _everything()}
    # After the look at the processes: whoever was in by then had been noted before.
    offered: dict[Process, set[str]] = defaultdict(set)
    for _, process, fingerprint in _notes(layout):
        offered[process].add(fingerprint)
    # Whoever has not proved himself yet will be asked for his key, and by then it is not accepted.
    coming = {seen.parent for seen in everything.values() if seen.coming}
    ended: list[bool] = []
    for seen in everything.values():
        parent = everything.get(seen.parent)
        if seen.account != account or (parent is not None and parent.account == account):
            continue  # no connection, or a part of one
        keys = offered.get(seen.process)
        if (keys - accepted) if keys else unknown and seen.process.pid not in coming:
            ended.append(_end(seen.process, everything))
    return Ended(sum(ended), len(ended) - sum(ended))


def _end(connection: Process, everything: dict[int, _Seen]) -> bool:
    """End a connection: first what forwards, then what watches over it; say whether we could."""
    children = defaultdict(list)
    for seen in everything.values():
        children[seen.parent].append(seen.process)
    family, waiting = [connection], [connection]
    while waiting:
        found = children[waiting.pop().pid]
        family += found
        waiting += found
    over = [_kill(process) for process in reversed(family)]
    return all(over)


def _kill(process: Process) -> bool:
    """Kill this process and no other, even if its number has been given away since.

    Returns:
        Whether it is over.
    """
    try:
        with _held(process.pid) as kill:
            if _alive(process):
                kill()
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


@contextlib.contextmanager
def _held(pid: int) -> Iterator[Callable[[], None]]:
    """Hand out what kills the process that has this number now."""
    if sys.platform != "linux":
        yield lambda: os.kill(pid, signal.SIGKILL)
        return
    fd = os.pidfd_open(pid)
    try:
        yield lambda: signal.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        os.close(fd)


def _notes(layout: Layout) -> Iterator[tuple[Path, Process, str]]:
    try:
        files = list(layout.sessions.iterdir())
    except OSError:
        return
    for file in files:
        if match := _NOTE.fullmatch(file.name):
            raw = base64.urlsafe_b64decode(match[3] + "=")
            fingerprint = base64.b64encode(raw).decode("ascii").rstrip("=")
            process = Process(int(match[1]), int(match[2]))
            yield file, process, f"SHA256:{fingerprint}"


def _everything() -> Iterator[_Seen]:
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit() and (seen := _look(int(entry.name))):
            yield seen


def _alive(process: Process) -> bool:
    seen = _look(process.pid)
    return seen is not None and seen.process == process


def _look(pid: int) -> _Seen | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
        title = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return None
    # PID (NAME) STATE PPID ...: a name may hold brackets and blanks; 22 is the start time.
    name, _, rest = text.partition("(")[2].rpartition(") ")
    fields = rest.split()
    told = title.partition(b"\0")[0].decode(errors="replace")
    return _Seen(Process(pid, int(fields[19])), int(fields[1]), name, told)
