"""The journal of a rotation on the disk, and how one ends."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from keys.errors import KeyFileError
from keys.files import private_file_fault
from keys.pointer import Family, Names
from keys.rotation import Journal, Step

from ..settings import Settings
from .keyfiles import directory
from .wayin import gateway_paths

WHAT: dict[Family, str] = {"ssh": "SSH key", "token": "token key", "cert": "certificate"}


class RotateError(Exception):
    """No rotation was begun; says why."""


class StuckError(Exception):
    """A step cannot be done now; the journal stays, and the rotation goes on later."""

    def __init__(self, step: Step, text: str) -> None:
        self.step = step
        super().__init__(text)


@dataclass
class Outcome:
    """How a rotation ended."""

    step: Step
    families: tuple[Family, ...]
    names: Names
    """The keys that are in use now."""
    reason: str | None = None
    """Why it was taken back, where it was."""
    warnings: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    """What each step took."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "names": self.names.to_json()}


def journal_file(settings: Settings) -> Path:
    """Return where the journal of a rotation is, while there is one."""
    return directory(settings) / "rotation.json"


def lock_file(settings: Settings) -> Path:
    """Return the file that whoever rotates holds locked."""
    return directory(settings) / "rotation.lock"


def read_journal(settings: Settings) -> Journal | None:
    """Return the rotation that was begun and not finished, if any.

    Raises:
        KeyFileError: the journal cannot be believed; says what to do.
    """
    file = journal_file(settings)
    try:
        if not file.exists():
            return None
        if fault := private_file_fault(file):
            raise KeyFileError(fault)
        return Journal.read(file.read_bytes())
    except OSError as exc:
        raise KeyFileError(f"{file} cannot be read ({exc.strerror}).") from exc
    except ValueError as exc:
        raise KeyFileError(
            f"{file} is damaged ({exc}). The pointer beside it names the keys in use: see with "
            "`catalyst-tunnel keys list` that they are there, then remove the file."
        ) from None


def families_of(settings: Settings) -> tuple[Family, ...]:
    """Return the families of keys that these settings use."""
    used: list[Family] = []
    if "ssh" in settings.paths and settings.ssh.identity is not None:
        used.append("ssh")
    if gateway_paths(settings):
        used.append("token")
    if "https" in settings.paths:
        used.append("cert")
    return tuple(used)
