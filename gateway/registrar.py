"""`registrar`: the one process besides the operator's commands that writes the registry.

It may use the client CA's key, and `serve`, which strangers talk to, may not. They speak over a
Unix socket: a line with a client's signed statement there, a line of JSON back. What the gateway
says about who is calling counts for nothing: the statement is verified here, against the registry.

One statement at a time, which is what a registry that many change wants anyway.
"""

import contextlib
import logging
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from keys import certs, statement, strictjson
from keys.errors import KeyFileError, in_words
from keys.jws import TokenError
from keys.reloadable import Reloadable

from . import authority, issued, keychange, sessions
from . import registry as registries
from . import settings as settings_file
from .changing import ConflictError, drafting
from .clients import private_ca
from .keychange import Change, ChangeError
from .settings import Layout, Settings

if sys.platform == "win32":
    raise ImportError("The gateway is for the droplet: Linux, or another POSIX system.")

import fcntl

LOOK = 0.5  # seconds between looks at a registry that others changed
PATIENCE = 5.0  # seconds that the gateway may take to say a line
_PEER = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED
_PEERCRED = getattr(socket, "SO_PEERCRED", 17)  # its number on Linux, which alone has it
_BACKLOG = 64

_log = logging.getLogger(__name__)


class RegistrarError(Exception):
    """The registrar cannot start; says why, with the remedy."""


def run(layout: Layout, on_ready: Callable[[str], None]) -> None:
    """Take statements until SIGTERM or SIGINT; `on_ready` is told where.

    Raises:
        RegistrarError: it cannot start.
    """
    try:
        settings_file.load(layout.settings)
        registrar = Registrar(layout)
        with _alone(layout), _listening(layout.registrar) as door, _ended() as over:
            registrar.end_sessions()
            on_ready(f"unix:{layout.registrar}")
            while over not in (ready := select.select([door, over], [], [], LOOK)[0]):
                if door in ready and (link := _accept(door)):
                    registrar.welcome(link)
                registrar.look()
    except (OSError, ValueError) as exc:
        raise RegistrarError(in_words(exc)) from exc


