"""The NGINX site in front of the gateway: the templates of nginx/, filled in for one machine."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HTTP2_DIRECTIVE = (1, 25, 1)
"""The first version with `http2 on`; `listen ... http2` is deprecated from then on."""

DEFAULT_NGINX = (1, 22, 1)
"""Written for where no nginx is installed: Debian 12's. Later ones load that site too, and warn."""

FILES = ("site.conf", "proxy.conf", "identity.conf")
SBIN = ("/usr/sbin", "/usr/local/sbin", "/sbin")

_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_PATH = re.compile(r"/[A-Za-z0-9._/+,=@~-]*")
_PLACEHOLDER = re.compile(r"@([a-z_]+)@")
_CONDITION = re.compile(r"\s*#: ([a-z0-9_ ]+)$")
_VERSION = re.compile(r"nginx version: \S+?/(\d+)\.(\d+)\.(\d+)")
_SOCKET_PATH = 107  # bytes, Linux (unix(7))


@dataclass(frozen=True, slots=True)
class Site:
    """What the templates leave open."""

    domain: str
    """DNS name in lower case."""
    directory: Path
    """Where everything of the gateway lives, absolute."""
    https_port: int = 443
    http_port: int = 80
    tls_certificate: str | None = None
    """File with the chain, PEM; None: where certbot puts it."""
    tls_key: str | None = None
    """File with its key, PEM; None: where certbot puts it."""
    webroot: str = "/var/www/html"
    """Directory that certbot writes its challenges into."""
    access_log: str = "/var/log/nginx/catalyst-gateway.log"
    nginx: tuple[int, int, int] = DEFAULT_NGINX
    """The version to write for."""
    ipv6: bool = True
    """Listen on IPv6 too. NGINX does not start where the kernel has none: see `has_ipv6`."""
    rate: int = 200
    """Requests a second for each certificate; twice as many at once."""
    connections: int = 256
    """Requests at a time, streams included, for a certificate; four times that for an address."""


def render(site: Site) -> dict[str, str]:
    """Return the text of each file for DIRECTORY/nginx, by name.

    Raises:
        ValueError: a value is no name, path or number of its kind, or could mean something else to
            NGINX (a quote, semicolon, space, dollar, brace, ...); the message names all of them.
    """
    live = f"/etc/letsencrypt/live/{site.domain}"
    paths = {
        "directory": site.directory.as_posix(),
        "tls_certificate": site.tls_certificate or f"{live}/fullchain.pem",
        "tls_key": site.tls_key or f"{live}/privkey.pem",
        "webroot": site.webroot,
        "access_log": site.access_log,
    }
    numbers = {
        "https_port": site.https_port,
        "http_port": site.http_port,
        "rate": site.rate,
        "burst": 2 * site.rate,
        "connections": site.connections,
        "address_connections": 4 * site.connections,  # others may be at the same one
    }
    if faults := list(_faults(site, paths)):
        raise ValueError("; ".join(faults))

    port = "" if site.https_port == 443 else f":{site.https_port}"
    values = {"domain": site.domain, "https_authority": f"{site.domain}{port}", **paths}
    values |= {name: str(number) for name, number in numbers.items()}
    facts = {"http2_directive" if site.nginx >= HTTP2_DIRECTIVE else "http2_on_listen"}
    if site.ipv6:
        facts.add("ipv6")
    return {name: _fill((_templates() / name).read_text(), values, facts) for name in FILES}


def find_nginx() -> Path | None:
    """Where nginx is, also for users whose PATH has no sbin; None where it is not installed."""
    found = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), *SBIN]))
    return Path(found) if found else None


def installed_version() -> tuple[int, int, int] | None:
    """Return the version of the nginx on this machine; None where there is none that says it."""
    program = find_nginx()
    if program is None:
        return None
    try:
        told = subprocess.run(
            [program, "-v"], check=False, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(told.stderr)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def has_ipv6() -> bool:
    """Say whether a socket can listen on [::] on this machine."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
    except OSError:
        return False
    return True


def _templates() -> Path:
    """Where the templates are: in the package as installed, beside it in the source tree."""
    packaged = Path(__file__).parent / "nginx"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "nginx"


def _faults(site: Site, paths: dict[str, str]) -> Iterator[str]:
    if not _NAME.fullmatch(site.domain) or len(site.domain) > 253:
        yield f"domain {site.domain!r} is not a DNS name in lower case"
    for name, path in paths.items():
        if not _PATH.fullmatch(path):
            yield f"{name} {path!r} is not an absolute path of letters, digits and ._/+,=@~-"
    if len(f"{paths['directory']}/run/gateway.sock") > _SOCKET_PATH:
        yield f"directory {paths['directory']!r} is too long for a Unix socket in it"
    for name, port in (("https_port", site.https_port), ("http_port", site.http_port)):
        if not 1 <= port <= 65535:
            yield f"{name} {port} is not a port"
    if site.https_port == site.http_port:
        yield f"https_port and http_port are both {site.http_port}"
    for name, number in (("rate", site.rate), ("connections", site.connections)):
        if number < 1:
            yield f"{name} {number} would let nobody in"


def _fill(template: str, values: dict[str, str], facts: set[str]) -> str:
    """Keep the lines whose conditions hold, and put the values in.

    A placeholder without a value raises KeyError: a fault in the template.
    """
    lines = []
    for line in template.splitlines():
        condition = _CONDITION.search(line)
        if condition is None:
            lines.append(line)
        elif set(condition[1].split()) <= facts:
            lines.append(line[: condition.start()])
    return _PLACEHOLDER.sub(lambda match: values[match[1]], "\n".join(lines) + "\n")
