"""The real sshd, with the registry in place of authorized_keys: who comes in, how far, how long.

As root, since sshd runs no command that is not root's. The account is `nobody`, so that the
sessions that are ended are none but these tests' own.
"""

import asyncio
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import asyncssh
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway import registry as registries
from gateway.registry import SshKey
from keys.sshkey import fingerprint, public_line
from tests.callers import Far, open_far
from tests.droplet import Sshd
from tests.gatewayserver import Enrolled
from tests.registrarserver import Pen, RegistrarServer, change, status

ACCOUNT = "nobody"

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="sshd runs no AuthorizedKeysCommand but root's: run this as root"
)


def line_of(key: Ed25519PrivateKey) -> str:
    return public_line(key.public_key())


def name_of(key: Ed25519PrivateKey) -> str:
    return fingerprint(line_of(key))


@dataclass
class Gate:
    """A droplet whose sshd asks the registry, and its clients' keys."""

    far: Far
    sshd: Sshd
    laptop: Ed25519PrivateKey
    neighbour: Ed25519PrivateKey

    async def login(
        self, key: Ed25519PrivateKey, user: str = ACCOUNT
    ) -> asyncssh.SSHClientConnection:
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        return await asyncssh.connect(
            self.sshd.host,
            self.sshd.port,
            username=user,
            client_keys=[asyncssh.import_private_key(pem)],
            known_hosts=str(self.sshd.known_hosts),
            config=None,
            agent_path=None,
            login_timeout=30,
        )

    async def refuses(self, key: Ed25519PrivateKey, user: str = ACCOUNT) -> None:
        with pytest.raises(asyncssh.PermissionDenied):
            await self.login(key, user)

    async def works(self, connection: asyncssh.SSHClientConnection) -> None:
        """See a request go through it to the gateway."""
        reader, writer = await connection.open_connection("127.0.0.1", self.far.gateway.port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200")

    def introduce(self, client: Enrolled, key: Ed25519PrivateKey) -> None:
        """Put a key into the registry, as an operator with an editor would."""
        file = self.far.layout.registry
        registry = registries.load(file)
        old = registry.client(client.name)
        assert old is not None
        changed = replace(old, ssh_keys=(*old.ssh_keys, SshKey(line_of(key))))
        with self.far.gateway.reloading():
            registries.save(file, registry.with_client(changed))

    async def pen(self) -> Pen:
        return Pen(self.far.laptop, registries.load(self.far.layout.registry).generation)


@pytest.fixture
async def gate(_sshd_program: Path, tmp_path: Path) -> AsyncIterator[Gate]:
    keys = [Ed25519PrivateKey.generate() for _ in range(2)]
    async with open_far(tmp_path, ssh_user=f'"{ACCOUNT}"') as far:
        rules = far.gateway.run("sshd-config").stdout
        with Sshd(tmp_path / "droplet", config_lines=[rules]) as sshd:
            gate = Gate(far, sshd, *keys)
            gate.introduce(far.laptop, keys[0])
            gate.introduce(far.neighbour, keys[1])
            yield gate


async def ended(connection: asyncssh.SSHClientConnection) -> None:
    await asyncio.wait_for(connection.wait_closed(), 10)


# Who comes in


async def test_only_registered_keys_come_in(gate: Gate) -> None:
    async with await gate.login(gate.laptop) as one, await gate.login(gate.neighbour) as other:
        await gate.works(one)
        await gate.works(other)
    await gate.refuses(Ed25519PrivateKey.generate())
    assert len(list(gate.far.layout.sessions.iterdir())) <= 2  # nothing is kept of strangers


async def test_authorized_keys_is_not_asked(gate: Gate) -> None:
    stranger = Ed25519PrivateKey.generate()
    gate.sshd.authorize(line_of(stranger))
    (gate.sshd.directory / "authorized_keys").chmod(0o644)
    await gate.refuses(stranger)


async def test_other_accounts_are_as_they_were(gate: Gate) -> None:
    await gate.refuses(gate.laptop, gate.sshd.user)
    pem = asyncssh.read_private_key(str(gate.sshd.identity))
    async with asyncssh.connect(
        gate.sshd.host,
        gate.sshd.port,
        username=gate.sshd.user,
        client_keys=[pem],
        known_hosts=str(gate.sshd.known_hosts),
        config=None,
        agent_path=None,
    ) as connection:
        assert (await connection.run("echo in", timeout=20)).stdout == "in\n"


async def test_it_forwards_to_the_gateway_and_does_nothing_else(gate: Gate) -> None:
    """Without the rules' help: what `authorized-keys` says is enough by itself."""
    [rules] = gate.sshd.config_lines
    lookup = [one for one in rules.splitlines() if "Match" in one or "AuthorizedKeys" in one]
    gate.sshd.config_lines = ["\n".join(lookup)]
    gate.sshd.restart()
    async with await gate.login(gate.laptop) as connection:
        await gate.works(connection)
        for port in (gate.far.service.port, gate.sshd.port):
            with pytest.raises(asyncssh.ChannelOpenError) as told:
                await connection.open_connection("127.0.0.1", port)
            assert told.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 9)
        done = await connection.run("echo got-in", timeout=20)
        assert "got-in" not in str(done.stdout)
        with pytest.raises((asyncssh.ChannelOpenError, asyncssh.ProcessError)):
            await connection.run(term_type="xterm", check=True, timeout=20)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"{}", b'{"version": 1, "generation": 0, "clients": []}', None]
)
async def test_a_broken_registry_lets_nobody_in(gate: Gate, text: bytes | None) -> None:
    async with await gate.login(gate.laptop) as before:
        file = gate.far.layout.registry
        good = file.read_bytes()
        with gate.far.gateway.reloading():
            if text is None:
                file.unlink()
            else:
                file.write_bytes(text)
        await gate.refuses(gate.laptop)
        await gate.works(before)
        with gate.far.gateway.reloading():
            file.write_bytes(good)
        async with await gate.login(gate.laptop) as after:
            await gate.works(after)