class Registrar:
    """Changes the registry as clients say, and ends ssh sessions that it no longer lets in.

    Raises (on construction):
        ValueError, OSError: the registry cannot be read.
    """

    def __init__(self, layout: Layout, wall: Callable[[], float] = time.time) -> None:
        self._layout = layout
        self._wall = wall
        self._registry = Reloadable(layout.registry, registries.load)
        self._accepted = self._registry.value.ssh_accepted()
        self._generation = 0

    # One line from the gateway

    def welcome(self, link: socket.socket) -> None:
        """Read a statement from a connection, and answer it."""
        with link:
            try:
                peer = _PEER.unpack(link.getsockopt(socket.SOL_SOCKET, _PEERCRED, _PEER.size))[1]
                if peer not in (0, os.geteuid(), self._layout.sessions.parent.stat().st_uid):
                    _log.error("hung up on a process of user %d", peer)
                    return
                line = _read_line(link)
                if line is not None:
                    link.sendall(strictjson.dumps(self.answer(line)) + b"\n")
            except OSError as exc:
                _log.warning("the gateway: %s", exc.strerror or exc)

    def answer(self, line: str) -> dict[str, Any]:
        """Return what is answered to a statement; nothing is raised, whatever it is.

        `{"answer": {...}}`, or `{"code": ..., "reason": ..., "generation": ...}`: see
        docs/protocol.md for the codes.
        """
        try:
            done = self._change(line)
        except TokenError as exc:
            return {"code": "statement_invalid", "reason": exc.code}
        except ChangeError as exc:
            told: dict[str, Any] = {"code": exc.code, "reason": exc.reason}
            if exc.code == "generation_mismatch":
                told["generation"] = self._generation
            return told
        except _CaError as exc:
            _log.error("the client CA cannot be used: %s", exc)
            return {"code": "ca_unavailable", "reason": "ca_unusable"}
        except (OSError, ValueError, KeyFileError, ConflictError) as exc:
            _log.error("not changed: %s", in_words(exc))
            return {"code": "registrar_unavailable", "reason": "not_written"}
        except Exception:  # noqa: BLE001  a defect must cost one statement, and tell nobody anything
            _log.exception("defect")
            return {"code": "registrar_unavailable", "reason": "defect"}
        return {"answer": done}

    def _change(self, line: str) -> dict[str, Any]:
        now = self._wall()
        settings = settings_file.load(self._layout.settings)
        with drafting(self._layout) as draft:
            registry = draft.registry
            self._generation = registry.generation
            said = statement.read(line, settings.audience, registry.ring(), now)

            def issue(csr: str, present: frozenset[str]) -> tuple[str, str]:
                return self._issue(csr, present, said.client, now)

            change = keychange.apply(registry, said, issue)
            answer = self._completed(settings, change)
            saved = draft.save(change.registry)
        _log.info("%s: %s, generation %d", said.client, said.method, saved.generation)
        self._tidy(change)
        return answer | {"generation": saved.generation}

    def _completed(self, settings: Settings, change: Change) -> dict[str, Any]:
        """Return the answer, with what has to be read before anything is changed."""
        if change.answer["catalyst"] != "introduced":
            return change.answer
        return change.answer | {"ca": private_ca(self._layout, settings)}

    def _issue(self, csr: str, present: frozenset[str], client: str, now: float) -> tuple[str, str]:
        """Return a certificate of the current CA for the key in `csr`: the one there is, or new."""
        try:
            signer = authority.load(self._layout)
        except (OSError, KeyFileError) as exc:
            raise _CaError(in_words(exc)) from exc
        ours = signer.certificate_pem()
        for name in present:
            found = issued.find(self._layout, name)
            if found is None or not certs.issued_by(found.pem, ours):
                continue
            if found.not_after > now and certs.same_key(found.pem, csr.encode()):
                return name, found.pem.decode("ascii")
        pem = certs.issue(signer, csr.encode(), client, now, certs.CLIENT_DAYS)
        return issued.keep(self._layout, pem).thumbprint, pem.decode("ascii")

    def _tidy(self, change: Change) -> None:
        for name in change.dropped:
            try:
                issued.forget(self._layout, name)
            except OSError as exc:
                _log.warning("%s", in_words(exc))

    # Sessions

    def look(self) -> None:
        """Look at the registry again where somebody changed it, and see to the sessions.

        One that cannot be read ends nothing: sshd lets nobody in by it.
        """
        if not self._registry.changed():
            return
        if self._registry.reload():
            self.end_sessions()
        else:
            _log.error("ssh sessions are left alone: %s", self._registry.fault)

    def end_sessions(self) -> None:
        """End the ssh sessions whose keys are not accepted, also those of before our time."""
        accepted = self._registry.value.ssh_accepted()
        gone = bool(self._accepted - accepted)
        try:
            account = settings_file.load(self._layout.settings).ssh_user
        except (OSError, ValueError) as exc:
            _log.error("ssh sessions are left alone: %s", in_words(exc))
            return
        ended = sessions.end(self._layout, account, accepted, unknown=gone)
        if ended.count:
            _log.info("ended %d ssh sessions", ended.count)
        if ended.missed:
            _log.error("%d ssh sessions cannot be ended: the registrar is not root", ended.missed)
        self._accepted = accepted


class _CaError(Exception):
    """The client CA cannot be used now."""


def _accept(door: socket.socket) -> socket.socket | None:
    try:
        return door.accept()[0]
    except (BlockingIOError, ConnectionError):
        return None  # it has gone again


def _read_line(link: socket.socket) -> str | None:
    """Return what stands before the first line feed; None where the other end says no line."""
    text = bytearray()
    limit = time.monotonic() + PATIENCE
    while b"\n" not in text:
        link.settimeout(max(0.01, limit - time.monotonic()))
        piece = link.recv(8192)
        if not piece or len(text) > statement.SIZE:
            return None
        text += piece
    return text.partition(b"\n")[0].decode("latin-1")


@contextlib.contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """Be the only registrar of this directory.

    Raises:
        RegistrarError: there is one.
        OSError: the lock cannot be had.
    """
    path = layout.directory / ".registrar.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RegistrarError(f"A registrar for {layout.directory} runs already.") from None
        yield


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """Listen in the file system, for ourselves and the owner of the socket's directory only.

    That owner is the gateway. It may put what it likes there, a link to a file of root's for one,
    so the socket is made and given away in a directory of our own, and then moved.
    """
    owner = path.parent.stat().st_uid
    with (
        tempfile.TemporaryDirectory(prefix=".registrar.", dir=path.parent.parent) as own,
        socket.socket(socket.AF_UNIX) as door,
    ):
        fresh = Path(own) / "s"
        door.bind(str(fresh))
        fresh.chmod(0o600)
        if owner != os.geteuid():
            os.chown(fresh, owner, -1)
        door.listen(_BACKLOG)
        door.setblocking(False)
        fresh.replace(path)
        try:
            yield door
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


@contextlib.contextmanager
def _ended() -> Iterator[socket.socket]:
    """Hand out a socket that becomes readable when it is time to end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        before = signal.set_wakeup_fd(theirs.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            yield ours
        finally:
            signal.set_wakeup_fd(before)
