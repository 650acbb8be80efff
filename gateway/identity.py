"""Who is calling: what NGINX proved, what the token says, and what the registry knows of both.

Pure: header fields and the time in, a `Caller` out, or a `DeniedError` with the exact reason.
"""

import functools
from dataclasses import dataclass
from typing import Literal, Protocol
from urllib.parse import unquote_to_bytes

from keys import certs
from keys.enrolment import Role
from keys.token import Claims, TokenError, Verifier

from .decision import DeniedError
from .registry import Registry

Way = Literal["https", "ssh"]

VERIFY = "X-Client-Verify"
CERTIFICATE = "X-Client-Cert"
_SCHEME = "bearer"


class Fields(Protocol):
    """Header fields by name, any case."""

    def getall(self, key: str, default: list[str]) -> list[str]:
        """Return every value of a field, or `default`."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A client that has proved who it is."""

    client: str
    role: Role
    kid: str
    certificate: str | None
    """Thumbprint, on the https way."""
    single_use: Claims | None
    """The token's claims where it may serve only once."""


def identify(
    fields: Fields, way: Way, registry: Registry, verifier: Verifier, now: float
) -> Caller:
    """Return who sends a request with these header fields at `now` (seconds since the epoch).

    Raises:
        DeniedError: nobody who may come in.
    """
    certificate = _certificate(fields, now) if way == "https" else None
    try:
        claims = verifier.verify(_bearer(fields), now)
    except TokenError as exc:
        raise DeniedError(exc.code) from None
    key = registry.key(claims.kid)
    if key is None:
        raise DeniedError("key_unknown")
    if key.client.name != claims.client:
        raise DeniedError("client_mismatch")
    if key.client.revoked or key.revoked:
        raise DeniedError("client_revoked")
    if certificate is None:
        if claims.bound is not None:
            raise DeniedError("binding_unproved")
    elif claims.bound is None:
        raise DeniedError("binding_missing")
    elif claims.bound != certificate:
        raise DeniedError("binding_mismatch")
    elif certificate not in key.certificates:
        raise DeniedError("certificate_unknown")
    single_use = claims if certificate is None else None
    return Caller(key.client.name, key.client.role, claims.kid, certificate, single_use)


def still_welcome(caller: Caller, registry: Registry) -> bool:
    """Return whether the registry, as it is now, still lets in who was let in before."""
    key = registry.key(caller.kid)
    if key is None or key.revoked or key.client.revoked:
        return False
    if (key.client.name, key.client.role) != (caller.client, caller.role):
        return False
    return caller.certificate is None or caller.certificate in key.certificates


def _bearer(fields: Fields) -> str:
    values = fields.getall("Authorization", [])
    if not values:
        raise DeniedError("token_missing")
    if len(values) > 1:
        raise DeniedError("token_repeated")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != _SCHEME or not token:
        raise DeniedError("scheme_refused")
    return token


def _certificate(fields: Fields, now: float) -> str:
    verdicts = fields.getall(VERIFY, [])
    texts = fields.getall(CERTIFICATE, [])
    if len(verdicts) > 1 or len(texts) > 1:
        raise DeniedError("identity_repeated")
    if not verdicts or verdicts[0] == "NONE":
        raise DeniedError("certificate_missing")
    if verdicts[0] != "SUCCESS":
        raise DeniedError("certificate_refused")
    if not texts:
        raise DeniedError("certificate_missing")
    facts = _facts(texts[0])
    if facts is None:
        raise DeniedError("certificate_invalid")
    if now < facts.not_before:
        raise DeniedError("certificate_early")
    if now > facts.not_after:
        raise DeniedError("certificate_expired")
    return facts.thumbprint


@functools.lru_cache(maxsize=1024)
def _facts(escaped: str) -> certs.CertificateFacts | None:
    """Return what the percent-encoded PEM holds; the same text always holds the same."""
    if not escaped.isascii():
        return None
    try:
        return certs.facts(unquote_to_bytes(escaped))
    except ValueError:
        return None
