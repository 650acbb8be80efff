"""Token keys: how they are kept, named and found.

A key is named by its thumbprint (RFC 7638), so that no two can share a name and no name needs to
be agreed on. A ring holds the keys of one family: one that signs, several that are accepted.
"""

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from .errors import KeyFileError
from .files import write_private
from .locked import Unlock, encryption, unlocked

Jwk = dict[str, str]


def base64url(data: bytes) -> str:
    """Return `data` in base64url without padding (RFC 7515, appendix C)."""
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def from_base64url(text: str) -> bytes:
    """Return the bytes of base64url without padding.

    Raises:
        ValueError: it is anything else, a second spelling of the same bytes included.
    """
    if not text.isascii() or len(text) % 4 == 1:
        raise ValueError("not base64url")
    try:
        data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        raise ValueError("not base64url") from None
    if base64url(data) != text:
        raise ValueError("not base64url")
    return data


def to_jwk(public: Ed25519PublicKey) -> Jwk:
    """Return a public key as a JWK (RFC 8037 section 2)."""
    return {"crv": "Ed25519", "kty": "OKP", "x": base64url(public.public_bytes_raw())}


def from_jwk(jwk: object) -> Ed25519PublicKey:
    """Return the public key in a JWK.

    Raises:
        ValueError: it is not an Ed25519 public key and nothing besides; a JWK with a private part
            is refused too.
    """
    if not isinstance(jwk, dict) or jwk.keys() != {"crv", "kty", "x"}:
        raise ValueError("the token key must be a JWK with kty, crv and x, and nothing else")
    if jwk["kty"] != "OKP" or jwk["crv"] != "Ed25519" or not isinstance(jwk["x"], str):
        raise ValueError("the token key must be an Ed25519 key")
    try:
        return Ed25519PublicKey.from_public_bytes(from_base64url(jwk["x"]))
    except ValueError:
        raise ValueError("the token key's x must be 32 bytes, base64url") from None


def thumbprint(public: Ed25519PublicKey) -> str:
    """Return the RFC 7638 thumbprint of a key: SHA-256, base64url, 43 characters."""
    x = base64url(public.public_bytes_raw())
    canonical = f'{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}'  # RFC 8037 section 2
    return base64url(hashlib.sha256(canonical.encode()).digest())


class KeyRing:
    """The keys of one family, by name."""

    def __init__(
        self, accepted: Iterable[Ed25519PublicKey], signing: Ed25519PrivateKey | None = None
    ) -> None:
        self.signing = signing
        self._accepted = {thumbprint(public): public for public in accepted}
        if signing is not None:
            self._accepted[thumbprint(signing.public_key())] = signing.public_key()

    def find(self, kid: str) -> Ed25519PublicKey | None:
        """Return the accepted key of that name."""
        return self._accepted.get(kid)


def make_token_key(path: Path, unlock: Unlock | None = None) -> Ed25519PrivateKey:
    """Make a token key in `path` (PKCS #8, mode 0600).

    Raises:
        FileExistsError: there is one already; it is left as it was.
        OSError: it cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption(unlock))
    write_private(path, pem, replace=False)
    return key


def load_token_key(path: Path, unlock: Unlock | None = None) -> Ed25519PrivateKey:
    """Return the token key in `path`.

    Raises:
        KeyFileError: it holds something else.
        OSError: it cannot be read.
    """
    try:
        key = unlocked(load_pem_private_key, path.read_bytes(), unlock)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise KeyFileError(f"{path} is not a PEM private key without passphrase.") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is not an Ed25519 key.")
    return key
