"""The gateway's settings: DIR/gateway.toml in, one checked record out, every fault told at once."""

import functools
import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from keys.enrolment import ROLES, Role
from keys.table import Table

from .rate import Rate

DEFAULT_DIRECTORY = "/etc/catalyst-gateway"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the gateway's things are: all of them under one directory."""

    directory: Path

    @property
    def settings(self) -> Path:
        """What an operator edits."""
        return self.directory / "gateway.toml"

    @property
    def registry(self) -> Path:
        """Who may come in."""
        return self.directory / "registry.json"

    @property
    def ca_key(self) -> Path:
        """The client CA's key: the one secret here, and `serve` never reads it."""
        return self.directory / "ca" / "ca.key"

    @property
    def ca_certificate(self) -> Path:
        """The client CA's certificate."""
        return self.directory / "ca" / "ca.pem"

    @property
    def next_ca_key(self) -> Path:
        """The key of the CA that is about to follow; there while `ca rotate` is at it."""
        return self.directory / "ca" / "next.key"

    @property
    def next_ca_certificate(self) -> Path:
        """Its certificate."""
        return self.directory / "ca" / "next.pem"

    @property
    def issued(self) -> Path:
        """Every client certificate that the registry names, as THUMBPRINT.pem."""
        return self.directory / "issued"

    @property
    def lock(self) -> Path:
        """Held by whoever changes registry or CA."""
        return self.directory / ".lock"

    @property
    def nginx(self) -> Path:
        """What NGINX includes."""
        return self.directory / "nginx"

    @property
    def client_ca(self) -> Path:
        """The CA certificates that NGINX takes clients by."""
        return self.nginx / "client-ca.pem"

    @property
    def socket(self) -> Path:
        """Where NGINX reaches the gateway."""
        return self.directory / "run" / "gateway.sock"

    @property
    def registrar(self) -> Path:
        """Where the gateway reaches the registrar."""
        return self.directory / "run" / "registrar.sock"

    @property
    def sessions(self) -> Path:
        """Which connection of sshd came with which key: written by `authorized-keys`."""
        return self.directory / "run" / "ssh-sessions"

    @property
    def state(self) -> Path:
        """What `serve` writes: replay and rate state, audit log."""
        return self.directory / "state"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.state / "audit.jsonl"


def directory(given: Path | None) -> Path:
    """Return the gateway's directory: as given, or $CATALYST_GATEWAY_DIR, or the default."""
    return (given or Path(os.environ.get("CATALYST_GATEWAY_DIR") or DEFAULT_DIRECTORY)).absolute()


@dataclass(frozen=True, slots=True)
class Service:
    """[service]: what lies behind, and which of its doors are open at all."""

    endpoint: str = "/mcp"
    reads: tuple[str, ...] = ("/health", "/system/")
    """Paths for GET besides; one that ends in "/" stands for all below it."""
    urgent: frozenset[str] = frozenset({"stop_trading"})


@dataclass(frozen=True)
class Limits:
    """[limits]: for each client."""

    requests_per_second: float = 50.0
    burst: int = 100
    streams: int = 64
    """Requests that run at once."""
    urgent_per_second: float = 5.0
    urgent_burst: int = 10
    urgent_streams: int = 8
    body: int = 4 << 20  # bytes
    slow: float = 15.0  # seconds that a body may take

    @functools.cached_property
    def rate(self) -> Rate:
        """What a client may do, all in all."""
        return Rate(self.requests_per_second, self.burst)

    @functools.cached_property
    def urgent_rate(self) -> Rate:
        """What it may do with each urgent tool."""
        return Rate(self.urgent_per_second, self.urgent_burst)


