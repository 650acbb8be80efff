"""The pointer: which of a laptop's key files are in use, as one small file that is replaced whole.

A rotation writes new keys under new names beside the old ones and then replaces the pointer: that
one rename is the switch. Without a pointer the names are those of the first keys.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from . import strictjson
from .errors import KeyFileError
from .files import private_file_fault, write_private

Family = Literal["ssh", "token", "cert"]
FAMILIES: tuple[Family, ...] = ("ssh", "token", "cert")

_SIZE = 4096  # bytes
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")  # in the pointer's own directory


@dataclass(frozen=True, slots=True)
class Names:
    """The names of the key files in use, without their directory."""

    ssh: str = "ssh_ed25519"
    token: str = "token.key"  # noqa: S105
    tls: str = "tls"
    """Of certificate and key: "tls" stands for tls.crt and tls.key."""

    def files(self, family: Family) -> tuple[str, ...]:
        """Return the files of one family; private halves first."""
        match family:
            case "ssh":
                return self.ssh, f"{self.ssh}.pub"
            case "token":
                return (self.token,)
            case "cert":
                return f"{self.tls}.key", f"{self.tls}.crt"

    def after(self, families: Collection[Family], taken: Collection[str]) -> "Names":
        """Return the names of the next keys of `families`: numbered on, and not among `taken`."""
        names = self
        for family in families:
            number = self._number(family) + 1
            while set((following := names._numbered(family, number)).files(family)) & set(taken):
                number += 1
            names = following
        return names

    def _number(self, family: Family) -> int:
        match = re.search(r"-([0-9]{1,9})(\.key)?$", self.files(family)[0])
        return int(match[1]) if match else 1

    def _numbered(self, family: Family, number: int) -> "Names":
        def again(name: str) -> str:
            return f"{re.sub(r'-[0-9]{1,9}$', '', name)}-{number}"

        match family:
            case "ssh":
                return replace(self, ssh=again(self.ssh))
            case "token":
                return replace(self, token=f"{again(self.token.removesuffix('.key'))}.key")
            case "cert":
                return replace(self, tls=again(self.tls))

    def to_json(self) -> dict[str, str]:
        """Return it as plain data."""
        return {"ssh": self.ssh, "token": self.token, "tls": self.tls}

    @classmethod
    def from_json(cls, content: object) -> "Names":
        """Return what `to_json` gave.

        Raises:
            ValueError: `content` is something else.
        """
        if not isinstance(content, dict) or content.keys() != set(cls.__slots__):
            raise ValueError("must have ssh, token and tls, and nothing else")
        for name in content.values():
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise ValueError("must name files in its own directory")
        return cls(**content)


def pointer_file(keys: Path) -> Path:
    """Return the pointer of the directory `keys`."""
    return keys / "current.json"


def read_pointer(keys: Path) -> Names:
    """Return the names that the pointer in `keys` holds, or the first ones where there is none.

    Raises:
        KeyFileError: it cannot be believed; says why, and what to do.
    """
    file = pointer_file(keys)
    try:
        if not file.exists():
            return Names()
        if fault := private_file_fault(file):
            raise KeyFileError(fault)
        content = strictjson.loads(file.read_bytes()[:_SIZE])
        if not isinstance(content, dict) or content.pop("version", None) != 1:
            raise ValueError("must be of version 1")
        return Names.from_json(content)
    except OSError as exc:
        raise KeyFileError(f"{file} cannot be read ({exc.strerror}).") from exc
    except ValueError as exc:
        raise KeyFileError(
            f"{file} is damaged: {exc}. Write it anew with the names of the newest files beside "
            "it, or remove it where they are the first ones."
        ) from None


def write_pointer(keys: Path, names: Names) -> None:
    """Point at `names`, at once and through to the disk.

    Raises:
        OSError: it cannot be written; it is left as it was.
    """
    content = strictjson.dumps({"version": 1, **names.to_json()}) + b"\n"
    write_private(pointer_file(keys), content, replace=True)
