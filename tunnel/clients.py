"""Where MCP clients keep their configuration, on each system.

Nothing is opened here: a place is told by the directories that exist.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Machine:
    """What the places depend on."""

    platform: str
    """As sys.platform."""
    environ: Mapping[str, str]
    home: Path
    directory: Path
    """The project, for what is configured by project."""
    python: Path
    """Where the running interpreter is installed."""

    @classmethod
    def here(cls) -> "Machine":
        """Return this machine."""
        return cls(sys.platform, os.environ, Path.home(), Path.cwd(), Path(sys.base_prefix))

    def directory_of(self, variable: str, *default: str) -> Path:
        """Return the directory that an environment variable names, or one below home."""
        return Path(self.environ.get(variable) or self.home.joinpath(*default))

    @property
    def roaming(self) -> Path:
        """Return where programs of this system keep a user's settings."""
        if self.platform == "win32":
            return self.directory_of("APPDATA", "AppData", "Roaming")
        if self.platform == "darwin":
            return self.home / "Library" / "Application Support"
        return self.directory_of("XDG_CONFIG_HOME", ".config")


@dataclass(frozen=True, slots=True)
class Client:
    """A program that starts MCP servers over stdio."""

    name: str
    table: str
    """The member of its file that holds the servers."""
    typed: bool
    """Whether an entry says "type": "stdio"."""
    again: str
    """What makes it read its file anew."""


CLIENTS = {
    "desktop": Client(
        "Claude Desktop",
        "mcpServers",
        typed=False,
        again="Quit Claude Desktop (closing its window is not enough) and start it again.",
    ),
    "code": Client(
        "Claude Code",
        "mcpServers",
        typed=True,
        again="Begin a new Claude Code session; /mcp shows the server.",
    ),
    "cursor": Client("Cursor", "mcpServers", typed=True, again="Restart Cursor."),
    "vscode": Client(
        "VS Code",
        "servers",
        typed=True,
        again="In VS Code, run the command `MCP: List Servers` and start it.",
    ),
}

PROJECT = {
    "code": Path(".mcp.json"),
    "cursor": Path(".cursor", "mcp.json"),
    "vscode": Path(".vscode", "mcp.json"),
}
"""The file of a project. Claude Desktop knows no projects."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file that a client reads, which may not exist yet."""

    client: Client
    scope: str
    file: Path


def places(key: str, scope: str, machine: Machine) -> list[Place]:
    """Return the files that the client reads, of those whose program has been here.

    Args:
        key: one of CLIENTS.
        scope: "user", or "project" for one of PROJECT.
        machine: where to look.
    """
    client = CLIENTS[key]
    if scope == "project":
        return [Place(client, scope, machine.directory / PROJECT[key])]
    there = (file for mark, file in candidates(key, machine) if mark.is_dir())
    return [Place(client, scope, file) for file in there]


def candidates(key: str, machine: Machine) -> list[tuple[Path, Path]]:
    """Return the user's files of a client, each behind the directory that shows it is installed."""
    if key == "desktop":
        return _desktop(machine)
    if key == "code":
        home = machine.directory_of("CLAUDE_CONFIG_DIR")
        return [(home, home / ".claude.json")]
    if key == "cursor":
        home = machine.home / ".cursor"
        return [(home, home / "mcp.json")]
    homes = [machine.roaming / name / "User" for name in ("Code", "Code - Insiders")]
    return [(home, home / "mcp.json") for home in homes]


def _desktop(machine: Machine) -> list[tuple[Path, Path]]:
    """Both of them on Windows: an installation from before the packaged one may still be in use."""
    name = "claude_desktop_config.json"
    plain = machine.roaming / "Claude"
    found = [(plain, plain / name)]
    if machine.platform == "win32":
        packages = machine.directory_of("LOCALAPPDATA", "AppData", "Local") / "Packages"
        for package in sorted(packages.glob("Claude_*")):
            found.append((package, package / "LocalCache" / "Roaming" / "Claude" / name))
    return found


def redirected(file: Path, machine: Machine) -> bool:
    """Return whether Windows would keep what we write to `file` for ourselves.

    To a Python from the Microsoft Store, AppData is its own copy, which no other program sees.
    """
    appdata = (
        machine.roaming,
        machine.directory_of("LOCALAPPDATA", "AppData", "Local"),
    )
    return (
        machine.platform == "win32"
        and "WindowsApps" in machine.python.parts
        and any(file.is_relative_to(one) for one in appdata)
    )
