"""`enroll`: a laptop that is let in, in one go; and again, without harm."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from keys.sshkey import make_key
from tests.droplet import Sshd, Target
from tests.keystack import ACCOUNT, KeyStack, command_for_sshd, keystack
from tunnel.custody.wayin import way_in
from tunnel.settings import load
from tunnel.tokens import Clock

__all__ = ["keystack"]


@dataclass
class Operator:
    """Somebody who has a login on the droplet, and a new laptop."""

    directory: Path
    sshd: Sshd
    home: Path

    async def enroll(self, *more: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run the command, while the service goes on in this event loop."""
        return await asyncio.to_thread(self._enroll, *more, **how)

    def _enroll(
        self, *more: str, stdin: str = "", code: int = 0, account: str = ACCOUNT
    ) -> subprocess.CompletedProcess[str]:
        file = str(self.sshd.directory / "authorized_keys")
        command = [sys.executable, "-m", "tunnel", "enroll"]
        command += [f"{self.sshd_user}@127.0.0.1:{self.sshd.port}", "--account", account]
        command += ["--config", str(self.home / "config.toml"), "--authorized-keys", file, *more]
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            env={"HOME": str(self.directory), "PATH": "/usr/bin:/bin"},
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    @property
    def sshd_user(self) -> str:
        return "root"

    async def comes_in(self) -> list[str]:
        settings = load(self.home / "config.toml")
        for name in settings.paths:
            async with way_in(settings, name, Clock()) as way:
                await way.prove()
        return list(settings.paths)


def operator(directory: Path, sshd: Sshd) -> Operator:
    key = make_key(directory / ".ssh" / "id_ed25519")
    (directory / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")
    sshd.authorize(key)
    return Operator(directory, sshd, directory / "laptop")


@pytest.fixture
def by_gateway(keystack: KeyStack, tmp_path: Path) -> Iterator[Operator]:
    sshd = keystack.stack.sshd
    with command_for_sshd() as program:
        sshd.config_lines.insert(
            0,
            f"SetEnv PATH={Path(program).parent}:/usr/bin:/bin "
            f"CATALYST_GATEWAY_DIR={keystack.stack.gateway.directory}",
        )
        sshd.config_lines.insert(0, "Subsystem sftp internal-sftp")
        sshd.restart()
        yield operator(tmp_path / "operator", sshd)


async def test_by_the_gateway_in_one_go(by_gateway: Operator) -> None:
    done = await by_gateway.enroll("--name", "desk", "--yes", "--listen", "127.0.0.1:0")
    assert "let desk in as operator" in done.stdout
    assert "came in by ssh" in done.stderr
    assert "came in by https" in done.stderr
    assert await by_gateway.comes_in() == ["ssh", "https"]
    assert load(by_gateway.home / "config.toml").ssh.gateway
    before = {file: file.read_bytes() for file in by_gateway.home.rglob("*") if file.is_file()}
    again = await by_gateway.enroll("--name", "desk", "--yes")
    assert "nothing, desk is let in with the keys that are here" in again.stdout
    assert {file: file.read_bytes() for file in before} == before


async def test_it_asks_first_and_no_changes_nothing(by_gateway: Operator) -> None:
    done = await by_gateway.enroll("--name", "desk", stdin="n\n", code=130)
    assert "Do that?" in done.stdout
    assert not by_gateway.home.exists()


async def test_the_name_of_another_is_not_taken_unless_told(by_gateway: Operator) -> None:
    done = await by_gateway.enroll("--name", "mobile", "--yes", code=1)
    assert "--replace" in done.stderr
    assert not by_gateway.home.exists()
    await by_gateway.enroll("--name", "mobile", "--yes", "--replace", "--listen", "127.0.0.1:0")
    assert await by_gateway.comes_in() == ["ssh", "https"]


async def test_one_that_was_interrupted_is_finished(by_gateway: Operator) -> None:
    """The answer of `client add` was lost: the client is there, and nothing of it here."""
    await by_gateway.enroll("--name", "desk", "--yes", "--listen", "127.0.0.1:0")
    (by_gateway.home / "keys" / "token.key").unlink()
    done = await by_gateway.enroll("--name", "desk", "--yes", code=1)
    assert "--replace" in done.stderr
    await by_gateway.enroll("--name", "desk", "--yes", "--replace")
    assert await by_gateway.comes_in() == ["ssh", "https"]


async def test_without_a_gateway_a_line_is_enough(
    sshd: Sshd, target: Target, tmp_path: Path
) -> None:
    sshd.config_lines = ["Subsystem sftp internal-sftp", "SetEnv PATH=/usr/bin:/bin"]
    sshd.restart()
    made = operator(tmp_path / "operator", sshd)
    where = ("--target", f"{target.host}:{target.port}", "--listen", "127.0.0.1:0")
    done = await made.enroll(*where, "--yes", account=sshd.user)
    assert "a line in authorized_keys" in done.stdout
    assert await made.comes_in() == ["ssh"]
    lines = (sshd.directory / "authorized_keys").read_text()
    assert lines.count("restrict,port-forwarding") == 1
    await made.enroll(*where, "--yes", account=sshd.user)
    assert (sshd.directory / "authorized_keys").read_text() == lines


async def test_a_droplet_that_is_not_known_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    made = operator(tmp_path / "operator", sshd)
    (made.directory / ".ssh" / "known_hosts").write_text("")
    done = await made.enroll("--yes", code=1)
    assert "host key" in done.stderr
    assert not made.home.exists()
