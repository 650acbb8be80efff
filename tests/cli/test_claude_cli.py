"""`catalyst-tunnel claude` as people meet it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tunnel import __version__

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the places are those of Linux")
NAME = "catalyst-trading"


class Person:
    """Somebody with a home of their own."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "me"
        self.project = directory / "project"
        self.project.mkdir()
        self.config = self.home / ".catalyst-tunnel" / "config.toml"
        self.config.parent.mkdir(parents=True)
        self.config.touch()
        self.desktop = self.home / ".config" / "Claude" / "claude_desktop_config.json"

    def says(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        others = (
            "CATALYST_HOME",
            "XDG_CONFIG_HOME",
            "CLAUDE_CONFIG_DIR",
            "APPDATA",
            "LOCALAPPDATA",
        )
        keep = {key: value for key, value in os.environ.items() if key not in others}
        return subprocess.run(
            [sys.executable, "-m", "tunnel", "claude", *arguments],
            cwd=self.project,
            env={**keep, "HOME": str(self.home), "USERPROFILE": str(self.home)},
            capture_output=True,
            text=True,
            timeout=20,
        )


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


@pytest.mark.parametrize("command", [[], ["install"], ["remove"], ["show"], ["bundle"]])
def test_help(person: Person, command: list[str]) -> None:
    done = person.says(*command, "--help")
    assert done.returncode == 0
    assert "Usage: catalyst-tunnel claude" in done.stdout


def test_to_list_the_group_costs_no_import(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom tunnel.cli import cli\n"
            "try:\n    cli(['--help'])\nfinally:\n    print('tunnel.cli_claude' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert "claude  " in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


@LINUX
def test_from_nothing_to_show_and_back(person: Person) -> None:
    person.desktop.parent.mkdir(parents=True)
    assert person.says("show").returncode == 1
    done = person.says("install")
    assert done.returncode == 0, done.stderr
    assert "added" in done.stdout
    assert "Quit Claude Desktop" in done.stdout
    content = person.desktop.read_bytes()
    entry = json.loads(content)["mcpServers"][NAME]
    assert entry["args"] == ["stdio", "--config", str(person.config)]
    assert Path(entry["command"]).is_absolute()

    done = person.says("install")
    assert (done.returncode, person.desktop.read_bytes()) == (0, content)
    assert "is there already" in done.stdout
    assert "Quit" not in done.stdout
    assert list(person.desktop.parent.iterdir()) == [person.desktop]

    done = person.says("show", "--json")
    assert done.returncode == 0, done.stdout
    [desktop] = [one for one in json.loads(done.stdout) if one["client"] == "desktop"]
    assert desktop["file"] == str(person.desktop)
    assert desktop["entries"][0]["name"] == NAME
    person.config.unlink()
    done = person.says("show")
    assert done.returncode == 1
    assert f"{person.config} does not exist" in done.stdout

    done = person.says("remove")
    assert "removed (what was there: claude_desktop_config.json.bak-1)" in done.stdout
    assert json.loads(person.desktop.read_bytes()) == {"mcpServers": {}}
    assert "is not there" in person.says("remove").stdout


@LINUX
def test_a_dry_run_writes_nothing(person: Person) -> None:
    person.desktop.parent.mkdir(parents=True)
    done = person.says("install", "--dry-run")
    assert done.returncode == 0
    assert f'+    "{NAME}": {{' in done.stdout
    assert list(person.desktop.parent.iterdir()) == []


@LINUX
def test_where_claude_desktop_has_never_run(person: Person) -> None:
    done = person.says("install")
    assert done.returncode == 1
    assert str(person.desktop.parent) in done.stderr
    assert "--config-path" in done.stderr
    assert not person.desktop.parent.exists()


def test_settings_that_do_not_exist_yet_are_told(person: Person) -> None:
    done = person.says("install", "--config-path", "c.json", "--config", "none.toml")
    assert done.returncode == 0
    assert "catalyst-tunnel init" in done.stderr
    said = json.loads((person.project / "c.json").read_bytes())["mcpServers"][NAME]["args"]
    assert said[-1] == str(person.project / "none.toml")


@pytest.mark.parametrize(
    ("client", "file", "table"),
    [
        ("code", ".mcp.json", "mcpServers"),
        ("cursor", ".cursor/mcp.json", "mcpServers"),
        ("vscode", ".vscode/mcp.json", "servers"),
    ],
)
def test_in_a_project(person: Person, client: str, file: str, table: str) -> None:
    done = person.says("install", "--client", client, "--scope", "project", "--name", "x")
    assert done.returncode == 0, done.stderr
    assert json.loads((person.project / file).read_bytes())[table]["x"]["type"] == "stdio"
    assert person.says("show").returncode == 0
    assert person.says("remove", "--client", client, "--scope", "project", "--name", "x")
    assert json.loads((person.project / file).read_bytes()) == {table: {}}


def test_a_project_does_not_steer_the_terminal(person: Person) -> None:
    """Its file comes with the project, from whoever made it."""
    args = ["stdio", "--config", "/nowhere/\x1b[2J"]
    entry = {"command": "/nowhere/\x1b[2J/catalyst-tunnel", "args": args}
    file = person.project / ".mcp.json"
    file.write_text(json.dumps({"mcpServers": {"\x1b]0;x\x07\x9b2J": entry}}, ensure_ascii=False))
    for words in (["show"], ["install", "--client", "code", "--scope", "project", "--dry-run"]):
        done = person.says(*words)
        said = (done.stdout + done.stderr).replace("\n", "")
        assert "2J" in said
        assert said.isprintable(), words


def test_claude_desktop_knows_no_projects(person: Person) -> None:
    done = person.says("install", "--scope", "project")
    assert (done.returncode, list(person.project.iterdir())) == (2, [])


@pytest.mark.parametrize("command", ["install", "remove"])
def test_a_broken_file_is_told_with_its_place_and_left_alone(person: Person, command: str) -> None:
    file = person.project / "c.json"
    file.write_text('{\n  "a": 1\n  "b": 2\n}')
    done = person.says(command, "--config-path", "c.json")
    assert done.returncode == 2
    assert f"{file} is not JSON: line 3, column 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(person.project.iterdir()) == [file]


@LINUX
def test_one_broken_file_does_not_spare_the_other(person: Person) -> None:
    good, broken = (
        person.home / ".config" / name / "User" / "mcp.json" for name in ("Code - Insiders", "Code")
    )
    good.parent.mkdir(parents=True)
    broken.parent.mkdir(parents=True)
    broken.write_text("{} // a comment")
    done = person.says("install", "--client", "vscode")
    assert done.returncode == 2
    assert str(broken) in done.stderr
    assert NAME in json.loads(good.read_bytes())["servers"]
    done = person.says("show", "--json")
    assert done.returncode == 1
    faults = {one["file"]: one["fault"] for one in json.loads(done.stdout)}
    assert "line 1, column 4" in faults[str(broken)]
    assert faults[str(good)] is None


def test_a_directory_in_the_files_place(person: Person) -> None:
    (person.project / "c.json").mkdir()
    done = person.says("install", "--config-path", "c.json")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_bundle(person: Person) -> None:
    done = person.says("bundle")
    assert done.returncode == 0, done.stderr
    made = person.project / f"catalyst-tunnel-{__version__}.mcpb"
    assert str(made) in done.stdout
    first = made.read_bytes()
    assert "manifest.json" in zipfile.ZipFile(made).namelist()
    assert person.says("bundle", "-o", "again.mcpb").returncode == 0
    assert (person.project / "again.mcpb").read_bytes() == first
    done = person.says("bundle", "-o", "nowhere/x.mcpb")
    assert done.returncode == 1
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
