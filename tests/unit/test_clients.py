"""Where clients keep their files, on systems that this one is not."""

from pathlib import Path

import pytest

from tunnel.clients import CLIENTS, PROJECT, Machine, candidates, places, redirected

DESKTOP = "claude_desktop_config.json"


def machine(tmp_path: Path, platform: str, python: str = "/usr", **environ: str) -> Machine:
    return Machine(platform, environ, tmp_path / "me", tmp_path / "project", Path(python))


def files(key: str, on: Machine, scope: str = "user") -> list[Path]:
    return [place.file for place in places(key, scope, on)]


@pytest.mark.parametrize(
    ("platform", "where"),
    [
        ("win32", "AppData/Roaming/Claude"),
        ("darwin", "Library/Application Support/Claude"),
        ("linux", ".config/Claude"),
    ],
)
def test_claude_desktop_without_an_environment(tmp_path: Path, platform: str, where: str) -> None:
    on = machine(tmp_path, platform)
    assert files("desktop", on) == []
    (on.home / where).mkdir(parents=True)
    assert files("desktop", on) == [on.home / where / DESKTOP]


def test_on_windows_the_packaged_one_besides(tmp_path: Path) -> None:
    on = machine(tmp_path, "win32", APPDATA=f"{tmp_path}/R", LOCALAPPDATA=f"{tmp_path}/L")
    packages = tmp_path / "L" / "Packages"
    for name in ("Claude_pzs8sxrjxfjjc", "Claude_other", "NotClaude_x", "Claudette"):
        (packages / name).mkdir(parents=True)
    inside = Path("LocalCache", "Roaming", "Claude", DESKTOP)
    packaged = [packages / "Claude_other" / inside, packages / "Claude_pzs8sxrjxfjjc" / inside]
    assert files("desktop", on) == packaged
    (tmp_path / "R" / "Claude").mkdir(parents=True)
    assert files("desktop", on) == [tmp_path / "R" / "Claude" / DESKTOP, *packaged]


@pytest.mark.parametrize("platform", ["darwin", "linux"])
def test_packages_are_a_thing_of_windows(tmp_path: Path, platform: str) -> None:
    (tmp_path / "L" / "Packages" / "Claude_x").mkdir(parents=True)
    assert files("desktop", machine(tmp_path, platform, LOCALAPPDATA=f"{tmp_path}/L")) == []


def test_xdg_on_linux_only(tmp_path: Path) -> None:
    (tmp_path / "xdg" / "Claude").mkdir(parents=True)
    xdg = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    assert files("desktop", machine(tmp_path, "linux", **xdg)) == [
        tmp_path / "xdg" / "Claude" / DESKTOP
    ]
    assert files("desktop", machine(tmp_path, "darwin", **xdg)) == []
    (tmp_path / "me" / ".config" / "Claude").mkdir(parents=True)
    empty = machine(tmp_path, "linux", XDG_CONFIG_HOME="")  # empty is unset, by its specification
    assert files("desktop", empty) == [tmp_path / "me" / ".config" / "Claude" / DESKTOP]


def test_claude_code(tmp_path: Path) -> None:
    on = machine(tmp_path, "win32")
    on.home.mkdir()
    assert files("code", on) == [on.home / ".claude.json"]
    (tmp_path / "other").mkdir()
    moved = machine(tmp_path, "linux", CLAUDE_CONFIG_DIR=str(tmp_path / "other"))
    assert files("code", moved) == [tmp_path / "other" / ".claude.json"]
    assert files("code", on, "project") == [on.directory / ".mcp.json"]


@pytest.mark.parametrize("platform", ["win32", "darwin", "linux"])
def test_cursor(tmp_path: Path, platform: str) -> None:
    on = machine(tmp_path, platform)
    assert files("cursor", on) == []
    (on.home / ".cursor").mkdir(parents=True)
    assert files("cursor", on) == [on.home / ".cursor" / "mcp.json"]
    assert files("cursor", on, "project") == [on.directory / ".cursor" / "mcp.json"]


@pytest.mark.parametrize(
    ("platform", "where"),
    [
        ("win32", "AppData/Roaming"),
        ("darwin", "Library/Application Support"),
        ("linux", ".config"),
    ],
)
def test_vs_code_and_its_insiders(tmp_path: Path, platform: str, where: str) -> None:
    on = machine(tmp_path, platform)
    (on.home / where / "Code - Insiders" / "User").mkdir(parents=True)
    assert files("vscode", on) == [on.home / where / "Code - Insiders" / "User" / "mcp.json"]
    assert files("vscode", on, "project") == [on.directory / ".vscode" / "mcp.json"]


def test_the_tables_are_those_of_the_clients(tmp_path: Path) -> None:
    assert {key: client.table for key, client in CLIENTS.items()} == {
        "desktop": "mcpServers",
        "code": "mcpServers",
        "cursor": "mcpServers",
        "vscode": "servers",
    }
    assert PROJECT.keys() == CLIENTS.keys() - {"desktop"}
    for key in CLIENTS:
        assert candidates(key, machine(tmp_path, "linux"))


STORE = "/Program Files/WindowsApps/PythonSoftwareFoundation.Python.3.11_3.11.2544.0_x64__qbz5"


@pytest.mark.parametrize(
    ("platform", "python", "file", "expected"),
    [
        ("win32", STORE, "me/AppData/Roaming/Claude/x", True),
        ("win32", STORE, "me/AppData/Local/Packages/Claude_x/LocalCache/x", True),
        ("win32", STORE, "me/.cursor/mcp.json", False),
        (
            "win32",
            "/Users/me/AppData/Local/Programs/Python/Python311",
            "me/AppData/Roaming/x",
            False,
        ),
        ("linux", STORE, "me/AppData/Roaming/Claude/x", False),
    ],
)
def test_a_python_from_the_store_writes_where_others_do_not_look(
    tmp_path: Path, platform: str, python: str, file: str, expected: bool
) -> None:
    assert redirected(tmp_path / file, machine(tmp_path, platform, python)) is expected
