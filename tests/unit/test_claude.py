"""Our entry in the files of other programs."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tunnel.claude import (
    Change,
    ClientFileError,
    carry_out,
    command,
    find,
    plan_install,
    plan_remove,
)
from tunnel.clients import CLIENTS, Place

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes and links are POSIX")
NAME = "catalyst-trading"
OTHER = b"""\
{
    "theme": "dark",
    "mcpServers": {
        "git": {"command": "uvx", "n": 1.50}
    }
}
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    (tmp_path / "Claude").mkdir()
    return Place(CLIENTS["desktop"], "user", tmp_path / "Claude" / "config.json")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "home" / "config.toml"


def install(place: Place, config: Path, name: str = NAME) -> tuple[Change, Path | None]:
    change = plan_install(place, name, config)
    return change, carry_out(change) if change.needed else None


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_command_is_absolute_and_is_this_program() -> None:
    start = command()
    assert Path(start[0]).is_absolute()
    done = subprocess.run([*start, "--version"], capture_output=True, text=True, timeout=30)
    assert done.stdout.startswith("catalyst-tunnel, version ")


def test_without_a_script_the_interpreter_starts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda *_: "/nowhere")
    assert command() == [sys.executable, "-m", "tunnel"]


@pytest.mark.parametrize("platform", ["linux", "win32"])
def test_the_script_has_the_name_that_its_system_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str
) -> None:
    for name in ("catalyst-tunnel", "catalyst-tunnel.exe"):
        (tmp_path / name).touch()
    monkeypatch.setattr("sysconfig.get_path", lambda *_: str(tmp_path))
    monkeypatch.setattr("tunnel.claude.sys.platform", platform)
    name = "catalyst-tunnel.exe" if platform == "win32" else "catalyst-tunnel"
    assert command() == [str(tmp_path / name)]


def test_a_file_that_is_missing_is_made(place: Place, config: Path) -> None:
    _, copy = install(place, config)
    assert copy is None
    assert json.loads(place.file.read_bytes()) == {
        "mcpServers": {
            NAME: {"command": command()[0], "args": ["stdio", "--config", str(config)]},
        }
    }
    assert names(place.file.parent) == ["config.json"]
    if sys.platform != "win32":
        assert stat.S_IMODE(place.file.stat().st_mode) == 0o600


@pytest.mark.parametrize("key", ["code", "cursor", "vscode"])
def test_clients_that_want_a_type_and_their_own_table(
    tmp_path: Path, config: Path, key: str
) -> None:
    place = Place(CLIENTS[key], "project", tmp_path / ".sub" / "mcp.json")
    install(place, config)
    [[table, servers]] = json.loads(place.file.read_bytes()).items()
    assert table == ("servers" if key == "vscode" else "mcpServers")
    assert list(servers[NAME]) == ["type", "command", "args"]
    assert servers[NAME]["type"] == "stdio"


@pytest.mark.parametrize("content", [b"", b"  \n", b"{}", b"\xef\xbb\xbf", b"\xef\xbb\xbf{}"])
def test_an_empty_file_counts_as_an_empty_object(
    place: Place, config: Path, content: bytes
) -> None:
    place.file.write_bytes(content)
    install(place, config)
    after = place.file.read_bytes()
    assert after.startswith(b"\xef\xbb\xbf") == content.startswith(b"\xef\xbb\xbf")
    assert list(json.loads(after.decode("utf-8-sig"))["mcpServers"]) == [NAME]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_the_rest_stays_and_comes_back_to_the_byte(
    place: Place, config: Path, bom: bytes, newline: bytes
) -> None:
    original = bom + OTHER.replace(b"\n", newline)
    place.file.write_bytes(original)
    _, copy = install(place, config)
    after = place.file.read_bytes()
    before_it, _, behind_it = original.partition(b'"n": 1.50}')
    assert after.startswith(before_it)
    assert after.endswith(behind_it)
    assert after.count(b"\r\n") == (after.count(b"\n") if newline == b"\r\n" else 0)
    assert copy is not None
    assert copy.read_bytes() == original
    carry_out(plan_remove(place, NAME))
    assert place.file.read_bytes() == original


def test_a_second_run_changes_nothing(place: Place, config: Path) -> None:
    place.file.write_bytes(OTHER)
    install(place, config)
    content, there = place.file.read_bytes(), names(place.file.parent)
    change = plan_install(place, NAME, config)
    assert not change.needed
    assert change.diff() == ""
    assert (place.file.read_bytes(), names(place.file.parent)) == (content, there)
    assert not plan_remove(place, "another").needed


def test_copies_are_never_overwritten(place: Place, config: Path) -> None:
    place.file.write_bytes(OTHER)
    taken = place.file.with_name("config.json.bak-1")
    taken.write_text("somebody's")
    _, first = install(place, config)
    carry_out(plan_remove(place, NAME))
    assert taken.read_text() == "somebody's"
    assert first == place.file.with_name("config.json.bak-2")
    assert first.read_bytes() == OTHER
    assert names(place.file.parent) == ["config.json", *(f"config.json.bak-{n}" for n in (1, 2, 3))]


@POSIX
def test_copies_are_private_and_the_file_keeps_its_mode(place: Place, config: Path) -> None:
    place.file.write_bytes(b'{"mcpServers": {"x": {"env": {"TOKEN": "secret"}}}}')
    place.file.chmod(0o644)
    _, copy = install(place, config)
    assert copy is not None
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.file.stat().st_mode) == 0o644