@dataclass(frozen=True)
class Settings:
    """What the file says, checked."""

    domain: str
    https_port: int = 443
    upstream: str = "http://127.0.0.1:5000"
    listen: tuple[str, int] = ("127.0.0.1", 5001)
    socket_group: str = "www-data"
    ssh_user: str = "catalyst"
    """The account that tunnels come in by."""
    state: str = "sqlite"
    stop_without_state: bool = False
    """Whether urgent tools may be called while the state store cannot be asked."""
    silence: float = 300.0  # seconds until an answer must begin
    drain: float = 25.0  # seconds that running requests are given at the end
    tls_ca: str | None = None
    """PEM file of the private CA of the site's certificate; told to clients."""
    limits: Limits = field(default_factory=Limits)
    service: Service = field(default_factory=Service)
    tools: Mapping[Role, frozenset[str]] = field(
        default_factory=lambda: {"operator": frozenset({"*"}), "observer": frozenset()}
    )

    @property
    def audience(self) -> str:
        """What tokens for this gateway are made out to."""
        return f"catalyst-gateway:{self.domain}"

    @property
    def url(self) -> str:
        """Where clients on https find the service's root."""
        port = "" if self.https_port == 443 else f":{self.https_port}"
        return f"https://{self.domain}{port}/mcp"

    @property
    def ssh_target(self) -> str:
        """What clients on ssh forward to."""
        host, port = self.listen
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class SettingsError(ValueError):
    """The file cannot be used; the message lists every fault."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))


def load(file: Path) -> Settings:
    """Return the settings in `file`.

    Raises:
        SettingsError: with every fault.
        OSError: it cannot be read.
    """
    settings = parse(file, file.read_bytes())
    if "@" in settings.state and file.stat().st_mode & 0o007:
        raise SettingsError(
            [f"{file}: holds a password and is open to others. Run: chmod o= {file}"]
        )
    return settings


def parse(file: Path, text: bytes) -> Settings:
    """Return the settings in `text`; `file` is the name that faults are told under.

    Raises:
        SettingsError: with every fault.
    """
    try:
        content = tomllib.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as exc:  # ValueError: numbers of 5,000 digits, too
        raise SettingsError([f"{file}: is not TOML: {exc}"]) from exc
    faults: list[str] = []
    settings = _read(file, content, faults)
    if faults:
        raise SettingsError(faults)
    return settings


def _read(file: Path, content: dict[str, Any], faults: list[str]) -> Settings:
    def table(name: str) -> Table:
        values = content.get(name, {})
        if not isinstance(values, dict):
            faults.append(f"{file}: [{name}] must be a table")
            values = {}
        return Table(f"{file}: [{name}]", values, faults)

    known = {"gateway", "limits", "service", "tools"}
    faults.extend(
        f"{file}: [{name}]: unknown table (known here: {', '.join(sorted(known))})"
        for name in sorted(content.keys() - known)
    )
    gateway, tools = table("gateway"), table("tools")
    defaults = Settings("")
    granted: dict[Role, frozenset[str]] = {
        role: tools.take(role, list, defaults.tools[role], _names) for role in ROLES
    }
    tools.rest()
    if "domain" not in gateway.values:
        gateway.fault("domain", "is missing: the name that clients call")
    settings = Settings(
        domain=gateway.take("domain", str, "", read_domain),
        https_port=gateway.take("https_port", int, defaults.https_port, _port),
        upstream=gateway.take("upstream", str, defaults.upstream, read_upstream),
        listen=gateway.take("listen", str, defaults.listen, read_listen),
        socket_group=gateway.word("socket_group") or defaults.socket_group,
        ssh_user=gateway.take("ssh_user", str, defaults.ssh_user, read_account),
        state=gateway.take("state", str, defaults.state, _state),
        stop_without_state=gateway.flag("stop_without_state"),
        silence=gateway.seconds("silence", defaults.silence, 1, 3600),
        drain=gateway.seconds("drain", defaults.drain, 0, 600),
        tls_ca=gateway.word("tls_ca", blanks=True),
        limits=_limits(table("limits")),
        service=_service(table("service")),
        tools=granted,
    )
    gateway.rest()
    return settings


def _limits(table: Table) -> Limits:
    plain = Limits()

    def count(key: str, default: int, most: int) -> int:
        def read(value: int) -> int:
            if not 1 <= value <= most:
                raise ValueError(f"must be between 1 and {most}")
            return value

        return table.take(key, int, default, read)

    def rate(key: str, default: float) -> float:
        def read(value: float) -> float:
            if not 0.01 <= value <= 100_000:
                raise ValueError("must be between 0.01 and 100000 a second")
            return value

        return table.take(key, float, default, read)

    limits = Limits(
        requests_per_second=rate("requests_per_second", plain.requests_per_second),
        burst=count("burst", plain.burst, 100_000),
        streams=count("streams", plain.streams, 10_000),
        urgent_per_second=rate("urgent_per_second", plain.urgent_per_second),
        urgent_burst=count("urgent_burst", plain.urgent_burst, 10_000),
        urgent_streams=count("urgent_streams", plain.urgent_streams, 1_000),
        body=count("body", plain.body, 64 << 20),
        slow=table.seconds("slow", plain.slow, 1, 300),
    )
    try:
        _ = limits.rate, limits.urgent_rate
    except ValueError as exc:
        table.fault("burst", str(exc))
    table.rest()
    return limits


def _service(table: Table) -> Service:
    plain = Service()
    service = Service(
        endpoint=table.take("endpoint", str, plain.endpoint, _endpoint),
        reads=table.take("reads", list, plain.reads, _paths),
        urgent=table.take("urgent", list, plain.urgent, _names),
    )
    table.rest()
    return service


def read_domain(value: str) -> str:
    """Return a domain name or address as it may stand in a URL and in NGINX's server_name.

    Raises:
        ValueError: it is something else.
    """
    label = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
    if not re.fullmatch(rf"{label}(\.{label})*", value) or len(value) > 253:
        raise ValueError('must be a domain name in lower case, such as "droplet.example.com"')
    return value


def _port(value: int) -> int:
    if not 1 <= value <= 65535:
        raise ValueError("must be between 1 and 65535")
    return value


def read_account(value: str) -> str:
    """Return the name of an account, as useradd(8) takes it.

    Raises:
        ValueError: it is something else.
    """
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", value):
        raise ValueError(f"{value!r} is not the name of an account")
    return value


def read_upstream(value: str) -> str:
    """Return the URL of the service: http, a host and a port, and nothing more.

    Raises:
        ValueError: it is something else.
    """
    text = 'must be "http://HOST:PORT", such as "http://127.0.0.1:5000"'
    if not re.fullmatch(r"http://(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}/?", value):
        raise ValueError(text)
    try:
        port = urlsplit(value).port
    except ValueError:
        port = None
    if not port:
        raise ValueError(text)
    return value.rstrip("/")


def read_listen(value: str) -> tuple[str, int]:
    """Return the loopback address and port to listen on.

    Raises:
        ValueError: it is something else.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:]+)\]|([0-9.]+)):([0-9]{1,5})", value)
    if match is None or int(match[3]) > 65535:
        raise ValueError('must be "127.0.0.1:PORT" or "[::1]:PORT"')
    host = match[1] or match[2]
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ValueError("must be a loopback address: what is public is NGINX, in front")
    return host, int(match[3])


def _state(value: str) -> str:
    if value != "sqlite" and not re.match(r"(redis|rediss|unix)://", value):
        raise ValueError('must be "sqlite" or the URL of a Redis server')
    return value


def _endpoint(value: str) -> str:
    if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", value):
        raise ValueError('must be a path, such as "/mcp"')
    return value


def _paths(values: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(one, str) and re.fullmatch(r"/[A-Za-z0-9._/-]*", one) for one in values):
        raise ValueError('must list paths, such as "/health"')
    return tuple(values)


def _names(values: list[Any]) -> frozenset[str]:
    if not all(isinstance(one, str) and one for one in values):
        raise ValueError('must list names of tools, or "*" for all of them')
    return frozenset(values)
