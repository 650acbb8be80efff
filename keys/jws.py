"""Signed statements in compact form: Ed25519 and nothing else, read without mercy (RFC 7515).

PyJWT makes and checks the signature; everything that it would let pass (members named twice, times
that are strings or years away, a foreign `typ`) is refused here. Tokens (`token`) and changes of
keys (`statement`) are such statements. Pure: no clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt import PyJWTError
from jwt.api_jws import PyJWS

from . import strictjson
from .keyring import KeyRing, from_base64url, thumbprint

ALGORITHM = "EdDSA"
LEEWAY = 5  # seconds by which two clocks may differ
JTI = 16  # bytes
THUMBPRINT = 32  # bytes of SHA-256

_HEADER = {"alg", "kid", "typ"}
_PYJWS = PyJWS(algorithms=[ALGORITHM])


class TokenError(Exception):
    """A statement is refused; `code` is the exact reason, for the audit log and nobody else."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


@dataclass(frozen=True, slots=True)
class Common:
    """What every statement of a client says."""

    client: str
    issued: int  # seconds since the epoch
    expires: int
    jti: str

    def check_time(self, now: float) -> None:
        """Refuse it where `now` (seconds since the epoch) is not within its life.

        Raises:
            TokenError: token_early, token_expired.
        """
        if self.issued > now + LEEWAY:
            raise TokenError("token_early")
        if now > self.expires + LEEWAY:
            raise TokenError("token_expired")


REQUIRED = frozenset({"iss", "sub", "aud", "iat", "exp", "jti"})


def sign(members: Mapping[str, Any], key: Ed25519PrivateKey, kind: str) -> str:
    """Return `members` as a statement of type `kind`, signed with `key`."""
    return _PYJWS.encode(
        strictjson.dumps(members),
        key,
        algorithm=ALGORITHM,
        headers={"typ": kind, "kid": thumbprint(key.public_key())},
    )


def read(text: str, kind: str, ring: KeyRing, size: int) -> tuple[str, dict[str, Any]]:
    """Return the kid that signed `text`, and its members.

    Args:
        text: what came.
        kind: the `typ` that it must have.
        ring: whose keys are accepted.
        size: characters that it may have.

    Raises:
        TokenError: with the reason; nothing else, whatever `text` is.
    """
    if not text.isascii():
        raise TokenError("token_not_ascii")
    if len(text) > size:
        raise TokenError("token_too_large")
    parts = text.split(".")
    if len(parts) != 3 or not all(parts):
        raise TokenError("token_malformed")
    try:
        head, body, _ = map(from_base64url, parts)
    except ValueError:
        raise TokenError("token_malformed") from None
    kid = _kid(_members(head, "header_invalid"), kind)
    key = ring.find(kid)
    if key is None:
        raise TokenError("key_unknown")
    try:
        _PYJWS.decode(text, key, algorithms=[ALGORITHM])
    except (PyJWTError, ValueError, TypeError):
        raise TokenError("signature_invalid") from None
    return kid, _members(body, "claims_invalid")


def common(
    members: Mapping[str, Any], audience: str, longest: int, more: frozenset[str] = frozenset()
) -> Common:
    """Return what every statement says; `more` are the members that this kind may have besides.

    Raises:
        TokenError: a member is missing, unknown, or not what it must be.
    """
    if not members.keys() >= REQUIRED:
        raise TokenError("claim_missing")
    if members.keys() - REQUIRED - more:
        raise TokenError("claim_unknown")
    issued, expires = members["iat"], members["exp"]
    if type(issued) is not int or type(expires) is not int:
        raise TokenError("time_invalid")
    if not 0 < expires - issued <= longest:
        raise TokenError("lifetime_refused")
    if type(members["aud"]) is not str or members["aud"] != audience:
        raise TokenError("audience_refused")
    client = members["iss"]
    if type(client) is not str or not client or members["sub"] != client:
        raise TokenError("subject_refused")
    if not is_octets(members["jti"], JTI):
        raise TokenError("jti_invalid")
    return Common(client, issued, expires, members["jti"])


def is_octets(value: object, count: int) -> bool:
    """Return whether `value` is base64url for so many bytes."""
    if not isinstance(value, str):
        return False
    try:
        return len(from_base64url(value)) == count
    except ValueError:
        return False


def _kid(header: Mapping[str, Any], kind: str) -> str:
    if header.get("alg") != ALGORITHM:
        raise TokenError("algorithm_refused")
    if header.get("typ") != kind:
        raise TokenError("type_refused")
    kid = header.get("kid")
    if not isinstance(kid, str) or header.keys() != _HEADER:
        raise TokenError("header_invalid")
    return kid


def _members(text: bytes, code: str) -> dict[str, Any]:
    try:
        content = strictjson.loads(text)
    except ValueError:
        raise TokenError(code) from None
    if not isinstance(content, dict):
        raise TokenError(code)
    return content
