"""A droplet with sshd and nothing else: the SSH key is rotated in authorized_keys, over SFTP."""

import asyncio
import contextlib
import itertools
import os
import shutil
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import asyncssh
import pytest

from keys.pointer import read_pointer
from keys.rotation import Step
from keys.sshkey import authorized_line, make_key, public_half
from tests.conftest import Running
from tests.droplet import Sshd, Target
from tests.integration.test_failover import Traffic
from tests.keystack import ACCOUNT, command_for_sshd
from tests.rotating import instrument
from tunnel.custody.account import Account, AccountError, account
from tunnel.custody.care import rotate_now
from tunnel.custody.journal import Outcome, RotateError, StuckError, read_journal
from tunnel.custody.rotate import Rotator
from tunnel.custody.wayin import way_in
from tunnel.problems import ProblemError
from tunnel.settings import Settings, load
from tunnel.ssh import connect
from tunnel.tokens import Clock
from tunnel.up import Tunnel


@dataclass
class Plain:
    """A laptop, a plain sshd, and the operator's own login there."""

    sshd: Sshd
    home: Path
    via: str
    file: Path
    """authorized_keys."""

    def settings(self) -> Settings:
        return load(self.home / "config.toml")

    async def rotate(self, *, compromised: bool = False, drain: float = 0.3) -> Outcome:
        return await rotate_now(
            self.settings(),
            ("ssh",),
            lambda _: None,
            compromised=compromised,
            drain=drain,
            via=self.via,
            authorized_keys=str(self.file),
        )

    async def has_a_way_in(self) -> None:
        async with way_in(self.settings(), "ssh", Clock()) as way:
            await way.prove()

    def login(self) -> contextlib.AbstractAsyncContextManager[Account]:
        return account(self.via, self.settings())


FOREIGN = '# not ours\n\nfrom="10.0.0.0/8",command="echo a b" ssh-ed25519 AAAAC3 friend\n'


