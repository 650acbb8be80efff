"""Making one SSH connection: the dial, the algorithms, and what each failure means.

`connect` returns a `Carrier`: an authenticated connection with its wire. Everything that decides
about security is explicit here: the host key must be in known_hosts, one named key is offered,
no agent and no ~/.ssh/config unless the settings ask for it.
"""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import asyncssh
from asyncssh.constants import MSG_IGNORE
from asyncssh.packet import String

from keys.files import private_file_fault

from .channels import ChannelTransport, P, open_channel
from .custody.keyfiles import Made
from .dial import DIAL, dial
from .problems import Problem, ProblemError
from .settings import Address, Hop, Ssh
from .wire import Wire

HANDSHAKE = 10.0  # seconds from the version line to the end of authentication
PING = 0.5  # seconds between keepalives while the peer is doubted
LINGER = 30.0  # seconds that a doubted connection is given to recover

# AEAD first: one pass over the data, and hardware AES nearly everywhere. The rest is for servers
# that offer no AEAD. No CBC: `_lean` below relies on that.
_CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes256-ctr",
    "aes128-ctr",
)


class Carrier:
    """One SSH connection that is up."""

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        wire: Wire | None,
        files: Callable[[], list[Path]],
    ) -> None:
        self._made = Made(files)
        self._connection = connection
        self._channels = 0
        self.wire = wire
        self._given_up: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end = asyncio.ensure_future(connection.wait_closed())
        self._end.add_done_callback(self._ended)

    async def open(self, factory: Callable[[], P], target: Address) -> P:
        """Open a channel to `target` and run `factory()` on it.

        Raises:
            ProblemError: see `open_channel`; link_lost where the connection ended first.
        """
        opening = asyncio.ensure_future(
            open_channel(self._connection, factory, target.host, target.port, self._count)
        )
        either: set[asyncio.Future[Any]] = {opening, self._given_up}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self.alive:
                raise ProblemError("link_lost", "The link was lost.")
        except BaseException:  # it may have opened, or failed, in this very turn
            opening.add_done_callback(_drop)
            opening.cancel()
            raise
        return opening.result()[1]

    @property
    def alive(self) -> bool:
        """Whether it takes new channels: neither closed nor given up."""
        return not self._given_up.done() and not self._connection.is_closed()

    @property
    def replaced(self) -> bool:
        """Whether another key is to be used now."""
        return self._made.outdated

    def _count(self, change: int) -> None:
        self._channels += change
        if self._given_up.done() and self._channels <= 0:
            self._connection.close()

    def _ended(self, _: object) -> None:
        self._give_up()
        if not self.lost.done():
            self.lost.set_result(None)

    def _give_up(self) -> None:
        if not self._given_up.done():
            self._given_up.set_result(None)

    def ping(self) -> None:
        """Make the peer say something soon, if it lives."""
        self._connection.set_keepalive(PING, int(LINGER / PING))

    def calm(self) -> None:
        """Stop pinging: the peer has spoken."""
        self._connection.set_keepalive(0)

    def drop(self) -> None:
        """Go on: SSH is well, whatever lies behind it says."""

    def retire(self) -> None:
        """Take no more channels; end with the last one, or after `LINGER` seconds of silence.

        A stalled network often comes back, and with it the answers of calls that must not be sent
        a second time: they are worth waiting for while a new connection serves the others.
        """
        self._give_up()
        if self._connection.is_closed():
            return  # a timer set now would keep it in memory
        self._connection.set_keepalive(2.0, int(LINGER / 2.0))
        if self._channels <= 0:
            self._connection.close()

    def abort(self) -> None:
        """End it now."""
        self._connection.abort()


