"""Who may talk to the listener: loopback names in Host, loopback or allowed pages in Origin.

A web page on another site can make a browser send requests to localhost, and by rebinding its own
name to 127.0.0.1 it can read the answers too. Host carries the name that the browser believes it
talks to and Origin the page it acts for, and a page can set neither (Fetch standard, forbidden
request-headers). The MCP specification asks for this check (Transports, Security Warning).
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address

from .problems import Problem

# RFC 3986 section 3.2 without userinfo. Parsers of URLs are more generous than is good here:
# urllib takes "[::1]evil.example" for ::1.
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{0,5}))?")
_SCHEMES = frozenset({"http", "https"})


def is_loopback(host: str) -> bool:
    """Return whether `host`, a name or a literal address without brackets, is this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _hostname(authority: str) -> str | None:
    """Return the host of `host[:port]`, or None where it is not just that."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None or int(match[3] or 0) > 65535:
        return None
    return match[1] or match[2]


def _origin_allowed(origin: str, allowed: frozenset[str]) -> bool:
    if origin in allowed:
        return True
    scheme, mark, authority = origin.partition("://")
    host = _hostname(authority) if mark and scheme in _SCHEMES else None
    return host is not None and is_loopback(host)


def check(headers: Iterable[tuple[bytes, bytes]], allowed: frozenset[str]) -> Problem | None:
    """Return the problem that forbids a request with these `headers`, or None.

    Args:
        headers: names in lower case, values as received.
        allowed: origins ("https://page.example") that may call besides loopback pages.
    """
    hosts: list[bytes] = []
    origins: list[bytes] = []
    cross_site = False
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"origin":
            origins.append(value)
        elif name == b"sec-fetch-site":  # Fetch Metadata: sent where Origin is not, as for <img>
            cross_site = cross_site or value.strip().lower() == b"cross-site"
    host = _hostname(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
    if host is None or not is_loopback(host):
        return Problem("host_forbidden", "The Host header does not name this machine.")
    if not origins and cross_site:
        return Problem("origin_forbidden", "A page of another site may not use this tunnel.")
    if not all(_origin_allowed(value.decode("latin-1"), allowed) for value in origins):
        return Problem("origin_forbidden", "A page of another origin may not use this tunnel.")
    return None
