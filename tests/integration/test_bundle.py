"""The bundle as others take it: the official tool, uv, and a first start with a real sshd."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.stdio import stdio_client

from keys.sshkey import fingerprint
from tests.droplet import Sshd
from tests.mcpservice import Odd
from tunnel.bundle import ENTRY_POINT, build
from tunnel.initialise import line_for
from tunnel.settings import load

MCPB = "@anthropic-ai/mcpb@2.1.2"


@pytest.fixture(scope="session")
def mcpb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official tool, from npm."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("no node and npm on this machine: the manifest is not checked by mcpb")
    place = tmp_path_factory.mktemp("mcpb")
    try:
        done = subprocess.run(
            [npm, "install", "--silent", "--ignore-scripts", "--prefix", str(place), MCPB],
            capture_output=True,
            timeout=90,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("npm's registry does not answer: the manifest is not checked by mcpb")
    if done.returncode != 0:
        pytest.skip("npm's registry cannot be reached: the manifest is not checked by mcpb")
    return place / "node_modules" / ".bin" / ("mcpb.cmd" if sys.platform == "win32" else "mcpb")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    file = tmp_path / "catalyst-tunnel.mcpb"
    file.write_bytes(build())
    return file


@pytest.fixture
def unpacked(bundle: Path) -> Path:
    place = bundle.with_name("unpacked")
    with zipfile.ZipFile(bundle) as file:
        file.extractall(place)
    return place


def start(place: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start what the manifest names, from another directory, with nothing on stdin."""
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, str(place / ENTRY_POINT), *arguments],
        cwd=home,
        env={**os.environ, "CATALYST_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.timeout(150)
def test_the_official_tool_takes_it(mcpb: Path, bundle: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> str:
        done = subprocess.run(
            [mcpb, *map(str, arguments)], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("unpack", bundle, tmp_path / "theirs")
    assert "passes" in run("validate", tmp_path / "theirs" / "manifest.json")
    assert "catalyst-tunnel.mcpb" in run("info", bundle)
    run("pack", tmp_path / "theirs", tmp_path / "again.mcpb")
    with zipfile.ZipFile(bundle) as ours, zipfile.ZipFile(tmp_path / "again.mcpb") as theirs:
        assert set(theirs.namelist()) == set(ours.namelist())
        assert all(theirs.read(name) == ours.read(name) for name in ours.namelist())


@pytest.mark.timeout(150)
def test_the_official_tool_refuses_a_manifest_that_is_wrong(mcpb: Path, unpacked: Path) -> None:
    """So that its yes means something."""
    file = unpacked / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "surprise": 1}))
    done = subprocess.run([mcpb, "validate", file], capture_output=True, timeout=30)
    assert done.returncode != 0


def test_the_first_start_makes_settings_key_and_pin(
    sshd: Sshd, unpacked: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shown = fingerprint(sshd.host_key)
    arguments = [
        *(f"--ssh-host={sshd.host}", f"--ssh-port={sshd.port}", f"--ssh-user={sshd.user}"),
        f"--fingerprint={shown}",
    ]
    done = start(unpacked, home, *arguments)
    settings = load(home / "config.toml")
    assert (settings.ssh.host, settings.ssh.port) == (sshd.host, sshd.port)
    assert sshd.host_key in (home / "known_hosts").read_text()
    assert "restrict,port-forwarding," in done.stderr  # the line for the droplet
    assert_only_mcp(done.stdout)
    before = (home / "known_hosts").stat().st_mtime_ns
    again = start(unpacked, home, *arguments)
    assert "restrict,port-forwarding," not in again.stderr
    assert (home / "known_hosts").stat().st_mtime_ns == before


def test_a_host_key_with_another_fingerprint_is_not_pinned(
    sshd: Sshd, unpacked: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    done = start(
        unpacked,
        home,
        *(f"--ssh-host={sshd.host}", f"--ssh-port={sshd.port}", f"--fingerprint=SHA256:{'A' * 43}"),
    )
    assert not (home / "known_hosts").exists()
    assert "has no host key with the fingerprint" in done.stderr
    assert_only_mcp(done.stdout)


def test_without_a_fingerprint_no_host_key_is_trusted(
    sshd: Sshd, unpacked: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    done = start(unpacked, home, f"--ssh-host={sshd.host}", f"--ssh-port={sshd.port}")
    assert (home / "config.toml").exists()
    assert not (home / "known_hosts").exists()
    assert fingerprint(sshd.host_key) in done.stderr
    assert_only_mcp(done.stdout)


def test_what_runs_is_in_the_bundle(unpacked: Path, tmp_path: Path) -> None:
    """Not what happens to be installed beside it."""
    (unpacked / "server" / "tunnel" / "bundled.py").write_text(
        "import keys, tunnel\ndef main():\n    print(tunnel.__file__, keys.__file__)\n"
    )
    done = start(unpacked, tmp_path / "home")
    assert done.stdout.split() == [
        str(unpacked / "server" / package / "__init__.py") for package in ("tunnel", "keys")
    ]


@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
async def test_a_client_reaches_the_service_through_it(
    sshd: Sshd, unpacked: Path, tmp_path: Path, era: str
) -> None:
    """As Claude Desktop starts it: settings made by the first start, the official SDK's client."""
    pytest.importorskip("fastmcp", reason="needs the demo extra")
    home = tmp_path / "home"
    arguments = [
        *(f"--ssh-host={sshd.host}", f"--ssh-port={sshd.port}", f"--ssh-user={sshd.user}"),
        f"--fingerprint={fingerprint(sshd.host_key)}",
    ]
    start(unpacked, home, *arguments)
    with Odd() as odd:
        file = home / "config.toml"
        file.write_text(file.read_text().replace("127.0.0.1:5000", f"127.0.0.1:{odd.port}"))
        # The line that the first start printed opens the usual port; this service has another.
        sshd.authorize(line_for(load(file), (home / "keys" / "ssh_ed25519.pub").read_text()))
        server = StdioServerParameters(
            command=sys.executable,
            args=[str(unpacked / ENTRY_POINT), *arguments],
            env={**os.environ, "CATALYST_HOME": str(home)},
        )
        async with Client(stdio_client(server), mode=era) as client:
            answer = await client.call_tool("stop_trading", {"reason": "emergency"})
            assert answer.structured_content is not None
            assert answer.structured_content["reason"] == "emergency"
        assert odd.executions("stop_trading") == 1


async def test_a_client_is_told_in_words_that_there_are_no_settings(
    unpacked: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "none" / "config.toml"
    server = StdioServerParameters(
        command=sys.executable, args=[str(unpacked / ENTRY_POINT), f"--config={missing}"]
    )
    async with Client(stdio_client(server), mode="legacy") as client:
        with pytest.raises(MCPError, match="catalyst-tunnel init"):
            await client.call_tool("stop_trading", {"reason": "emergency"})
        assert (await client.list_tools()).tools == []  # it has not ended


def assert_only_mcp(said: str) -> None:
    for line in said.splitlines():
        assert json.loads(line)["jsonrpc"] == "2.0"