async def test_where_no_note_can_be_kept_nobody_comes_in(gate: Gate) -> None:
    for one in gate.far.layout.sessions.iterdir():
        one.unlink()
    gate.far.layout.sessions.rmdir()
    await gate.refuses(gate.laptop)
    gate.far.layout.sessions.mkdir(mode=0o700)
    async with await gate.login(gate.laptop) as connection:
        await gate.works(connection)


# How long


async def test_a_rotation_ends_the_old_keys_session_and_no_other(gate: Gate) -> None:
    with RegistrarServer(gate.far.gateway.directory):
        caller = gate.far.at("unix")
        old, other = await gate.login(gate.laptop), await gate.login(gate.neighbour)
        fresh = Ed25519PrivateKey.generate()
        assert (await change(caller, (await gate.pen()).introduce(ssh_key=fresh)))[0] == 200
        new = await gate.login(fresh)
        retiring = (await gate.pen()).retire(ssh_keys=[name_of(gate.laptop)])
        assert (await change(caller, retiring))[0] == 200
        await ended(old)
        await gate.refuses(gate.laptop)
        await gate.works(new)
        await gate.works(other)
        told = [(one["fingerprint"], one["revoked"]) for one in (await status(caller))["ssh_keys"]]
        assert told == [(name_of(gate.laptop), True), (name_of(fresh), False)]
        for one in (new, other):
            one.close()


async def test_a_revoked_clients_sessions_end_and_its_neighbours_stay(gate: Gate) -> None:
    """By the operator's command alone; no registrar runs."""
    one, again = await gate.login(gate.laptop), await gate.login(gate.laptop)
    other = await gate.login(gate.neighbour)
    done = gate.far.gateway.run("client", "revoke", "laptop")
    assert "2 of its ssh sessions were ended." in done.stdout
    await ended(one)
    await ended(again)
    await gate.refuses(gate.laptop)
    await gate.works(other)
    other.close()


