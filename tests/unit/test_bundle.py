"""The bundle: what is in it, and what its settings page becomes."""

import importlib.metadata
import io
import json
import re
import tomllib
import zipfile
from pathlib import Path

import pytest

from tunnel import __version__
from tunnel.bundle import ENTRY_POINT, BundleError, build, manifest
from tunnel.bundled import Given, init_arguments
from tunnel.initialise import Answers, write_settings
from tunnel.settings import Address

ROOT = Path(__file__).parents[2]
UNFILLED = [f"--{name}=${{user_config.{name}}}" for name in ("config", "ssh-host", "fingerprint")]


@pytest.fixture(scope="module")
def bundle() -> zipfile.ZipFile:
    return zipfile.ZipFile(io.BytesIO(build()))


def test_the_same_sources_give_the_same_bytes() -> None:
    assert build() == build()


def test_it_is_a_sound_zip_whose_bytes_depend_on_no_clock(bundle: zipfile.ZipFile) -> None:
    assert bundle.testzip() is None
    infos = bundle.infolist()
    assert [info.filename for info in infos] == sorted(info.filename for info in infos)
    assert {info.date_time for info in infos} == {(1980, 1, 1, 0, 0, 0)}
    assert {info.external_attr >> 16 for info in infos} == {0o100644}
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}


def test_the_entry_point_is_in_it_and_every_source_as_it_is_here(bundle: zipfile.ZipFile) -> None:
    said = json.loads(bundle.read("manifest.json"))
    assert said["server"]["entry_point"] in bundle.namelist()
    inside = {name for name in bundle.namelist() if name.startswith(("server/t", "server/k"))}
    here = {
        f"server/{path.relative_to(ROOT).as_posix()}": path.read_bytes()
        for package in ("tunnel", "keys")
        for path in (ROOT / package).rglob("*.py")
        if "demo" not in path.parts
    }
    assert inside == here.keys()
    assert all(bundle.read(name) == content for name, content in here.items())


def test_nothing_else_is_in_it_and_no_secret(bundle: zipfile.ZipFile) -> None:
    others = {name for name in bundle.namelist() if not name.startswith(("server/t", "server/k"))}
    assert others == {"manifest.json", "pyproject.toml", ENTRY_POINT}
    for name in bundle.namelist():
        content = bundle.read(name)
        assert not re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}", content)
        assert str(Path.home()).encode() + b"/" not in content


def test_the_dependencies_are_those_of_the_package(bundle: zipfile.ZipFile) -> None:
    inside = tomllib.loads(bundle.read("pyproject.toml").decode())
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert inside["project"]["requires-python"] == ours["requires-python"]
    assert inside["project"]["version"] == __version__

    def normal(requirements: list[str]) -> set[tuple[str, ...]]:
        return {tuple(sorted(re.split(r"[,;<>=\s'\"]+", one))) for one in requirements}

    assert normal(inside["project"]["dependencies"]) == normal(ours["dependencies"])
    assert inside["tool"]["uv"]["package"] is False


def test_every_setting_is_passed_on_and_understood() -> None:
    said = manifest()
    values = {"config": "/c.toml", "ssh_host": "h", "ssh_port": "23", "ssh_user": "u"}
    values["fingerprint"] = "SHA256:x"
    assert said["user_config"].keys() == values.keys()
    assert not any(one["required"] for one in said["user_config"].values())
    *start, launcher = said["server"]["mcp_config"]["args"][: -len(values)]
    assert (start, launcher) == (
        ["run", "--directory", "${__dirname}"],
        "${__dirname}/" + ENTRY_POINT,
    )
    arguments = said["server"]["mcp_config"]["args"][-len(values) :]
    filled = [
        re.sub(r"\$\{user_config\.(\w+)\}", lambda found: values[found[1]], one)
        for one in arguments
    ]
    assert Given.read(filled) == Given(Path("/c.toml"), "h", "23", "u", "SHA256:x")


def test_without_an_installation_there_is_no_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.metadata", missing)
    with pytest.raises(BundleError, match="pip install"):
        build()


# Its start.


@pytest.mark.parametrize("empty", [[], UNFILLED, ["--config=", "--ssh-host= ", "--fingerprint="]])
def test_what_was_not_filled_in_has_its_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: list[str]
) -> None:
    monkeypatch.setenv("CATALYST_HOME", str(tmp_path))
    given = Given.read(empty)
    assert given == Given(tmp_path / "config.toml", "", "", "", "")
    assert init_arguments(given) is None


def test_the_first_start_makes_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    assert init_arguments(Given(file, "droplet", "22", "", "")) == [
        *("init", "--yes", f"--config={file}", "--ssh-host=droplet", "--ssh-port=22"),
    ]
    assert init_arguments(Given(file, "-oProxyCommand=x", "", "me", "SHA256:x")) == [
        *("init", "--yes", f"--config={file}", "--host-key-fingerprint=SHA256:x"),
        *("--ssh-host=-oProxyCommand=x", "--ssh-user=me"),
    ]


def test_settings_that_are_there_are_completed_and_never_replaced(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    here = Address("127.0.0.1", 5000)
    write_settings(file, Answers("droplet", 22, "me", here, here))
    given = Given(file, "another", "23", "you", "SHA256:x")
    assert init_arguments(given) == [
        *("init", "--yes", f"--config={file}", "--host-key-fingerprint=SHA256:x")
    ]
    assert init_arguments(Given(file, "another", "23", "you", "")) is None
    (tmp_path / "known_hosts").touch()
    assert init_arguments(given) is None
    file.write_text("broken =")
    assert init_arguments(given) is None
