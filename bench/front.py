"""The droplet's front as its users have it: NGINX with client certificates, the gateway behind it.

Both keep to one core. The service, the load generator and whatever else there is keep to another,
so that a machine with two of them is enough to see what the gateway itself costs.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import processes
from bench.processes import Announced, pinned
from bench.traffic import NUMBER
from gateway.site import DEFAULT_NGINX, Site, find_nginx, installed_version
from tests.droplet import free_port
from tests.gatewayserver import Enrolled, GatewayServer
from tests.nginxserver import Nginx
from tunnel.demo.nginx import make_certificate

FRONT, REST = 0, 1
"""Cores."""

OPEN = {
    "requests_per_second": "100000",
    "burst": "100000",
    "streams": "10000",
}
"""Limits of the gateway that no measurement of ours reaches."""

ENDLESS = "keepalive_requests 1000000000;"

NO_NGINX = "skipped: no nginx"

_CALL = {
    "jsonrpc": "2.0",
    "id": 7,
    "method": "tools/call",
    "params": {"name": "get_cycle", "arguments": {"symbol": "BTC", "ref": NUMBER}},
}
CALL = json.dumps(_CALL, separators=(",", ":"))
READ = '{"jsonrpc":"2.0","id":8,"method":"resources/read","params":{"uri":"catalyst://health"}}'


def request(method: str, path: str, fields: Mapping[str, str], body: str = "") -> str:
    """A request as it goes on the wire."""
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", body])


def post(fields: Mapping[str, str], body: str = CALL) -> str:
    """A message, as an MCP client sends it."""
    accept = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
    return request("POST", "/mcp", {**fields, **accept}, body)


def stream(fields: Mapping[str, str]) -> str:
    """The standing stream of an MCP client."""
    return request("GET", "/mcp", {**fields, "Accept": "text/event-stream"})


def token(client: Enrolled) -> dict[str, str]:
    """What a client itself sends; good for a minute."""
    return {"Host": "localhost", "Authorization": f"Bearer {client.token(bound=True)}"}


def told(client: Enrolled) -> dict[str, str]:
    """What NGINX makes of that."""
    forwarded = {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Proto": "https"}
    return {**token(client), **client.identity(), **forwarded}


@dataclass
class Front:
    """The gateway, and how to reach it."""

    directory: Path
    gateway: GatewayServer
    certificate: Path
    key: Path
    https_port: int
    service: Announced

    def socket(self) -> dict[str, Any]:
        """NGINX's own way to the gateway."""
        return {"unix": str(self.gateway.socket)}

    def https(self, client: Enrolled, port: int | None = None) -> dict[str, Any]:
        """The site, or another one on `port` with the same certificate, with the client's own."""
        keys = client.home / "keys"
        return {
            "port": port or self.https_port,
            "ca": str(self.certificate),
            "cert": str(keys / "tls.crt"),
            "key": str(keys / "tls.key"),
        }

    def enrol(self, name: str) -> Enrolled:
        """Let another client in."""
        return self.gateway.enrol(self.directory / name, "operator")

    @contextlib.contextmanager
    def nginx(self, name: str, port: int, service: int | None = None) -> Iterator[Nginx]:
        """The site on `port`; with a `service`, the same site leads straight there."""
        directory = self.directory / name
        found = Site(
            "localhost",
            self.gateway.directory,
            https_port=port,
            http_port=free_port(),
            tls_certificate=str(self.certificate),
            tls_key=str(self.key),
            access_log=str(directory / "access.log"),
            nginx=installed_version() or DEFAULT_NGINX,
            ipv6=False,
            rate=100_000,
            connections=2_000,
        )
        server = Nginx(directory, found)
        site = self.gateway.directory / "nginx" / "site.conf"
        text = site.read_text()
        if service is not None:
            text = _replace(text, f"unix:{self.gateway.socket}", f"127.0.0.1:{service}")
        # Else it hangs up after a thousand requests, in the midst of a measurement.
        site.write_text(_replace(text, "merge_slashes", f"{ENDLESS}\n    merge_slashes"))
        with pinned(FRONT):
            server.start()
        try:
            yield server
        finally:
            server.kill()


def _replace(text: str, old: str, new: str) -> str:
    assert old in text, old
    return text.replace(old, new)


@contextlib.asynccontextmanager
async def front(
    directory: Path, *, pause: float = 0.0, settings: Mapping[str, str] = OPEN
) -> AsyncIterator[Front]:
    """Start service and gateway; NGINX is the caller's to start, where there is one."""
    directory.mkdir(parents=True)
    certificate, key = make_certificate(directory)
    with pinned(REST):
        service = processes.service(directory, pause)
        await service.__aenter__()
    try:
        port = free_port()
        gateway = GatewayServer(
            directory / "gateway",
            f"http://127.0.0.1:{service.port}",
            https_port=port,
            tls_ca=certificate,
            settings=settings,
        )
        made = Front(directory, gateway, certificate, key, port, service)
        with pinned(FRONT):
            gateway.start()
        try:
            yield made
        finally:
            gateway.__exit__(None, None, None)
    finally:
        await service.stop()


def missing_nginx() -> str | None:
    """Why there is nothing to measure, or None."""
    return None if find_nginx() else NO_NGINX