def _drop(opening: asyncio.Future[tuple[ChannelTransport, Any]]) -> None:
    """Close a channel that nobody waits for any longer, or take note of the error."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].abort()


class _Dialler:
    """Dials TCP for asyncssh and puts a `Wire` on it; asyncssh takes it for a tunnel."""

    def __init__(self, via: asyncssh.SSHClientConnection | None = None) -> None:
        self._via = via
        self.wire: Wire | None = None
        self.nudge: Callable[[], None] | None = None
        self.logger = asyncssh.logging.logger

    async def create_connection(
        self, factory: Callable[[], asyncssh.SSHClientConnection], host: str, port: int
    ) -> tuple[object, asyncssh.SSHClientConnection]:
        connection = factory()
        self.nudge = _lean(connection)
        if self._via is not None:
            await self._via.create_connection(lambda: cast(Any, connection), host, port)
            return None, connection
        sock = await dial(host, port)
        wire = Wire(cast(asyncio.Protocol, connection), sock)
        self.wire = wire
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: wire, sock=sock)
        except BaseException:
            sock.close()
            raise
        return wire, connection


def _lean(connection: asyncssh.SSHClientConnection) -> Callable[[], None]:
    """Stop asyncssh from sending an SSH_MSG_IGNORE before every packet; return one for nudges.

    It does so against the attack on CBC of RFC 4251 section 9.3.1, for every cipher. We offer no
    CBC, and the extra packet costs a third of the throughput of small requests.
    """
    send = connection.send_packet

    def send_packet(pkttype: int, *args: bytes, handler: Any = None) -> None:
        if pkttype != MSG_IGNORE:
            send(pkttype, *args, handler=handler)

    connection.__dict__["send_packet"] = send_packet
    return functools.partial(send, MSG_IGNORE, String(b""))


def _common(settings: Ssh) -> dict[str, Any]:
    """Return what every hop shares: trust, identity, algorithms."""
    options: dict[str, Any] = {
        "known_hosts": str(settings.known_hosts),
        "encryption_algs": list(_CIPHERS),
        "compression_algs": ["none"],
        "login_timeout": 0,  # the deadline is ours, so that it has a name of its own
        "keepalive_interval": 0,
        "x509_trusted_certs": None,
        "gss_host": None,
    }
    if not settings.use_ssh_config:
        options["config"] = None
    if settings.identity is not None:
        options |= {"client_keys": [str(settings.identity)], "agent_path": None}
        if settings.unlock is not None:
            unlock = settings.unlock
            options["passphrase"] = lambda _: unlock()
    return options


async def connect(settings: Ssh, files: Callable[[], list[Path]] = list) -> Carrier:
    """Make, verify and authenticate one connection to the droplet, through the jump hosts if any.

    Args:
        settings: where, and with which key.
        files: returns the key files that are to be used now, whenever it is asked.

    Raises:
        ProblemError: with the first hop that failed, and why.
    """
    if settings.identity is not None and (fault := private_file_fault(settings.identity)):
        raise ProblemError("key_unusable", fault)
    via: asyncssh.SSHClientConnection | None = None
    wire: Wire | None = None
    for hop in (*settings.jumps, Hop(settings.user, settings.host, settings.port)):
        dialler = _Dialler(via)
        try:
            async with asyncio.timeout(DIAL + HANDSHAKE):
                connection = await _handshake(dialler, hop, settings)
        except BaseException as exc:
            if via is not None:
                via.abort()
            if isinstance(exc, Exception):
                problem = judge(exc, hop, settings)
                raise ProblemError(problem.code, problem.message) from exc
            raise
        if via is not None:
            connection.set_tunnel(via)
        via = connection
        if wire is None and dialler.wire is not None:
            wire = dialler.wire
            # Not before: an SSH_MSG_IGNORE inside the first key exchange breaks strict KEX.
            wire.nudge = dialler.nudge
    return Carrier(connection, wire, files)


async def _handshake(dialler: _Dialler, hop: Hop, settings: Ssh) -> asyncssh.SSHClientConnection:
    options = _common(settings)
    if hop.user is not None:
        options["username"] = hop.user
    if hop.port is not None:
        options["port"] = hop.port
    if settings.use_ssh_config and not settings.jumps:
        configured = asyncssh.SSHClientConnectionOptions(host=hop.host, config=(), **options)
        if configured.tunnel or configured.proxy_command:
            # Its own ProxyJump or ProxyCommand dials, out of sight of any wire of ours.
            options |= {"keepalive_interval": settings.keepalive / 2, "keepalive_count_max": 2}
            return await asyncssh.connect(hop.host, **options)
    return await asyncssh.connect(hop.host, tunnel=dialler, **options)


def judge(exc: Exception, hop: Hop, settings: Ssh) -> Problem:
    """Name a failure to connect to `hop`: by the exception's type, never by its text."""
    where = f"{hop.host}:{hop.port or 22}"
    match exc:
        case ProblemError():
            return exc.problem
        case asyncssh.PermissionDenied():
            who = hop.user or "this user"
            return Problem("auth_denied", f"{where} does not let {who} in.")
        case asyncssh.HostKeyNotVerifiable() if _knows(settings, hop):
            text = f"{where} shows another host key than the one that is pinned."
            return Problem("host_key_changed", text)
        case asyncssh.HostKeyNotVerifiable():
            text = f"The host key of {where} is not in {settings.known_hosts}."
            return Problem("host_key_unknown", text)
        case asyncssh.KeyImportError() | asyncssh.KeyEncryptionError():
            text = f"{settings.identity} is not a private key that can be read without passphrase."
            return Problem("key_unusable", text)
        case ValueError():  # UnicodeDecodeError among them
            text = f"{settings.known_hosts} is not in the format of known_hosts(5)."
            return Problem("host_key_unknown", text)
        case TimeoutError():
            return Problem("handshake_timeout", f"{where} is too slow to answer.")
        case asyncssh.ChannelOpenError():
            return Problem("connect_failed", f"The jump host cannot reach {where}.")
        case _:
            text = f"No SSH connection to {where} ({type(exc).__name__})."
            return Problem("handshake_failed", text)


def _knows(settings: Ssh, hop: Hop) -> bool:
    """Return whether known_hosts holds any key for `hop`."""
    try:
        found = asyncssh.match_known_hosts(str(settings.known_hosts), hop.host, "", hop.port)
    except (OSError, ValueError):
        return False
    return any(found[:3])
