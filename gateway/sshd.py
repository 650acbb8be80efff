"""The rules for the account that tunnels come in by: sshd_config(5), least privilege."""

import re

_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # useradd(8)
_TARGET = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def match_block(user: str, targets: list[str]) -> str:
    """Return the `Match User` block that lets `user` forward to `targets` and do nothing else.

    Args:
        user: the account's name.
        targets: "host:port", letter for letter as clients ask for them.

    Raises:
        ValueError: a name or a target could mean something else to sshd.
    """
    if not _NAME.fullmatch(user):
        raise ValueError(f"{user!r} is not the name of an account")
    for target in targets:
        match = _TARGET.fullmatch(target)
        if match is None or not 1 <= int(match[1]) <= 65535:
            raise ValueError(f"{target!r} is not host:port")
    return f"""\
Match User {user}
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
