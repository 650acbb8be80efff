"""The droplet as its operator reaches it: with the agent and ~/.ssh/config, never with our key.

For what our own key may not do: change authorized_keys over SFTP, and run the gateway's commands.
"""

import asyncio
import contextlib
import re
import secrets
import shlex
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import asyncssh

from ..settings import Settings

DEADLINE = 20.0  # seconds to come in
RUN = 60.0  # seconds for a command
SIZE = 1 << 20  # bytes of an authorized_keys file

_VIA = re.compile(r"(?:([^\s@]+)@)?(?:\[([^\]\s]+)\]|([^\s@:\[\]]+))(?::([0-9]{1,5}))?")


class AccountError(Exception):
    """The droplet cannot be reached that way, or will not; says why. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    said: str
    complained: str


class Account:
    """A login on the droplet.

    Attributes:
        host, port: where it is, once ~/.ssh/config has been asked.
    """

    def __init__(self, connection: asyncssh.SSHClientConnection, host: str, port: int) -> None:
        self._connection = connection
        self.host = host
        self.port = port

    @property
    def host_key(self) -> str:
        """The droplet's host key, "type base64", which known_hosts has vouched for."""
        key = self._connection.get_server_host_key()
        if key is None:
            raise AccountError("The droplet proved itself without a host key of its own.")
        return " ".join(key.export_public_key("openssh").decode("ascii").split()[:2])

    @property
    def user(self) -> str:
        """Who we are there."""
        return str(self._connection.get_extra_info("username"))

    async def run(self, *words: str, stdin: str = "") -> Done:
        """Run a command; its words are quoted.

        Raises:
            AccountError: the connection ended, or it took too long.
        """
        try:
            async with asyncio.timeout(RUN):
                done = await self._connection.run(shlex.join(words), input=stdin, check=False)
        except (asyncssh.Error, OSError, TimeoutError) as exc:
            text = f"`{words[0]}` could not be run there ({type(exc).__name__})."
            raise AccountError(text) from exc
        code = done.returncode
        return Done(-1 if code is None else code, str(done.stdout), str(done.stderr))

    async def end_sessions(self, user: str) -> bool:
        """End the SSH sessions of an account other than root; return whether there are none left.

        Where it is the one of this login, this login ends as well.
        """
        pattern = f"^sshd(-session)?: {re.escape(user)}(@| |$)"
        try:
            done = await self.run("pkill", "-KILL", "-u", user, "-f", pattern)
        except AccountError:
            return user == self.user
        return done.code in (0, 1) or (done.code < 0 and user == self.user)

    async def authorized_keys(self, user: str | None) -> str:
        """Return the usual file of an account: ours, or that of `user`.

        Raises:
            AccountError: there is no such account.
        """
        if user is None or user == self.user:
            return ".ssh/authorized_keys"
        done = await self.run("getent", "passwd", user)
        fields = done.said.strip().split(":")
        if done.code or len(fields) != 7:
            raise AccountError(f"There is no account {user} on the droplet.")
        return f"{fields[5]}/.ssh/authorized_keys"

    async def edit(self, file: str, change: Callable[[bytes], bytes]) -> bool:
        """Replace `file` by what `change` makes of it; return whether that was anything else.

        It is replaced whole, by a rename, and keeps mode and owner. One that somebody else changes
        meanwhile is read again.

        Raises:
            AccountError: it cannot be read or written; it is left as it was.
        """
        try:
            async with asyncio.timeout(RUN):
                async with self._connection.start_sftp_client() as sftp:
                    while True:
                        before = await _read(sftp, file)
                        after = change(before or b"")
                        if after == (before or b""):
                            return False
                        if await _replace(sftp, file, before, after):
                            return True
        except (asyncssh.Error, OSError, TimeoutError) as exc:
            why = exc.reason if isinstance(exc, asyncssh.Error) else type(exc).__name__
            raise AccountError(f"{file} on the droplet cannot be changed: {why}.") from exc


async def _read(sftp: asyncssh.SFTPClient, file: str) -> bytes | None:
    """Return what is in `file`, or None where there is none."""
    try:
        async with sftp.open(file, "rb") as opened:
            content = await opened.read(SIZE + 1)
    except asyncssh.SFTPNoSuchFile:
        return None
    if len(content) > SIZE:
        raise AccountError(f"{file} on the droplet is too large.")
    return content if isinstance(content, bytes) else content.encode()


