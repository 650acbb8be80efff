"""Local listening sockets: both loopbacks, never shared, and put back when the system loses them.

What differs between systems is here and named: SO_EXCLUSIVEADDRUSE on Windows, AirPlay on macOS,
the limit on open files on POSIX, and who holds a port that is taken.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import sys
from collections.abc import Callable

from .settings import TWINS, Address

BACKLOG = 512  # connections that the system queues while we accept others
LOOK_EVERY = 15.0  # seconds between looks at our own sockets
TRIES = 20  # for a free port on both loopbacks

_log = logging.getLogger(__name__)


class PortTakenError(Exception):
    """An address cannot be listened on; the message says why and names who has it if it can."""


def _twin(address: Address) -> Address | None:
    """Return the same port on the other loopback: `localhost` means both, ::1 often first."""
    other = TWINS.get(address.host)
    return None if other is None else Address(other, address.port)


def _bind(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":
            # SO_REUSEADDR would let any other program take the port from us there.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("127.0.0.1" if address.host == "localhost" else address.host, address.port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def bind_loopback(address: Address) -> list[socket.socket]:
    """Return listening sockets on `address` and on its twin, where this system has that.

    Port 0 takes a port that is free on both.

    Raises:
        PortTakenError: either is taken or forbidden.
    """
    for left in range(TRIES, 0, -1):
        try:
            first = _bind(address)
        except OSError as exc:
            raise PortTakenError(explain(address, exc)) from exc
        twin = _twin(Address(address.host, first.getsockname()[1]))
        if twin is None:
            return [first]
        try:
            return [first, _bind(twin)]
        except OSError as exc:
            if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                return [first]  # no IPv6 here
            first.close()
            if address.port or left == 1:
                raise PortTakenError(explain(twin, exc)) from exc
    raise AssertionError("unreachable")


def explain(address: Address, exc: OSError, platform: str = sys.platform) -> str:
    """Return in words why `address` cannot be had, and what to do."""
    if exc.errno in (errno.EACCES, getattr(errno, "WSAEACCES", errno.EACCES)):
        if platform == "win32":
            return (
                f"{address} is reserved by Windows (see `netsh interface ipv4 show "
                "excludedportrange tcp`). Choose another port with [tunnel] listen."
            )
        return f"{address} may not be used by this user. Choose a port above 1023."
    if exc.errno not in (errno.EADDRINUSE, getattr(errno, "WSAEADDRINUSE", errno.EADDRINUSE)):
        return f"{address} cannot be listened on: {exc.strerror or exc}."
    owner = port_owner(address.port)
    if owner is None and platform == "darwin" and address.port == 5000:
        return (
            f"{address} is taken, on a Mac most likely by AirPlay Receiver: switch it off in "
            "System Settings, General, AirDrop & Handoff, or choose another [tunnel] listen."
        )
    by = f" by {owner}" if owner else ""
    return f"{address} is taken{by}. Stop that program, or choose another [tunnel] listen."


def port_owner(port: int) -> str | None:
    """Return "name (pid N)" of the process that listens on `port`, where the system tells."""
    import psutil

    try:
        for entry in psutil.net_connections("tcp"):
            listens = entry.status == psutil.CONN_LISTEN and entry.laddr
            if listens and listens.port == port and entry.pid:
                return f"{psutil.Process(entry.pid).name()} (pid {entry.pid})"
    except (psutil.Error, OSError):
        pass
    return None


def allow_many_files() -> None:
    """Raise the soft limit on open files to the hard one: each connection needs two."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Listening:
    """An address that stays open: it accepts for as long as it is not closed.

    On Windows an accept that fails with WinError 64 closes the socket under asyncio's server, so
    the sockets are looked at now and then, and bound again when one is closed.
    """

    def __init__(self, address: Address, factory: Callable[[], asyncio.Protocol]) -> None:
        self._factory = factory
        self._sockets = bind_loopback(address)
        self._servers: list[asyncio.Server] = []
        self._closed = False
        self.address = Address(address.host, self._sockets[0].getsockname()[1])
        self.addresses = [str(Address(*sock.getsockname()[:2])) for sock in self._sockets]
        """What is listened on, as "host:port"."""

    async def open(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        for sock in self._sockets:
            self._servers.append(await loop.create_server(self._factory, sock=sock))

    async def keep(self) -> None:
        """Look after the sockets until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if not self._closed and any(sock.fileno() < 0 for sock in self._sockets):
                _log.warning("listening again", extra={"address": str(self.address)})
                self._close()
                self._servers.clear()
                try:
                    self._sockets = bind_loopback(self.address)
                except PortTakenError as exc:
                    _log.error("cannot listen again", extra={"why": str(exc)})
                    continue
                await self.open()

    def close(self) -> None:
        """Stop accepting for good; connections that are open stay open."""
        self._closed = True
        self._close()

    def _close(self) -> None:
        for server in self._servers:
            server.close()
        for sock in self._sockets:
            sock.close()
