"""`serve`: the gateway as a process, from its sockets to its last request."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

if sys.platform == "win32":
    raise ImportError("The gateway is for the droplet: Linux, or another POSIX system.")

import grp
import resource

from keys.reloadable import Reloadable

from . import registry as registries
from . import settings as settings_file
from .app import Gateway
from .audit import AuditError, AuditLog
from .door import Door
from .keydesk import KeyDesk
from .proxy import Proxy
from .settings import Layout, Settings
from .state import StateError, state_for

LOOK = 0.2  # seconds between looks at settings and registry: what a revocation takes
ANCHOR = 1.0  # seconds between anchors of the audit log
BACKLOG = 1024

_log = logging.getLogger(__name__)


class ServeError(Exception):
    """The gateway cannot start; says why, with the remedy."""


def run(layout: Layout, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready` is told the addresses once they accept.

    Raises:
        ServeError: it cannot start.
    """
    try:
        settings = Reloadable(layout.settings, settings_file.load)
        registry = Reloadable(layout.registry, registries.load)
    except (OSError, ValueError) as exc:
        raise ServeError(_words(exc)) from exc
    import uvloop

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(layout, settings, registry, on_ready))


def _words(exc: Exception) -> str:
    return f"{exc.filename}: {exc.strerror}" if isinstance(exc, OSError) else str(exc)


async def _serve(
    layout: Layout,
    settings: Reloadable[Settings],
    registry: Reloadable[registries.Registry],
    on_ready: Callable[[str], None],
) -> None:
    started = settings.value
    audit = AuditLog(layout.audit)
    state = state_for(started.state, layout.state)
    proxy = Proxy(started.upstream, started.silence)
    over, hangup = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    loop.add_signal_handler(signal.SIGHUP, hangup.set)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(proxy.close)
        try:
            audit.open()
            stack.callback(audit.close)
            await state.open()
            stack.push_async_callback(state.close)
            loopback = listen_tcp(started.listen)
            stack.callback(loopback.close)
            unix = listen_unix(layout.socket, started.socket_group)
            stack.callback(unix.close)
        except (AuditError, StateError, OSError) as exc:
            raise ServeError(_words(exc)) from exc
        gateway = Gateway(settings, registry, state, audit, proxy, KeyDesk(layout))
        doors = [Door(gateway, "ssh"), Door(gateway, "https")]
        servers = [
            await loop.create_server(doors[0], sock=loopback, backlog=BACKLOG),
            await loop.create_unix_server(doors[1], sock=unix, backlog=BACKLOG),
        ]
        keeping = asyncio.ensure_future(_keep(gateway, settings, registry, audit, hangup, started))
        gc.freeze()  # what is here now stays: no collection need look at it again
        host, port = loopback.getsockname()[:2]
        on_ready(f"http://{host}:{port} and unix:{layout.socket}")
        waiting = asyncio.ensure_future(over.wait())
        await asyncio.wait({waiting, keeping}, return_when=asyncio.FIRST_COMPLETED)
        _log.info("stopping")
        for server in servers:
            server.close()
        with contextlib.suppress(OSError):
            layout.socket.unlink()
        await gateway.drain(settings.value.drain)
        keeping.cancel()
        for one in doors:
            await one.shutdown(1.0)
        await asyncio.gather(keeping, return_exceptions=True)
        if not keeping.cancelled() and keeping.exception() is not None:
            raise ServeError(f"defect: {keeping.exception()!r}") from keeping.exception()


async def _keep(
    gateway: Gateway,
    settings: Reloadable[Settings],
    registry: Reloadable[registries.Registry],
    audit: AuditLog,
    hangup: asyncio.Event,
    started: Settings,
) -> None:
    """Take changes as they come, and anchor the audit log, until cancelled."""
    loop = asyncio.get_running_loop()
    anchored = loop.time()
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK):
                await hangup.wait()
        try:
            if hangup.is_set():
                audit.reopen()
            if loop.time() - anchored >= ANCHOR:
                anchored = loop.time()
                audit.anchor()
        except AuditError as exc:
            _log.error("%s", exc)
        hangup.clear()
        if settings.changed() or registry.changed():
            gateway.reload()
            if _fixed(settings.value) != _fixed(started):
                _log.warning("%s: some changes take effect at the next start", settings.path)


def _fixed(settings: Settings) -> Settings:
    """Return `settings` with only those that a running gateway cannot change."""
    plain = Settings(settings.domain)
    return replace(
        settings,
        limits=plain.limits,
        service=plain.service,
        tools=plain.tools,
        drain=plain.drain,
        stop_without_state=plain.stop_without_state,
        tls_ca=plain.tls_ca,
    )


def listen_tcp(address: tuple[str, int]) -> socket.socket:
    """Return a listening socket on a loopback address.

    Raises:
        ServeError: another program has it.
    """
    host, port = address
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise ServeError(
            f"{host}:{port} cannot be listened on ({exc.strerror}). "
            "See who has it with `ss -ltnp`, or change [gateway] listen."
        ) from exc
    return sock


def listen_unix(path: Path, group: str) -> socket.socket:
    """Return a listening socket in the file system, for us and one group only.

    It is made under another name and moved into place, so it is never there with open doors, and
    takes the place of one that a killed gateway left behind.

    Raises:
        OSError: it cannot be made.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    try:
        mask = os.umask(0o177)
        try:
            sock.bind(str(fresh))
        finally:
            os.umask(mask)
        _give_to_group(path.parent, group, 0o750)
        _give_to_group(fresh, group, 0o660)
        sock.listen(BACKLOG)
        fresh.replace(path)
    except BaseException:
        sock.close()
        fresh.unlink(missing_ok=True)
        raise
    return sock


def _give_to_group(path: Path, group: str, mode: int) -> None:
    """Open `path` to a group where there is one and we may; else it stays ours alone."""
    try:
        number = grp.getgrnam(group).gr_gid
        if path.stat().st_gid != number:
            os.chown(path, -1, number)
    except (KeyError, PermissionError):
        _log.warning("%s: cannot be given to the group %s; NGINX may not reach it", path, group)
        return
    path.chmod(mode)


def configure_log(verbose: bool) -> None:
    """Log to stderr; times are the journal's to add."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    root = logging.getLogger("gateway")
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
