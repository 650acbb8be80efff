"""Tokens: short-lived statements of a client, signed with its key, checked without mercy.

The format is in docs/protocol.md. PyJWT makes and checks the signature; everything that it would
let pass (members named twice, times that are strings or years away, a foreign `typ`) is refused
here first. Pure: the time is passed in.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt import PyJWTError
from jwt.api_jws import PyJWS

from . import strictjson
from .keyring import KeyRing, base64url, from_base64url, thumbprint

TYPE = "catalyst-tunnel+jwt"
ALGORITHM = "EdDSA"
LIFETIME = 60  # seconds from iat to exp
LONGEST = 120  # seconds that are accepted, whatever the token says
LEEWAY = 5  # seconds by which two clocks may differ
SIZE = 4096  # characters
JTI = 16  # bytes
THUMBPRINT = 32  # bytes of SHA-256
_REMEMBERED = 4096  # tokens whose signature need not be checked again

_HEADER = {"alg", "kid", "typ"}
_REQUIRED = {"iss", "sub", "aud", "iat", "exp", "jti"}
_PYJWS = PyJWS(algorithms=[ALGORITHM])


class TokenError(Exception):
    """A token is refused; `code` is the exact reason, for the audit log and nobody else."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says, once its signature has been checked."""

    kid: str
    client: str
    issued: int  # seconds since the epoch
    expires: int
    jti: str
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
        return _PYJWS.encode(
            strictjson.dumps(claims),
            self._key,
            algorithm=ALGORITHM,
            headers={"typ": TYPE, "kid": self.kid},
        )


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
        if claims.issued > now + LEEWAY:
            raise TokenError("token_early")
        if now > claims.expires + LEEWAY:
            raise TokenError("token_expired")
        return claims

    def _read(self, token: str) -> Claims:
        if not token.isascii():
            raise TokenError("token_not_ascii")
        if len(token) > SIZE:
            raise TokenError("token_too_large")
        parts = token.split(".")
        if len(parts) != 3 or not all(parts):
            raise TokenError("token_malformed")
        try:
            head, body, _ = map(from_base64url, parts)
        except ValueError:
            raise TokenError("token_malformed") from None
        kid = self._kid(_members(head, "header_invalid"))
        key = self._ring.find(kid)
        if key is None:
            raise TokenError("key_unknown")
        try:
            _PYJWS.decode(token, key, algorithms=[ALGORITHM])
        except (PyJWTError, ValueError, TypeError):
            raise TokenError("signature_invalid") from None
        return self._claims(kid, _members(body, "claims_invalid"))

    @staticmethod
    def _kid(header: Mapping[str, Any]) -> str:
        if header.get("alg") != ALGORITHM:
            raise TokenError("algorithm_refused")
        if header.get("typ") != TYPE:
            raise TokenError("type_refused")
        kid = header.get("kid")
        if not isinstance(kid, str) or header.keys() != _HEADER:
            raise TokenError("header_invalid")
        return kid

    def _claims(self, kid: str, claims: Mapping[str, Any]) -> Claims:
        if not claims.keys() >= _REQUIRED:
            raise TokenError("claim_missing")
        if claims.keys() - _REQUIRED - {"cnf"}:
            raise TokenError("claim_unknown")
        issued, expires = claims["iat"], claims["exp"]
        if type(issued) is not int or type(expires) is not int:
            raise TokenError("time_invalid")
        if not 0 < expires - issued <= LONGEST:
            raise TokenError("lifetime_refused")
        if type(claims["aud"]) is not str or claims["aud"] != self._audience:
            raise TokenError("audience_refused")
        client = claims["iss"]
        if type(client) is not str or not client or claims["sub"] != client:
            raise TokenError("subject_refused")
        return Claims(
            kid, client, issued, expires, _jti(claims["jti"]), _bound(claims.get("cnf", _ABSENT))
        )


_ABSENT = object()


def _members(text: bytes, code: str) -> dict[str, Any]:
    try:
        content = strictjson.loads(text)
    except ValueError:
        raise TokenError(code) from None
    if not isinstance(content, dict):
        raise TokenError(code)
    return content


def _jti(value: object) -> str:
    if isinstance(value, str) and _octets(value) == JTI:
        return value
    raise TokenError("jti_invalid")


def _bound(cnf: object) -> str | None:
    if cnf is _ABSENT:
        return None
    if isinstance(cnf, dict) and cnf.keys() == {"x5t#S256"}:
        value = cnf["x5t#S256"]
        if isinstance(value, str) and _octets(value) == THUMBPRINT:
            return value
    raise TokenError("binding_invalid")


def _octets(text: str) -> int | None:
    """Return how many bytes this base64url stands for, or None where it is none."""
    try:
        return len(from_base64url(text))
    except ValueError:
        return None
