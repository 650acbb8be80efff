"""Tokens: short-lived statements of a client, signed with its key, checked without mercy.

The format is in docs/protocol.md; what all signed statements share is in `jws`. Pure: the time is
passed in.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from . import jws
from .jws import JTI, LEEWAY, THUMBPRINT, TokenError
from .keyring import KeyRing, base64url, thumbprint

__all__ = ["JTI", "LEEWAY", "Claims", "Minter", "TokenError", "Verifier"]

TYPE = "catalyst-tunnel+jwt"
LIFETIME = 60  # seconds from iat to exp
LONGEST = 120  # seconds that are accepted, whatever the token says
SIZE = 4096  # characters
_REMEMBERED = 4096  # tokens whose signature need not be checked again


@dataclass(frozen=True, slots=True)
class Claims(jws.Common):
    """What a token says, once its signature has been checked."""

    kid: str
    bound: str | None
    """Thumbprint of the certificate that it is bound to (x5t#S256)."""


class Minter:
    """Makes tokens in the name of one client."""

    def __init__(self, key: Ed25519PrivateKey, client: str, audience: str) -> None:
        self._key = key
        self._client = client
        self._audience = audience
        self.kid = thumbprint(key.public_key())

    def mint(self, now: float, jti: bytes, certificate: str | None) -> str:
        """Return a token for `LIFETIME` seconds from `now`.

        Args:
            now: seconds since the epoch, as the gateway counts them.
            jti: 16 random bytes, never used before.
            certificate: thumbprint to bind it to, or None for a token that serves once.
        """
        if len(jti) != JTI:
            raise ValueError(f"jti must be {JTI} bytes")
        claims: dict[str, Any] = {
            "iss": self._client,
            "sub": self._client,
            "aud": self._audience,
            "iat": int(now),
            "exp": int(now) + LIFETIME,
            "jti": base64url(jti),
        }
        if certificate is not None:
            claims["cnf"] = {"x5t#S256": certificate}
        return jws.sign(claims, self._key, TYPE)


class Verifier:
    """Checks tokens against one ring of keys and one audience."""

    def __init__(self, audience: str, ring: KeyRing) -> None:
        self._audience = audience
        self._ring = ring
        self._checked: OrderedDict[str, Claims] = OrderedDict()

    def verify(self, token: str, now: float) -> Claims:
        """Return the claims of `token` at `now` (seconds since the epoch).

        Raises:
            TokenError: with the reason; nothing else, whatever `token` is.
        """
        claims = self._checked.get(token)
        if claims is None:
            claims = self._read(token)
            if claims.bound is not None:  # else it serves once, and is not seen again
                # The same characters under the same keys: only time can change the verdict.
                self._checked[token] = claims
                if len(self._checked) > _REMEMBERED:
                    self._checked.popitem(last=False)
        claims.check_time(now)
        return claims

    def _read(self, token: str) -> Claims:
        kid, members = jws.read(token, TYPE, self._ring, SIZE)
        said = jws.common(members, self._audience, LONGEST, frozenset({"cnf"}))
        bound = _bound(members.get("cnf", _ABSENT))
        return Claims(said.client, said.issued, said.expires, said.jti, kid, bound)


_ABSENT = object()


def _bound(cnf: object) -> str | None:
    if cnf is _ABSENT:
        return None
    if isinstance(cnf, dict) and cnf.keys() == {"x5t#S256"}:
        value = cnf["x5t#S256"]
        if isinstance(value, str) and jws.is_octets(value, THUMBPRINT):
            return value
    raise TokenError("binding_invalid")