async def _replace(
    sftp: asyncssh.SFTPClient, file: str, before: bytes | None, after: bytes
) -> bool:
    """Write `after` in the place of `before`; return False where it is not there any longer.

    The directory may be another user's, and we root: so the new file is given away by its handle,
    since its name may lead to another file at any moment.
    """
    if before is None:
        await _make_directory(sftp, PurePosixPath(file).parent)
    place = PurePosixPath(str(await sftp.realpath(file)))  # a link stays one
    if before is None:
        owner, mode = await sftp.stat(str(place.parent)), 0o600
    else:
        owner = await sftp.stat(str(place))
        mode = (owner.permissions or 0o600) & 0o7777
    fresh = place.with_name(f".{place.name}.{secrets.token_hex(6)}")
    try:
        attrs = asyncssh.SFTPAttrs(permissions=0o600)
        async with sftp.open(str(fresh), "xb", attrs) as opened:
            await opened.write(after)
            made = await opened.stat()
            if owner.uid is not None and (made.uid, made.gid) != (owner.uid, owner.gid):
                await opened.chown(owner.uid, owner.gid or 0)
            await opened.chmod(mode)
            with contextlib.suppress(asyncssh.SFTPOpUnsupported):
                await opened.fsync()
        if await _read(sftp, file) != before:
            return False
        await sftp.posix_rename(str(fresh), str(place))
        return True
    finally:
        with contextlib.suppress(asyncssh.SFTPError):
            await sftp.remove(str(fresh))  # it is there only where something failed


async def _make_directory(sftp: asyncssh.SFTPClient, path: PurePosixPath) -> None:
    """Make a directory, closed to others, for whom the one above belongs to."""
    try:
        await sftp.mkdir(str(path), asyncssh.SFTPAttrs(permissions=0o700))
    except (asyncssh.SFTPFailure, asyncssh.SFTPFileAlreadyExists):
        return  # it is there
    owner, made = await sftp.stat(str(path.parent)), await sftp.lstat(str(path))
    if owner.uid is not None and (made.uid, made.gid) != (owner.uid, owner.gid):
        await sftp.chown(str(path), owner.uid, owner.gid or 0, follow_symlinks=False)


def parse_via(text: str) -> tuple[str | None, str, int | None]:
    """Return user, host and port of "[USER@]HOST[:PORT]".

    Raises:
        ValueError: it is something else.
    """
    match = _VIA.fullmatch(text)
    if match is None or text.startswith("-"):
        raise ValueError(f"{text!r} must be [USER@]HOST[:PORT]")
    port = int(match[4]) if match[4] else None
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"{text!r}: the port must be between 1 and 65535")
    return match[1], match[2] or match[3], port


@contextlib.asynccontextmanager
async def account(via: str, settings: Settings | None) -> AsyncIterator[Account]:
    """Come in as `via`, with what ~/.ssh has for that; the host key must be known, there or to us.

    Raises:
        AccountError: why that fails.
    """
    try:
        user, host, port = parse_via(via)
    except ValueError as exc:
        raise AccountError(f"{exc}.") from None
    by_hand = shlex.join(
        ["ssh", *(["-p", str(port)] if port else []), f"{user}@{host}" if user else host]
    )
    options: dict[str, Any] = {"login_timeout": DEADLINE}
    if user is not None:
        options["username"] = user
    if port is not None:
        options["port"] = port
    known = [Path.home() / ".ssh" / "known_hosts", Path("/etc/ssh/ssh_known_hosts")]
    if settings is not None:
        known.append(settings.ssh.known_hosts)
    options["known_hosts"] = [str(one) for one in known if one.is_file()]
    try:
        async with asyncio.timeout(DEADLINE):
            configured = asyncssh.SSHClientConnectionOptions(host=host, **options)
            connection = await asyncssh.connect(host, options=configured)
    except TimeoutError as exc:
        raise AccountError(f"{via} does not answer within {DEADLINE:g} s.") from exc
    except asyncssh.HostKeyNotVerifiable as exc:
        text = f"The host key of {via} is not known, or another one: try `{by_hand}` first."
        raise AccountError(text) from exc
    except asyncssh.PermissionDenied as exc:
        raise AccountError(f"{via} does not let you in: `{by_hand}` must work first.") from exc
    except (asyncssh.Error, OSError, ValueError) as exc:
        told = exc.reason if isinstance(exc, asyncssh.Error) else getattr(exc, "strerror", None)
        why = told or str(exc) or type(exc).__name__
        text = f"No SSH connection to {via} ({why}): `{by_hand}` must work first."
        raise AccountError(text) from exc
    try:
        where = configured.host or host, configured.port or 22
        yield Account(connection, *where)
    finally:
        connection.abort()