@POSIX
@pytest.mark.parametrize("there", [True, False])
def test_through_a_link_its_target_is_written(
    place: Place, config: Path, tmp_path: Path, there: bool
) -> None:
    target = tmp_path / "dotfiles" / "claude.json"
    target.parent.mkdir()
    if there:
        target.write_bytes(OTHER)
    place.file.symlink_to(target)
    install(place, config)
    assert place.file.is_symlink()
    assert NAME in json.loads(target.read_bytes())["mcpServers"]
    assert names(place.file.parent) == ["config.json"]


def test_what_a_person_added_to_our_entry_stays_when_it_is_brought_up_to_date(
    place: Place, config: Path
) -> None:
    ours = {
        "env": {"X": "1"},
        "command": "C:\\old\\Scripts\\catalyst-tunnel.exe",
        "args": ["stdio", "--config", "C:\\old.toml"],
    }
    place.file.write_text(json.dumps({"mcpServers": {NAME: ours, "b": {}}}))
    install(place, config)
    servers = json.loads(place.file.read_bytes())["mcpServers"]
    assert list(servers) == [NAME, "b"]
    assert servers[NAME] == {
        "env": {"X": "1"},
        "command": command()[0],
        "args": ["stdio", "--config", str(config)],
    }


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "npx", "args": ["-y", "mcp-remote"]},
        {"command": "/usr/bin/catalyst-tunnel", "args": ["up"]},
        {"command": "/x/catalyst-tunnel-evil", "args": ["stdio", "--config", "x"]},
        {"command": "python", "args": ["-m", "tunnel", "stdio"]},
        {"command": 5, "args": []},
        {"url": "http://localhost:5000"},
        "text",
        None,
        [],
    ],
)
def test_another_server_of_that_name_is_left_alone(
    place: Place, config: Path, entry: object
) -> None:
    content = json.dumps({"mcpServers": {NAME: entry}})
    place.file.write_text(content)
    for plan in (lambda: plan_install(place, NAME, config), lambda: plan_remove(place, NAME)):
        with pytest.raises(ClientFileError, match="another server"):
            plan()
    assert find(place) == []
    assert place.file.read_text() == content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{\n  "mcpServers": {\n    "a": 1,,\n', "line 3, column 12"),
        (b'{"mcpServers": []}', "something else than an object"),
        (b'{"mcpServers": null}', "something else than an object"),
        (b'{"mcpServers": {}, "mcpServers": {}}', "twice"),
        (b"[]", "does not hold a JSON object"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b'{"a": "\xfc"}', "not UTF-8"),
    ],
)
def test_what_is_broken_is_told_and_left_alone(
    place: Place, config: Path, content: bytes, expected: str
) -> None:
    place.file.write_bytes(content)
    for plan in (
        lambda: plan_install(place, NAME, config),
        lambda: plan_remove(place, NAME),
        lambda: find(place),
    ):
        with pytest.raises(ClientFileError, match=expected) as told:
            plan()
        assert str(place.file) in str(told.value)
        assert "left alone" in str(told.value)
    assert place.file.read_bytes() == content
    assert names(place.file.parent) == ["config.json"]


@pytest.mark.parametrize("meanwhile", [b'{"theme": "light"}', None])
def test_what_its_program_wrote_meanwhile_is_not_lost(
    place: Place, config: Path, meanwhile: bytes | None
) -> None:
    place.file.write_bytes(OTHER)
    change = plan_install(place, NAME, config)
    if meanwhile is None:
        place.file.unlink()
    else:
        place.file.write_bytes(meanwhile)
    with pytest.raises(ClientFileError, match="meanwhile"):
        carry_out(change)
    assert (place.file.read_bytes() if place.file.exists() else None) == meanwhile
    assert names(place.file.parent) == (["config.json"] if meanwhile else [])


def test_a_file_that_came_into_being_meanwhile_is_not_lost(place: Place, config: Path) -> None:
    change = plan_install(place, NAME, config)
    place.file.write_bytes(OTHER)
    with pytest.raises(ClientFileError, match="meanwhile"):
        carry_out(change)
    assert place.file.read_bytes() == OTHER


def test_a_full_disk_leaves_the_file_as_it_was(
    place: Place, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.file.write_bytes(OTHER)
    change = plan_install(place, NAME, config)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        carry_out(change)
    assert place.file.read_bytes() == OTHER
    assert names(place.file.parent) == ["config.json"]


@POSIX
def test_a_path_that_is_not_text_is_refused(place: Place) -> None:
    with pytest.raises(ClientFileError, match="not text"):
        plan_install(place, NAME, Path(os.fsdecode(b"/home/\xff/config.toml")))
    assert names(place.file.parent) == []


def test_ours_are_found_under_any_name_and_judged(place: Place, config: Path) -> None:
    place.file.write_bytes(OTHER)
    install(place, config)
    install(place, config.with_name("second.toml"), "second")
    config.parent.mkdir()
    config.touch()
    gone = {"command": "/gone/catalyst-tunnel", "args": ["stdio", "--config", str(config)]}
    content = json.loads(place.file.read_bytes())
    content["mcpServers"]["third"] = gone
    place.file.write_text(json.dumps(content))
    assert [(one.name, one.command_exists, one.config_exists) for one in find(place)] == [
        (NAME, True, True),
        ("second", True, False),
        ("third", False, True),
    ]


def test_the_difference_is_shown_in_lines(place: Place, config: Path) -> None:
    place.file.write_bytes(b"\xef\xbb\xbf" + OTHER.replace(b"\n", b"\r\n"))
    shown = plan_install(place, NAME, config).diff()
    assert shown.count("\n+") == 10  # the header among them
    assert [line for line in shown.splitlines()[3:] if line.startswith("-")] == [
        '-        "git": {"command": "uvx", "n": 1.50}'
    ]
    assert "\r" not in shown
