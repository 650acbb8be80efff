"""Everything that changing keys needs, all of it real: the stack, the registrar beside it, and an
sshd that asks the registry for keys.

sshd runs a command for that only where root alone can write to it and every directory above, so
these tests want root; they log in to an account that no other test uses, since whoever retires a
key ends the account's sessions.
"""

import contextlib
import os
import pwd
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.sshd import Lookup, match_block
from keys.pointer import FAMILIES, read_pointer
from keys.sshkey import make_key
from tests.conftest import Running, run_tunnel
from tests.droplet import Sshd, Target
from tests.registrarserver import RegistrarServer
from tests.stack import Stack, make_stack
from tunnel.custody.journal import read_journal
from tunnel.custody.keyfacts import key_facts
from tunnel.custody.registrar import Accepted
from tunnel.custody.rotate import Rotator
from tunnel.custody.wayin import way_in
from tunnel.settings import Settings, load
from tunnel.tokens import Clock

ACCOUNT = "games"


@contextlib.contextmanager
def command_for_sshd() -> Iterator[str]:
    """A program that sshd will run: `catalyst-gateway`, by the interpreter of the tests."""
    if os.geteuid() != 0:
        pytest.skip("sshd runs AuthorizedKeysCommand only where root alone can write: run as root")
    with contextlib.suppress(KeyError):
        pwd.getpwnam(ACCOUNT)
    directory = Path(tempfile.mkdtemp(dir="/run", prefix="catalyst-test-"))
    directory.chmod(0o755)
    program = directory / "catalyst-gateway"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway "$@"\n')
    program.chmod(0o755)
    try:
        yield str(program)
    finally:
        shutil.rmtree(directory)


@dataclass
class KeyStack:
    """The far side, and one laptop that is let in by the registry on both paths."""

    stack: Stack
    registrar: RegistrarServer
    home: Path
    known_hosts: Path

    @property
    def config(self) -> Path:
        return self.home / "config.toml"

    @property
    def keys(self) -> Path:
        return self.home / "keys"

    def settings(self) -> Settings:
        return load(self.config)

    def rotator(self, said: list[str] | None = None) -> Rotator:
        return Rotator(self.settings(), (said if said is not None else []).append)

    async def accepted(self) -> Accepted:
        """What the other end lets in now."""
        async with self.rotator().registrar(self.settings()) as (_, accepted):
            return accepted

    async def has_a_way_in(self) -> None:
        """A request goes through on both paths, with the keys that the settings name now."""
        for name in ("ssh", "https"):
            async with way_in(self.settings(), name, Clock()) as way:
                await way.prove()

    async def is_tidy(self) -> None:
        """There is one key of each family, here and over there, and nothing half done."""
        settings = self.settings()
        facts = {one.family: one.name for one in key_facts(settings)}
        accepted = await self.accepted()
        assert accepted.kids == {facts["token"]}
        assert accepted.certificates == {facts["cert"]}
        assert accepted.fingerprints == {facts["ssh"]}
        names = read_pointer(self.keys)
        wanted = {name for family in FAMILIES for name in names.files(family)}
        there = {one.name for one in self.keys.iterdir()}
        assert there - {"current.json", "rotation.lock", "ca.crt"} == wanted
        assert not read_journal(settings)

    async def tunnel(
        self, home: Path | None = None, *, up: int | None = None, **own: Any
    ) -> Running:
        """Start a tunnel in this event loop, and wait until so many of its paths are up, or all.

        Args:
            home: where it is controlled from, if that is not where a rotation looks.
            up: how many.
            own: settings of its own.
        """
        settings = replace(self.settings(), **own)
        home = home or self.home
        running = await run_tunnel(self.stack._exits, settings, home)
        wanted = len(settings.paths) if up is None else up
        await running.until(
            lambda: sum(path.answered for path in running.tunnel.snapshot().paths) >= wanted
        )
        return running


CONFIG = """\
[tunnel]
listen = "127.0.0.1:0"

[ssh]
host = "127.0.0.1"
port = {port}
user = "{user}"
known_hosts = "known_hosts"
target = "127.0.0.1:{gateway}"
gateway = true
"""


@contextlib.asynccontextmanager
async def make_keystack(directory: Path, sshd: Sshd, target: Target) -> AsyncIterator[KeyStack]:
    async with contextlib.AsyncExitStack() as exits:
        program = exits.enter_context(command_for_sshd())
        stack = await exits.enter_async_context(
            make_stack(
                directory,
                sshd,
                target,
                ssh_user=f'"{ACCOUNT}"',
                requests_per_second="1000",
                burst="2000",
            )
        )
        gateway = stack.gateway
        sshd.user = ACCOUNT
        targets = [f"127.0.0.1:{gateway.port}"]
        sshd.config_lines = [
            match_block(ACCOUNT, targets, Lookup((program,), gateway.directory, "root"))
        ]
        sshd.restart()
        registrar = exits.enter_context(RegistrarServer(gateway.directory))
        home = directory / "mobile"
        make_key(home / "keys" / "ssh_ed25519")
        (home / "config.toml").write_text(
            CONFIG.format(port=stack.ssh_road.port, user=ACCOUNT, gateway=gateway.port)
        )
        known_hosts = home / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{stack.ssh_road.port} {sshd.host_key}\n")
        gateway.enrol(home, "operator")
        yield KeyStack(stack, registrar, home, known_hosts)


@pytest.fixture
async def keystack(sshd: Sshd, target: Target, tmp_path: Path) -> AsyncIterator[KeyStack]:
    async with make_keystack(tmp_path, sshd, target) as made:
        yield made