@pytest.fixture
async def plain(
    sshd: Sshd, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Plain]:
    operator = tmp_path / "operator"
    mine = make_key(operator / ".ssh" / "id_ed25519")
    (operator / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")
    monkeypatch.setenv("HOME", str(operator))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    home = tmp_path / "laptop"
    public = make_key(home / "keys" / "ssh_ed25519")
    where = f"{target.host}:{target.port}"
    sshd.config_lines = ["Subsystem sftp internal-sftp"]
    sshd.restart()
    line = authorized_line(public, [where], "me@laptop")
    sshd.authorize(mine, FOREIGN.rstrip("\n"), line)
    (home / "known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {sshd.host_key}\n")
    (home / "config.toml").write_text(
        f'[tunnel]\nlisten = "127.0.0.1:0"\n[ssh]\nhost = "127.0.0.1"\nport = {sshd.port}\n'
        f'user = "{sshd.user}"\ntarget = "{where}"\n'
    )
    via = f"{sshd.user}@127.0.0.1:{sshd.port}"
    yield Plain(sshd, home, via, sshd.directory / "authorized_keys")


async def refused(plain: Plain, identity: Path) -> None:
    settings = plain.settings()
    stolen = replace(settings, ssh=replace(settings.ssh, identity=identity))
    with pytest.raises(ProblemError, match="does not let"):
        async with way_in(stolen, "ssh", Clock()):
            pass


async def test_only_our_line_is_changed(plain: Plain, tmp_path: Path) -> None:
    plain.file.chmod(0o640)
    before = plain.file.read_text()
    old = public_half(plain.home / "keys" / "ssh_ed25519")
    kept = tmp_path / "stolen"
    kept.write_bytes((plain.home / "keys" / "ssh_ed25519").read_bytes())
    kept.chmod(0o600)
    outcome = await plain.rotate()
    assert (outcome.step, outcome.warnings) == (Step.DONE, [])
    new = public_half(plain.home / "keys" / read_pointer(plain.home / "keys").ssh)
    assert plain.file.read_text() == before.replace(old, new)
    assert stat.S_IMODE(plain.file.stat().st_mode) == 0o640
    assert [one.name for one in plain.file.parent.glob(".authorized_keys*")] == []
    await plain.has_a_way_in()
    await refused(plain, kept)


async def test_a_link_stays_a_link(plain: Plain) -> None:
    real = plain.file.rename(plain.file.with_name("elsewhere"))
    plain.file.symlink_to(real)
    assert (await plain.rotate()).step is Step.DONE
    assert plain.file.is_symlink()
    await plain.has_a_way_in()


@pytest.mark.skipif(os.geteuid() != 0, reason="root can give files away")
async def test_the_owner_stays(plain: Plain) -> None:
    os.chown(plain.file, 12345, 12346)
    assert (await plain.rotate()).step is Step.DONE
    info = plain.file.stat()
    assert (info.st_uid, info.st_gid) == (12345, 12346)


@pytest.mark.skipif(os.geteuid() != 0, reason="root can give files away")
async def test_a_directory_that_is_made_is_the_accounts_own(plain: Plain, tmp_path: Path) -> None:
    """One of root's in an account's home would keep sshd from reading what is in it."""
    home = tmp_path / "account"
    home.mkdir()
    os.chown(home, 12345, 12346)
    file = home / ".ssh" / "authorized_keys"
    async with plain.login() as login:
        assert await login.edit(str(file), lambda _: b"x\n")
    for one in (file.parent, file):
        assert (one.stat().st_uid, one.stat().st_gid) == (12345, 12346)


@pytest.mark.skipif(os.geteuid() != 0, reason="root can give files away")
async def test_an_account_does_not_get_a_file_of_roots_given(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may put a link in the place of the new file in its own directory, before that is moved."""
    os.chown(plain.file, 12345, 12346)
    plain.file.chmod(0o644)
    roots = tmp_path / "shadow"
    roots.write_text("secret")
    roots.chmod(0o600)
    write = asyncssh.SFTPClientFile.write

    async def swapped(opened: asyncssh.SFTPClientFile, data: bytes) -> int:
        written = await write(opened, data)
        [fresh] = plain.file.parent.glob(".authorized_keys.*")
        fresh.unlink()
        fresh.symlink_to(roots)
        return written

    monkeypatch.setattr(asyncssh.SFTPClientFile, "write", swapped)
    async with plain.login() as login:
        await login.edit(str(plain.file), lambda text: text + b"x\n")
    info = roots.stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (0, 0o600)


async def test_under_load(plain: Plain) -> None:
    """No request is refused or lost, and what ran on the old connection ends there."""
    settings = plain.settings()
    tunnel = Tunnel(settings, plain.home, lambda low, high: low)
    ready = asyncio.Event()
    task = asyncio.ensure_future(tunnel.run(ready.set))
    await asyncio.wait_for(ready.wait(), 5)
    async with aiohttp.ClientSession() as client:
        url = f"http://localhost:{tunnel.snapshot().listen[0].rpartition(':')[2]}"
        run = Running(tunnel, url, client, task, settings, plain.home)
        await run.until_state("up")
        load_, over = Traffic(run, every=0.02), asyncio.Event()
        going = asyncio.ensure_future(load_.go(over))
        for _ in range(5):
            assert (await plain.rotate(drain=1.0)).step is Step.DONE
        over.set()
        await going
    assert tunnel.snapshot().paths[0].connects == 6
    assert (load_.failed_reads, set(load_.calls)) == ([], {200})
    tunnel.stop()
    await task


class Killed(BaseException):
    """The process is gone."""


async def test_killed_after_every_effect(plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in itertools.count(1):
        seen = itertools.count(1)

        def after(_: str, number: int = number, seen: "itertools.count[int]" = seen) -> None:
            if next(seen) == number:
                raise Killed

        with monkeypatch.context() as patch:
            instrument(after, patch.setattr)
            try:
                await plain.rotate(drain=0.0)
            except Killed:
                killed = True
            else:
                killed = False
        await plain.has_a_way_in()
        if not killed:
            break
        assert (await plain.rotate(drain=0.0)).step is Step.DONE
        assert read_journal(plain.settings()) is None
        assert plain.file.read_text().count("me@laptop") == 1
        names = {one.name for one in (plain.home / "keys").iterdir()}
        used = read_pointer(plain.home / "keys").ssh
        assert names - {"current.json", "rotation.lock"} == {used, f"{used}.pub"}
    assert number > 10


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can log others in")
async def test_compromised_ends_the_sessions_of_the_account(plain: Plain) -> None:
    """All of them: plain sshd cannot tell by which key they came."""
    config = plain.home / "config.toml"
    config.write_text(config.read_text().replace('user = "root"', f'user = "{ACCOUNT}"'))
    with command_for_sshd() as program:  # for its directory, which the account can read
        plain.file = shutil.copy(plain.file, Path(program).parent / "keys")
        plain.file.chmod(0o644)
        rule = f"Match User {ACCOUNT}\nAuthorizedKeysFile {plain.file}"
        plain.sshd.config_lines.append(rule)
        plain.sshd.restart()
        await _compromised(plain)


async def _compromised(plain: Plain) -> None:
    held = await connect(plain.settings().ssh)
    async with plain.login() as mine:
        outcome = await plain.rotate(compromised=True)
        assert (outcome.step, outcome.warnings) == (Step.DONE, [])
        await asyncio.wait_for(held.lost, 10)
        assert (await mine.run("echo", "here")).said == "here\n"
    await plain.has_a_way_in()


async def test_the_sessions_of_root_are_left_to_root(plain: Plain) -> None:
    if plain.sshd.user != "root":
        pytest.skip("the account is not root's")
    outcome = await plain.rotate(compromised=True)
    assert outcome.step is Step.DONE
    assert "end them on the droplet" in outcome.warnings[0]
    await plain.has_a_way_in()


async def test_without_via_it_says_what_is_needed(plain: Plain) -> None:
    with pytest.raises(RotateError, match="--via USER@HOST"):
        await Rotator(plain.settings(), lambda _: None).plan(("ssh",))
    with pytest.raises(RotateError, match="No token key is used"):
        await Rotator(plain.settings(), lambda _: None).plan(("token",))


async def test_a_host_that_is_not_known_is_not_asked(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    (plain.home / "known_hosts").write_text("")
    with pytest.raises(AccountError, match="host key"):
        async with account(plain.via, plain.settings()):
            pass


async def test_a_login_that_is_refused(
    plain: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_key(tmp_path / "nobody" / ".ssh" / "id_ed25519")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    with pytest.raises(AccountError, match="must work first"):
        async with account(plain.via, plain.settings()):
            pass


@pytest.mark.parametrize("via", ["", "-oProxyCommand=x", "a@b@c", "me@host:0", "me@host:x", "a b"])
async def test_a_login_that_is_none(via: str) -> None:
    with pytest.raises(AccountError, match="must be"):
        async with account(via, None):
            pass


async def test_with_a_login_that_is_none_nothing_is_begun(plain: Plain) -> None:
    plain.via = "me@@host"
    before = {one.name for one in (plain.home / "keys").iterdir()}
    with pytest.raises(RotateError, match=r"--via 'me@@host' must be \[USER@\]HOST"):
        await plain.rotate()
    assert {one.name for one in (plain.home / "keys").iterdir()} - before == {"rotation.lock"}
    assert read_journal(plain.settings()) is None


async def test_what_was_begun_with_a_wrong_login_goes_on_with_the_right_one(plain: Plain) -> None:
    right, plain.via = plain.via, "nobody@127.0.0.1:1"
    with pytest.raises(StuckError, match=r"No SSH connection .*`ssh -p 1 nobody@127.0.0.1`"):
        await plain.rotate()
    await plain.has_a_way_in()
    for wrong in (plain.via, "me@@host"):
        plain.via = wrong
        with pytest.raises((StuckError, RotateError)):
            await plain.rotate()
    plain.via = right
    assert (await plain.rotate()).step is Step.DONE
    assert read_pointer(plain.home / "keys").ssh == "ssh_ed25519-2"
    await plain.has_a_way_in()


async def test_a_file_that_somebody_else_changes_meanwhile_is_read_again(plain: Plain) -> None:
    times = 0

    def change(text: bytes) -> bytes:
        nonlocal times
        times += 1
        if times == 1:
            with plain.file.open("ab") as file:
                file.write(b"# another\n")
        return text + b"# ours\n"

    async with account(plain.via, plain.settings()) as login:
        assert await login.edit(str(plain.file), change)
    assert times == 2
    assert plain.file.read_bytes().endswith(b"# another\n# ours\n")


async def test_a_file_that_is_not_there_is_made_closed(plain: Plain) -> None:
    file = plain.file.parent / "fresh" / "authorized_keys"
    async with account(plain.via, plain.settings()) as login:
        assert await login.edit(str(file), lambda text: text + b"x\n")
        assert not await login.edit(str(file), lambda text: text)
    assert (stat.S_IMODE(file.stat().st_mode), file.read_bytes()) == (0o600, b"x\n")
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


async def test_a_place_that_cannot_be_written_is_told(plain: Plain) -> None:
    (plain.file.parent / "blocked").write_text("x")
    async with account(plain.via, plain.settings()) as login:
        with pytest.raises(AccountError, match="cannot be changed"):
            await login.edit(str(plain.file.parent / "blocked" / "f"), lambda _: b"x\n")
