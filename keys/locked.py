"""Private keys under a passphrase, which is asked for only where a key has one."""

from collections.abc import Callable
from typing import TypeVar

from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    KeySerializationEncryption,
    NoEncryption,
)

T = TypeVar("T")
Unlock = Callable[[], bytes]
"""Returns the passphrase. Raises KeyFileError: it cannot be had."""


def unlocked(load: Callable[[bytes, bytes | None], T], text: bytes, unlock: Unlock | None) -> T:
    """Return the key in `text`, with the passphrase where it has one.

    Args:
        load: returns the key in a text, given a passphrase or None.
        text: PEM, or what OpenSSH writes.
        unlock: how to get the passphrase; None: a key that has one cannot be read.

    Raises:
        TypeError, ValueError: whatever `load` raises.
        KeyFileError: see `Unlock`.
    """
    try:
        return load(text, None)
    except TypeError:  # that it has one
        if unlock is None:
            raise
        return load(text, unlock())


def encryption(unlock: Unlock | None) -> KeySerializationEncryption:
    """Return how a private key is written: under the passphrase, where there is to be one."""
    return NoEncryption() if unlock is None else BestAvailableEncryption(unlock())
