"""Other roads to the droplet: jump hosts, and what ~/.ssh/config says."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import Start
from tests.droplet import Sshd
from tunnel.settings import Hop


async def test_through_two_jump_hosts(start: Start, sshd: Sshd, tmp_path: Path) -> None:
    with Sshd(tmp_path / "a") as first, Sshd(tmp_path / "b") as second:
        known = tmp_path / "all_known_hosts"
        for server in (first, second):
            server.authorize(sshd.public_key)
        lines = [server.known_hosts.read_text() for server in (first, second, sshd)]
        known.write_text("".join(lines))
        hops = tuple(Hop(one.user, one.host, one.port) for one in (first, second))
        ssh = {"jumps": hops, "known_hosts": known, "port": sshd.port}
        run = await start(ssh=ssh)
        async with run.client.get(f"{run.url}/one") as answer:
            assert answer.status == 200
        assert len(first.sessions()) > 0
        assert len(second.sessions()) > 0
        # The road is made again from its beginning when a piece in the middle breaks.
        second.kill_sessions()
        async with run.client.get(f"{run.url}/one") as answer:
            assert answer.status == 200
        assert run.tunnel.snapshot().paths[0].connects == 2


async def test_a_jump_host_that_is_not_known_is_not_trusted(
    start: Start, sshd: Sshd, tmp_path: Path
) -> None:
    with Sshd(tmp_path / "a") as first:
        first.authorize(sshd.public_key)
        ssh = {"jumps": (Hop(first.user, first.host, first.port),)}
        run = await start(ssh=ssh, up=False)
        await run.until_state("failed")
        problem = run.tunnel.snapshot().paths[0].problem
        assert problem is not None
        assert problem["code"] == "host_key_unknown"


async def test_ssh_config_is_read_only_when_asked_for(
    start: Start, sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text(
        f"Host droplet\n  HostName {sshd.host}\n  Port {sshd.port}\n  User {sshd.user}\n"
        f"  IdentityFile {sshd.identity}\n"
    )
    alias = {"host": "droplet", "port": None, "user": None}
    run = await start(ssh={**alias, "identity": None, "use_ssh_config": True})
    async with run.client.get(f"{run.url}/one") as answer:
        assert answer.status == 200

    (tmp_path / ".ssh" / "config").open("a").write("  ProxyCommand /bin/false\n")
    proxied = await start(ssh={**alias, "identity": None, "use_ssh_config": True}, up=False)
    await proxied.until(lambda: proxied.tunnel.snapshot().paths[0].problem is not None)
    assert proxied.tunnel.snapshot().paths[0].state != "up"

    other = replace(run.settings.ssh, use_ssh_config=False, identity=sshd.identity)
    blind = await start(ssh=other.__dict__, up=False)
    await blind.until(lambda: blind.tunnel.snapshot().paths[0].problem is not None)
    assert blind.tunnel.snapshot().paths[0].state != "up"
