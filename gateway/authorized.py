"""What sshd is told when it asks for a key: sshd_config(5), AuthorizedKeysCommand.

One line of least privilege if an unrevoked client has the key, and nothing in every other case,
faults included.
"""

import re

from keys.sshkey import authorized_line, fingerprint, read_line

from . import registry as registries
from . import sessions
from .settings import Layout

_TARGET = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


def read_target(value: str) -> str:
    """Return "host:port" as it may stand in sshd's configuration.

    Raises:
        ValueError: it is something else.
    """
    match = _TARGET.fullmatch(value)
    if match is None or not 1 <= int(match[1]) <= 65535:
        raise ValueError(f"{value!r} is not host:port")
    return value


def answer(layout: Layout, targets: list[str], kind: str, blob: str, asker: int) -> str:
    """Return the authorized_keys line for a key, or "" where it does not come in.

    Args:
        layout: where the registry is.
        targets: "host:port", what may be reached.
        kind: type of the key (%t).
        blob: the key in base64 (%k).
        asker: process that asks: the connection's.

    Raises:
        ValueError, OSError: the registry cannot be read, or no note be kept: nobody comes in.
    """
    line = f"{kind} {blob}"
    try:
        read_line(line)
    except ValueError:
        return ""
    name = fingerprint(line)
    if not _accepted(layout, name):
        return ""
    # A revocation from here on finds the note; one before is found by the second look.
    sessions.note(layout, asker, name)
    known = _accepted(layout, name)
    return authorized_line(line, targets, known) if known else ""


def _accepted(layout: Layout, name: str) -> str | None:
    """Return the client whose key may come in now."""
    known = registries.load(layout.registry).ssh_key(name)
    return known.client.name if known is not None and known.accepted else None
