"""Dialling TCP: names resolved anew each time, addresses raced, a proxy only where asked for."""

import asyncio
import base64
import contextlib
import os
import re
import socket
import sys
import urllib.request
from urllib.parse import unquote, urlsplit

import aiohappyeyeballs

from .problems import ProblemError

DIAL = 5.0  # seconds for DNS and TCP; a lost SYN is better sent anew than waited for
_ANSWER = 16 << 10  # bytes of a proxy's answer


async def dial(host: str, port: int) -> socket.socket:
    """Return a connected socket; names are resolved anew each time (a laptop changes networks).

    Raises:
        ProblemError: dns_failed, connect_failed, connect_timeout.
    """
    loop = asyncio.get_running_loop()
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(DIAL):
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            sock = await aiohappyeyeballs.start_connection(infos, happy_eyeballs_delay=0.25)
    except TimeoutError as exc:
        message = f"{where} did not answer within {DIAL:g} s."
        raise ProblemError("connect_timeout", message) from exc
    except (socket.gaierror, UnicodeError) as exc:  # a label of no or 64 characters, say
        raise ProblemError("dns_failed", f"The name {host} does not resolve.") from exc
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno else "connection failed"
        raise ProblemError("connect_failed", f"Cannot connect to {where}: {reason}.") from exc
    _set(sock, "TCP_NODELAY", 1)
    return sock


async def dial_through_proxy(host: str, port: int) -> socket.socket:
    """Return a socket to `host`, through the system's HTTPS proxy where it names one for it.

    The proxy is that of the environment (https_proxy, no_proxy), of Windows or of macOS. It sees
    the name and the port, and TLS inside (RFC 9110 section 9.3.6).

    Raises:
        ProblemError: see `dial`; proxy_refused.
    """
    proxy = urllib.request.getproxies().get("https")
    if not proxy or urllib.request.proxy_bypass(host):
        return await dial(host, port)
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        where = parts.hostname or "", parts.port or 8080
    except ValueError:  # which may quote the password
        raise ProblemError("proxy_refused", "The system's HTTPS proxy is not a URL.") from None
    sock = await dial(*where)
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}")
    try:
        async with asyncio.timeout(DIAL):
            status = await _ask(sock, "\r\n".join(lines) + "\r\n\r\n")
    except (TimeoutError, OSError) as exc:
        sock.close()
        text = f"The proxy {where[0]}:{where[1]} did not answer."
        raise ProblemError("proxy_refused", text) from exc
    except BaseException:
        sock.close()
        raise
    if status != b"200":
        sock.close()
        shown = status.decode("ascii") or "nothing that is HTTP"
        text = f"The proxy {where[0]}:{where[1]} answered {shown}."
        raise ProblemError("proxy_refused", text)
    return sock


async def _ask(sock: socket.socket, request: str) -> bytes:
    """Send `request`, read the head of the answer and no byte beyond it.

    Returns its status, or nothing where it is not the whole head of an HTTP/1 answer.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, request.encode("latin-1"))
    head = b""
    while not head.endswith(b"\r\n\r\n") and len(head) < _ANSWER:
        byte = await loop.sock_recv(sock, 1)  # what follows belongs to TLS
        if not byte:
            break
        head += byte
    match = re.match(rb"HTTP/1\.[01] ([0-9]{3})[ \r]", head)
    return match[1] if match and head.endswith(b"\r\n\r\n") else b""


def notice_death(sock: socket.socket, seconds: int) -> None:
    """Have the kernel end a connection whose peer has been silent for about `seconds`."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    _set(sock, "TCP_USER_TIMEOUT", seconds * 1000)  # Linux: data without an ACK counts as well
    _set(sock, "TCP_KEEPALIVE" if sys.platform == "darwin" else "TCP_KEEPIDLE", seconds // 3)
    _set(sock, "TCP_KEEPINTVL", seconds // 6)
    _set(sock, "TCP_KEEPCNT", 4)


def _set(sock: socket.socket, name: str, value: int) -> None:
    """Set an option of TCP where the system knows it (Windows before 1709 lacks some of them).

    macOS refuses to set any once the peer has reset the connection: whoever uses it, notices.
    """
    option = getattr(socket, name, None)
    if option is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, option, max(1, value))
