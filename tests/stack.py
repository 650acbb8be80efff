"""Everything between laptop and service, all of it real: sshd and NGINX, the gateway behind both.

`stack` starts the far side with relays in front of sshd and NGINX; `Stack.tunnel()` a tunnel to it.
"""

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gateway.site import Site
from tests.conftest import Running, run_tunnel
from tests.droplet import Sshd, Target, free_port
from tests.faults import Relay
from tests.gatewayserver import Enrolled, GatewayServer
from tests.nginxserver import Nginx
from tunnel.demo.nginx import make_certificate
from tunnel.settings import Address, Settings, Ssh, parse


@dataclass
class Stack:
    """The far side, and the network to it."""

    directory: Path
    target: Target
    sshd: Sshd
    gateway: GatewayServer
    nginx: Nginx
    ssh_road: Relay
    https_road: Relay
    ca: Path
    laptop: Enrolled
    _exits: contextlib.AsyncExitStack
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    def settings(self, client: Enrolled, *, gateway: bool = False, **own: Any) -> Settings:
        """Settings as `keys accept` completes them; the ssh path leads to service or gateway."""
        known_hosts = self.directory / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{self.ssh_road.port} {self.sshd.host_key}\n")
        target = Address("127.0.0.1", self.gateway.port if gateway else self.target.port)
        ssh = Ssh(
            host="127.0.0.1",
            port=self.ssh_road.port,
            user=self.sshd.user,
            identity=self.sshd.identity,
            known_hosts=known_hosts,
            target=target,
            gateway=gateway,
        )
        https = parse(client.config, client.config.read_text()).https
        plain = Settings(client.config, ssh, https, Address("127.0.0.1", 0), ("ssh", "https"))
        return replace(plain, **own)

    async def tunnel(
        self, *, client: Enrolled | None = None, up: int | None = None, **own: Any
    ) -> Running:
        """Start a tunnel and wait until so many of its paths reach the service."""
        settings = self.settings(client or self.laptop, **own)
        home = self.directory / f"home{next(self._numbers)}"
        running = await run_tunnel(self._exits, settings, home)
        wanted = len(settings.paths) if up is None else up
        await running.until(
            lambda: sum(path.answered for path in running.tunnel.snapshot().paths) >= wanted
        )
        return running


@contextlib.asynccontextmanager
async def make_stack(
    directory: Path, sshd: Sshd, target: Target, **settings: str
) -> AsyncIterator[Stack]:
    """Start the far side in `directory`; `settings` are keys of gateway.toml."""
    from gateway.site import find_nginx

    if find_nginx() is None:
        pytest.skip("no nginx on this machine: apt install nginx-light")
    ca, key = make_certificate(directory, days=1)
    async with contextlib.AsyncExitStack() as exits:
        port = free_port()
        https_road = await exits.enter_async_context(Relay("127.0.0.1", port))
        ssh_road = await exits.enter_async_context(Relay(sshd.host, sshd.port))
        gateway = GatewayServer(
            directory / "gateway",
            f"http://127.0.0.1:{target.port}",
            https_port=https_road.port,
            tls_ca=ca,
            settings=settings,
        )
        exits.enter_context(gateway)
        site = Site(
            "localhost",
            gateway.directory,
            https_port=port,
            http_port=free_port(),
            tls_certificate=str(ca),
            tls_key=str(key),
            access_log=str(directory / "access.log"),
            ipv6=False,
        )
        nginx = exits.enter_context(Nginx(directory / "nginx", site))
        laptop = gateway.enrol(directory / "laptop", "operator")
        yield Stack(
            directory, target, sshd, gateway, nginx, ssh_road, https_road, ca, laptop, exits
        )


@pytest.fixture
async def stack(sshd: Sshd, target: Target, tmp_path: Path) -> AsyncIterator[Stack]:
    async with make_stack(tmp_path, sshd, target) as far:
        yield far