async def test_a_session_without_a_note_ends_with_any_key(gate: Gate) -> None:
    """It cannot be told from one that came in with the key that goes."""
    unknown = await gate.login(gate.neighbour)
    for one in gate.far.layout.sessions.iterdir():
        one.unlink()
    noted = await gate.login(gate.neighbour)
    gate.far.gateway.run("client", "revoke", "laptop")
    await ended(unknown)
    await gate.works(noted)
    noted.close()


async def test_what_an_editor_removes_ends_too(gate: Gate) -> None:
    with RegistrarServer(gate.far.gateway.directory):
        one, other = await gate.login(gate.laptop), await gate.login(gate.neighbour)
        registry = registries.load(gate.far.layout.registry)
        with gate.far.gateway.reloading():
            registries.save(gate.far.layout.registry, registry.without("laptop"))
        await ended(one)
        await gate.works(other)
        other.close()


async def test_a_session_that_outlived_its_key_ends_when_the_registrar_starts(gate: Gate) -> None:
    """As after a crash between the registry and the sessions."""
    one, other = await gate.login(gate.laptop), await gate.login(gate.neighbour)
    registry = registries.load(gate.far.layout.registry)
    with gate.far.gateway.reloading():
        registries.save(gate.far.layout.registry, registry.without("laptop"))
    await gate.works(one)
    with RegistrarServer(gate.far.gateway.directory):
        await ended(one)
        await gate.works(other)
    other.close()


async def test_a_listener_that_was_restarted_leaves_no_session_out(gate: Gate) -> None:
    """`systemctl restart ssh` leaves sessions without their parent; they end all the same."""
    one = await gate.login(gate.laptop)
    sessions = gate.sshd.sessions()
    assert gate.sshd._process is not None
    gate.sshd._process.kill()
    gate.sshd._process.wait()
    gate.sshd.start()
    try:
        await gate.works(one)
        gate.far.gateway.run("client", "revoke", "laptop")
        await ended(one)
    finally:
        _, alive = psutil.wait_procs(sessions, timeout=10)
        for left in alive:
            left.kill()
    assert not alive


async def test_revoked_while_it_logs_in(gate: Gate) -> None:
    """Whenever the revocation falls, nothing of the key is left in the end."""
    logins = [asyncio.ensure_future(gate.login(gate.laptop)) for _ in range(6)]
    async with asyncio.timeout(30):
        while not list(gate.far.layout.sessions.iterdir()):  # until sshd has asked about the first
            await asyncio.sleep(0.005)
    await asyncio.to_thread(gate.far.gateway.run, "client", "revoke", "laptop")
    for login in logins:
        try:
            connection = await login
        except (asyncssh.Error, OSError):
            continue
        await ended(connection)


# What sshd waits for


def test_it_answers_fast(gate: Gate, tmp_path: Path) -> None:
    """Every login waits for it twice. CPU time, since a clock would measure the neighbours."""
    asker = tmp_path / "sshd-asks"  # a script is called like its file
    directory, key = gate.far.gateway.directory, line_of(gate.laptop)
    asker.write_text(
        f"#!/bin/sh\n{sys.executable} -m gateway authorized-keys --dir {directory} "
        f"--target 127.0.0.1:1 {key}\n"
    )
    asker.chmod(0o755)
    took = []
    for _ in range(7):
        before = os.times()
        done = subprocess.run([asker], capture_output=True, text=True, timeout=30)
        after = os.times()
        assert done.stdout.startswith("restrict,port-forwarding,"), done
        assert done.stdout.endswith(f"{key} laptop\n")
        took.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    assert statistics.median(took) < 0.4  # 0.09 s on an idle machine; 1 s if it imported all
