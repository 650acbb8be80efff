"""Documents that repeat what the code says are compared with it."""

import re
from pathlib import Path

import pytest

from tunnel.clients import CLIENTS, PROJECT, Machine, candidates
from tunnel.custody.notices import REMEDIES
from tunnel.lifecycle import diagram
from tunnel.problems import CATALOGUE

ROOT = Path(__file__).parents[2]


def test_the_diagram_is_the_table() -> None:
    assert diagram() in (ROOT / "ARCHITECTURE.md").read_text()


def test_troubleshooting_names_every_code_with_its_numbers_and_remedy() -> None:
    rows = {}
    for line in (ROOT / "docs" / "troubleshooting.md").read_text().splitlines():
        if found := re.match(r"\| `(\w+)` \| (\d+) \| (-\d+) \| .+ \| (.+) \|$", line):
            rows[found[1]] = (int(found[2]), int(found[3]), found[4])
    assert rows == {code: tuple(entry) for code, entry in CATALOGUE.items()}


@pytest.mark.parametrize("platform", ["win32", "darwin", "linux"])
def test_the_page_on_clients_names_every_file(platform: str) -> None:
    page = (ROOT / "docs" / "claude-desktop.md").read_text()
    told = {path.replace("\\", "/") for path in re.findall(r"`([^`]+json)`", page)}
    environ = {"APPDATA": "%APPDATA%", "LOCALAPPDATA": "%LOCALAPPDATA%"}
    machine = Machine(platform, environ, Path("~"), Path(), Path())
    files = [file for key in CLIENTS for _, file in candidates(key, machine)]
    files = [file for file in files if "Code - Insiders" not in file.parts]
    assert {file.as_posix() for file in (*files, *PROJECT.values())} <= told


def test_troubleshooting_names_every_notice_with_its_remedy() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text().partition("if nobody acts")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", text, re.MULTILINE))
    assert rows == REMEDIES


def test_exit_codes_of_the_readme_are_those_of_the_help() -> None:
    from tunnel.cli import EXIT_CODES

    told = set(re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE))
    readme = (ROOT / "README.md").read_text()
    assert told == set(re.findall(r"^\| (\d+) \|", readme, re.MULTILINE))
