"""Our entry in the files of MCP clients: made, found and taken away with care.

The files belong to other programs. So each change is planned first, from the bytes that are there;
it touches our entry only, keeps a copy of what was there, and is given up when the file changed
in the meantime.
"""

import difflib
import os
import shutil
import stat
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

from keys.files import write_whole

from . import jsonedit
from .clients import Place

NAME = "catalyst-trading"
_BOM = b"\xef\xbb\xbf"


class ClientFileError(Exception):
    """A client's file is left as it was; says why, in words."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change that has been planned; `before` is None where there is no file yet."""

    place: Place
    target: Path
    """The file itself, where the place is a link to it."""
    before: bytes | None
    after: bytes

    @property
    def needed(self) -> bool:
        """Return whether anything would change."""
        return self.after != (self.before or b"")

    def diff(self) -> str:
        """Return the change as a unified diff."""
        name = str(self.target)
        lines = difflib.unified_diff(_lines(self.before or b""), _lines(self.after), name, name)
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


def _lines(content: bytes) -> list[str]:
    return content.decode("utf-8-sig").replace("\r\n", "\n").splitlines(keepends=True)


@dataclass(frozen=True, slots=True)
class Found:
    """An entry of ours in a client's file, and what it refers to."""

    name: str
    command: str
    args: list[str]
    command_exists: bool
    config: str
    config_exists: bool


def command() -> list[str]:
    """Return how this installation is started, wherever the caller stands.

    The console script that was installed with this package, or else the interpreter.
    """
    name = "catalyst-tunnel.exe" if sys.platform == "win32" else "catalyst-tunnel"
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    for scheme in schemes:
        script = Path(sysconfig.get_path("scripts", scheme), name)
        if script.is_file():
            return [str(script.absolute())]
    return [sys.executable, "-m", "tunnel"]


def plan_install(place: Place, name: str, config: Path) -> Change:
    """Plan that the entry `name` starts the bridge with the settings in `config`.

    What else our entry holds (an `env`, say) stays.

    Raises:
        ClientFileError: the file is not what may be changed, or `name` is another server.
        OSError: it cannot be read.
    """
    start, *rest = command()
    entry: dict[str, Any] = {"type": "stdio"} if place.client.typed else {}
    entry |= {"command": start, "args": [*rest, "stdio", "--config", str(config.absolute())]}
    target, before, bom, text = _read(place)
    servers = _servers(place, text)
    old = _ours(place, name, servers[name]) if name in servers else {}
    entry = old | entry
    if entry == old:
        return Change(place, target, before, before or b"")
    try:
        content = jsonedit.put(text, place.client.table, name, entry).encode("utf-8")
    except UnicodeEncodeError:
        raise ClientFileError("A path that is not text cannot be told to a client.") from None
    return Change(place, target, before, bom + content)


def plan_remove(place: Place, name: str) -> Change:
    """Plan that there is no entry `name`.

    Raises:
        ClientFileError: the file is not what may be changed, or `name` is another server.
        OSError: it cannot be read.
    """
    target, before, bom, text = _read(place)
    servers = _servers(place, text)
    if name not in servers:
        return Change(place, target, before, before or b"")
    _ours(place, name, servers[name])
    after = jsonedit.take(text, place.client.table, name).encode("utf-8")
    return Change(place, target, before, bom + after)


def carry_out(change: Change) -> Path | None:
    """Make the change, whole or not at all; return the copy of what was there before, if any.

    Raises:
        ClientFileError: the file is no longer what the change was planned for.
        OSError: the copy or the file cannot be written.
    """
    target = change.target
    if _content(target) != change.before:
        raise ClientFileError(f"{target} was changed by its program meanwhile. Run this again.")
    if change.before is None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, change.after, replace=False, mode=0o600)
        return None
    copy = _keep(target, change.before)
    mode = stat.S_IMODE(target.stat().st_mode)
    write_whole(target, change.after, replace=True, mode=mode)
    return copy


def _keep(target: Path, content: bytes) -> Path:
    """Write `content` beside `target`, under the first name that is free."""
    number = 1
    while True:
        copy = target.with_name(f"{target.name}.bak-{number}")
        try:
            write_whole(copy, content, replace=False, mode=0o600)
        except FileExistsError:
            number += 1
        else:
            return copy


def find(place: Place) -> list[Found]:
    """Return our entries in a client's file, under whatever name.

    Raises:
        ClientFileError: the file cannot be understood.
        OSError: it cannot be read.
    """
    *_, text = _read(place)
    found = []
    for name, entry in _servers(place, text).items():
        if _is_ours(entry):
            args = entry["args"]
            config = args[args.index("stdio") + 2]
            start = entry["command"]
            there = shutil.which(start) is not None
            found.append(Found(name, start, args, there, config, Path(config).is_file()))
    return found


def _is_ours(entry: object) -> bool:
    """Return whether an entry is one that `plan_install` could have written."""
    match entry:
        case {"command": str(start), "args": ["stdio", "--config", str()]}:
            return PureWindowsPath(start).stem == "catalyst-tunnel"  # reads both kinds of slash
        case {"command": str(), "args": ["-m", "tunnel", "stdio", "--config", str()]}:
            return True
    return False


def _ours(place: Place, name: str, entry: Any) -> dict[str, Any]:
    """Return the entry if it is ours; refuse to touch it if not."""
    if not _is_ours(entry):
        raise ClientFileError(
            f'{place.file} has another server under the name "{name}", which is left alone. '
            "Choose another --name, or change that entry by hand."
        )
    mine: dict[str, Any] = entry
    return mine


def _servers(place: Place, text: str) -> dict[str, Any]:
    try:
        return jsonedit.table_of(text, place.client.table)
    except jsonedit.JsonTextError as exc:
        raise ClientFileError(f"{place.file} {exc}. It is left alone: repair it first.") from exc


def _read(place: Place) -> tuple[Path, bytes | None, bytes, str]:
    """Return the file behind the place, its bytes, its byte order mark, and its text."""
    target = Path(os.path.realpath(place.file))
    before = _content(target)
    content = before or b""
    bom = _BOM if content.startswith(_BOM) else b""
    try:
        return target, before, bom, content.removeprefix(bom).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ClientFileError(
            f"{place.file} is not UTF-8 (byte {exc.start}). It is left alone: save it as UTF-8."
        ) from exc


def _content(target: Path) -> bytes | None:
    try:
        return target.read_bytes()
    except FileNotFoundError:
        return None
