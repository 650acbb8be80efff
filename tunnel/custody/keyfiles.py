"""The key files in use: which they are, whether they can be used, and when they were replaced.

Where the settings name no files of their own, the pointer (`keys.pointer`) says which they are, and
may say others at any moment.
"""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from keys import certs
from keys.errors import KeyFileError
from keys.files import private_file_fault
from keys.keyring import load_token_key
from keys.locked import Unlock
from keys.pointer import Family, Names, pointer_file, read_pointer
from keys.sshkey import public_half

from .passphrase import ensure, passphrase

if TYPE_CHECKING:
    from ..settings import Https, Settings, Ssh

Stamp = tuple[int, int, int] | None


def directory(settings: "Settings") -> Path:
    """Return where keys and pointer are."""
    return settings.file.parent / "keys"


def with_names(settings: "Settings", names: Names) -> "Settings":
    """Return the settings with the key files of `names`, where they name none of their own."""
    keys = directory(settings)
    unlock = None
    if settings.keys.passphrase:
        unlock = functools.partial(passphrase, settings.file.parent)
    ssh = replace(settings.ssh, unlock=unlock)
    https = settings.https and replace(settings.https, unlock=unlock)
    if ssh.follows:
        ssh = replace(ssh, identity=keys / names.ssh)
    if https is not None and https.follows:
        https = replace(https, cert=keys / f"{names.tls}.crt", key=keys / f"{names.tls}.key")
    if https is not None and https.token_follows:
        https = replace(https, token_key=keys / names.token)
    return replace(settings, ssh=ssh, https=https)


def follow(settings: "Settings") -> "Settings":
    """Return the settings with the key files that the pointer names now.

    Raises:
        KeyFileError: the pointer cannot be believed.
    """
    return with_names(settings, read_pointer(directory(settings)))


def fixed(settings: "Settings", family: Family) -> str | None:
    """Return which keys of the settings name the files of `family`, or None where none do."""
    https = settings.https
    if family == "ssh":
        return None if settings.ssh.follows else "[ssh] identity"
    if https is None:
        return None
    if family == "token":
        return None if https.token_follows else "[https] token_key"
    return None if https.follows else "[https] cert and key"


def unlock_new(settings: "Settings") -> Unlock | None:
    """Return what new keys are locked with; the system's keyring has it from now on.

    Raises:
        KeyFileError: the keyring cannot be used.
    """
    if not settings.keys.passphrase:
        return None
    ensure(settings.file.parent)
    return settings.ssh.unlock


# Whether they can be used.


def ssh_fault(path: Path, unlock: Unlock | None) -> str | None:
    """Return in words why the SSH key in `path` must not be used, with the repair, or None."""
    if fault := private_file_fault(path):
        return fault
    return _fault(path, lambda: public_half(path, unlock))


def token_fault(path: Path, unlock: Unlock | None) -> str | None:
    """Return the same of a token key."""
    if fault := private_file_fault(path):
        return fault
    return _fault(path, lambda: load_token_key(path, unlock))


def pair_fault(cert: Path, key: Path, unlock: Unlock | None) -> str | None:
    """Return the same of a client certificate and its key, which must belong together."""
    if fault := private_file_fault(key):
        return fault

    def load() -> None:
        private = certs.load_private(key.read_bytes(), unlock)
        try:
            ours = certs.belongs(cert.read_bytes(), private)
        except ValueError:
            raise KeyFileError(f"{cert} is not one PEM certificate, whole.") from None
        if not ours:
            raise KeyFileError(f"{cert} is the certificate of another key than {key}.")

    return _fault(key, load)


def _fault(path: Path, load: Callable[[], object]) -> str | None:
    try:
        load()
    except KeyFileError as exc:
        text = str(exc)
        where = "" if str(path.parent) in text else f"{path}: "
        return f"{where}{text} Bring it back from where it is whole, or make new ones: {_REPAIR}"
    except OSError as exc:
        return f"{exc.filename or path} cannot be read ({exc.strerror})."
    return None


_REPAIR = "`catalyst-tunnel init` for ssh, `keys request` and `keys accept` for https."


def faults(settings: "Settings") -> list[str]:
    """Return every fault of the files that the settings name, as "[table] key: fault"."""
    found = []
    if "ssh" in settings.paths:
        found += _ssh_faults(settings.ssh)
    https = settings.https
    if https is not None and ("https" in settings.paths or settings.ssh.gateway):
        found += _https_faults(https, "https" in settings.paths)
    return found


def _ssh_faults(ssh: "Ssh") -> list[str]:
    found = []
    if ssh.identity is not None and (fault := private_file_fault(ssh.identity)):
        found.append(f"[ssh] identity: {fault}")
    try:
        ssh.known_hosts.read_bytes()
    except FileNotFoundError:
        text = f"{ssh.known_hosts} does not exist. `catalyst-tunnel init` pins the host key."
        found.append(f"[ssh] known_hosts: {text}")
    except OSError as exc:
        text = f"{ssh.known_hosts} cannot be read ({exc.strerror})."
        found.append(f"[ssh] known_hosts: {text}")
    return found


def _https_faults(https: "Https", whole: bool) -> list[str]:
    """Return the faults of token key and, where the path is used, of certificate and key."""
    secrets = [("token_key", https.token_key)] + ([("key", https.key)] if whole else [])
    found = []
    for name, secret in secrets:
        if not secret.exists():
            text = f"{secret} does not exist. `catalyst-tunnel keys request` makes it."
            found.append(f"[https] {name}: {text}")
        elif fault := private_file_fault(secret):
            found.append(f"[https] {name}: {fault}")
    if whole:
        public = [("cert", https.cert)] + ([("ca_file", https.ca_file)] if https.ca_file else [])
        found += [
            f"[https] {name}: {path} is missing. `catalyst-tunnel keys accept` writes it."
            for name, path in public
            if not path.is_file()
        ]
    return found


# When they were replaced.


def stamp(path: Path) -> Stamp:
    """Return what changes when the file is replaced or written to."""
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


class Current:
    """The settings with the key files of this moment; reads the pointer when it was replaced."""

    def __init__(self, settings: "Settings") -> None:
        self._pointer = pointer_file(directory(settings))
        self._seen: Stamp = None
        self._settings = settings
        self._fresh = False

    def settings(self) -> "Settings":
        """Return them; a pointer that cannot be believed leaves those of before."""
        now = stamp(self._pointer)
        if not self._fresh or now != self._seen:
            self._seen, self._fresh = now, True
            with contextlib.suppress(KeyFileError):  # `keys status` tells; what works goes on
                self._settings = follow(self._settings)
        return self._settings

    def ssh(self) -> list[Path]:
        """Return the files of an SSH connection."""
        identity = self.settings().ssh.identity
        return [] if identity is None else [identity]

    def https(self) -> list[Path]:
        """Return the files of an https session."""
        https = self.settings().https
        return [] if https is None else [https.cert, https.key, https.token_key]


class Made:
    """What a connection was made with: the current files, as they were then.

    Args:
        files: returns the current ones, whenever it is asked.
    """

    def __init__(self, files: Callable[[], list[Path]]) -> None:
        self._files = files
        self._with = self._now()

    def _now(self) -> list[tuple[Path, Stamp]]:
        return [(file, stamp(file)) for file in self._files()]

    @property
    def outdated(self) -> bool:
        """Whether the current files are others now, and all of them are there."""
        now = self._now()
        return now != self._with and all(seen is not None for _, seen in now)
