"""The passphrase of this laptop's private keys, where the system keeps it ([keys] passphrase).

One for all keys of a home: 32 random bytes, made when the first key is, and kept by the keyring of
the system (Keychain, Credential Locker, Secret Service). Nobody types it, and nobody is asked.
"""

import secrets
from pathlib import Path
from typing import Any

from keys.errors import KeyFileError

SERVICE = "catalyst-tunnel"


def passphrase(home: Path) -> bytes:
    """Return the passphrase of the keys in `home`.

    Raises:
        KeyFileError: the keyring cannot be asked, or has none.
    """
    found = _ask(home)
    if found is None:
        raise KeyFileError(
            f"The system's keyring has no passphrase for {home}. Unlock it, or bring the entry "
            f"back ({SERVICE}); without it these keys are lost: enrol again."
        )
    return found.encode()


def ensure(home: Path) -> bytes:
    """Return the passphrase of the keys in `home`, made if there is none.

    Raises:
        KeyFileError: the keyring cannot be asked, or does not keep it.
    """
    if _ask(home) is None:
        keyring, error = _keyring()
        made = secrets.token_urlsafe(32)
        try:
            keyring.set_password(SERVICE, str(home), made)
        except error as exc:
            raise _unusable(exc) from exc
    return passphrase(home)


def _ask(home: Path) -> str | None:
    keyring, error = _keyring()
    try:
        found: str | None = keyring.get_password(SERVICE, str(home))
    except error as exc:
        raise _unusable(exc) from exc
    return found


def _keyring() -> tuple[Any, type[Exception]]:
    """Return the package keyring, and what it raises."""
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        raise KeyFileError(
            '[keys] passphrase = "keyring" needs the package keyring: '
            "pip install 'catalyst-tunnel[keyring]'"
        ) from None
    return keyring, KeyringError


def _unusable(exc: Exception) -> KeyFileError:
    return KeyFileError(f"The system's keyring cannot be used ({type(exc).__name__}).")
