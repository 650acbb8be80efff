"""What a stolen laptop key could do on the droplet: forward to the service, and nothing else.

Every door is tried on the real sshd, once behind the authorized_keys line that `init` prints and
once behind the rules that `catalyst-gateway sshd-config` prints.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import asyncssh
import pytest

from gateway.sshd import match_block
from keys.sshkey import authorized_line
from tests.droplet import Sshd, Target, free_port


def by_line(sshd: Sshd, target: Target) -> None:
    line = authorized_line(sshd.public_key, [f"{target.host}:{target.port}"], "test")
    sshd.authorize(line)


def by_rules(sshd: Sshd, target: Target) -> None:
    sshd.config_lines = [match_block(sshd.user, [f"{target.host}:{target.port}"])]
    sshd.restart()


@pytest.fixture(params=[by_line, by_rules], ids=["authorized_keys", "sshd_config"])
async def connection(
    request: pytest.FixtureRequest, sshd: Sshd, target: Target
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    protect: Callable[[Sshd, Target], None] = request.param
    protect(sshd, target)
    async with asyncssh.connect(
        sshd.host,
        sshd.port,
        username=sshd.user,
        client_keys=[str(sshd.identity)],
        known_hosts=str(sshd.known_hosts),
        config=None,
        agent_path=None,
    ) as opened:
        yield opened


async def test_the_service_is_reached(
    connection: asyncssh.SSHClientConnection, target: Target
) -> None:
    reader, writer = await connection.open_connection(target.host, target.port)
    writer.write(b"GET /one HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200")


async def test_no_command_is_run(connection: asyncssh.SSHClientConnection) -> None:
    try:
        done = await connection.run("echo got-in", timeout=10)
    except asyncssh.ChannelOpenError:
        return  # no session at all
    assert "got-in" not in str(done.stdout)
    assert done.exit_status != 0


async def test_no_terminal(connection: asyncssh.SSHClientConnection) -> None:
    with pytest.raises((asyncssh.ChannelOpenError, asyncssh.ProcessError)):
        await connection.run(term_type="xterm", check=True, timeout=10)


async def test_no_other_target(connection: asyncssh.SSHClientConnection, target: Target) -> None:
    async with Target() as other:
        for host, port in [
            (other.host, other.port),
            ("localhost", target.port),
            ("::1", target.port),
            ("127.0.0.2", target.port),
        ]:
            with pytest.raises(asyncssh.ChannelOpenError) as told:
                await connection.open_connection(host, port)
            assert told.value.code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED


async def test_no_listener_on_the_droplet(connection: asyncssh.SSHClientConnection) -> None:
    for host, port in [("127.0.0.1", free_port()), ("", 0)]:
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port(host, port, "127.0.0.1", 9)


async def test_no_unix_sockets(
    request: pytest.FixtureRequest,
    connection: asyncssh.SSHClientConnection,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = str(tmp_path_factory.mktemp("s") / "s")
    server = await asyncio.start_unix_server(lambda reader, writer: writer.close(), path)
    async with server:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_unix_connection(path)
    # No option of authorized_keys closes this one (keys/README.md says so); sshd_config does.
    if "sshd_config" in request.node.name:
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_path(path + "2", path)
