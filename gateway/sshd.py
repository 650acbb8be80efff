"""The rules for the account that tunnels come in by: sshd_config(5), least privilege."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from .authorized import read_target
from .settings import read_account


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where sshd finds the keys, in place of authorized_keys."""

    program: tuple[str, ...]
    """The words that call `catalyst-gateway`, the first one absolute."""
    directory: Path
    """The gateway's."""
    account: str
    """That the command runs as."""


def match_block(user: str, targets: list[str], lookup: Lookup | None = None) -> str:
    """Return the `Match User` block that lets `user` forward to `targets` and do nothing else.

    Args:
        user: the account's name.
        targets: "host:port", letter for letter as clients ask for them.
        lookup: how to ask the registry for keys; None: authorized_keys has them.

    Raises:
        ValueError: a name, a target or a path could mean something else to sshd.
    """
    read_account(user)
    for target in targets:
        read_target(target)
    return f"""\
Match User {user}
{_keys(targets, lookup) if lookup else ""}\
    AuthenticationMethods publickey
    AllowTcpForwarding local
    PermitOpen {" ".join(targets)}
    PermitListen none
    AllowStreamLocalForwarding no
    AllowAgentForwarding no
    X11Forwarding no
    PermitTTY no
    PermitTunnel no
    PermitUserRC no
    MaxSessions 0
    ClientAliveInterval 15
    ClientAliveCountMax 3
"""


def _keys(targets: list[str], lookup: Lookup) -> str:
    words = [*lookup.program, "authorized-keys", "--dir", str(lookup.directory)]
    words += [word for target in targets for word in ("--target", target)]
    if not words[0].startswith("/") or any(set(word) & set("%\"'\\# \t\n") for word in words):
        raise ValueError(f"{' '.join(words)!r} cannot stand in sshd_config")
    return f"""\
    # Keys are those of {lookup.directory}/registry.json; authorized_keys is not asked.
    AuthorizedKeysFile none
    AuthorizedKeysCommand {" ".join(words)} %t %k
    AuthorizedKeysCommandUser {lookup.account}
"""


def command_fault(program: str) -> str | None:
    """Return in words why sshd would not run `program`, with the repair, or None.

    It wants the file and every directory above it to be root's, and writable for nobody else.
    """
    path = Path(os.path.realpath(program))
    for one in (path, *path.parents):
        try:
            info = one.stat()
        except OSError as exc:
            return f"{one}: {exc.strerror}"
        if info.st_uid != 0 or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return (
                f"sshd will not run {path}, since {one} is not root's alone. "
                f"Install the package below /opt, or: chown root {one}; chmod go-w {one}"
            )
    return None
