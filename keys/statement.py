"""What a client says about its own keys: let this one in, or never again let that one in.

A statement is signed with a key that is accepted now; each new key signs, too, so that nobody can
introduce what is not his (as in ACME, RFC 8555 section 7.3.5). It carries the generation of the
registry that its author has seen, so one that comes late or twice changes nothing. The format is in
docs/protocol.md. Pure: the time is passed in.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from . import jws, sshkey
from .jws import JTI, THUMBPRINT, TokenError
from .keyring import KeyRing, base64url, from_jwk, thumbprint, to_jwk

TYPE = "catalyst-keys+jwt"
PROOF_TYPE = "catalyst-key-proof+jwt"
CONTENT_TYPE = "application/jose"
PATH = "/_catalyst/keys"
LIFETIME = 60  # seconds from iat to exp, at most
SIZE = 16 << 10  # characters
MOST = 64  # keys or certificates of one family in a retirement

_VERBS = frozenset({"introduce", "retire", "revoke"})
_INTRODUCED = {"token_key", "token_proof", "csr", "ssh_key", "ssh_proof"}
_PAIRS = ({"token_key", "token_proof"}, {"ssh_key", "ssh_proof"})
_RETIRED = {"kids", "certificates", "ssh_keys", "compromised"}


@dataclass(frozen=True, slots=True)
class Introduction:
    """New keys, each of which has signed; at least one is there."""

    token_key: Ed25519PublicKey | None
    csr: str | None
    """PKCS #10, PEM, as it came: whoever issues the certificate checks it."""
    ssh_key: str | None
    """"ssh-ed25519 AAAA..."."""


@dataclass(frozen=True, slots=True)
class Retirement:
    """What shall never be let in again; at least one thing is named."""

    kids: frozenset[str]
    certificates: frozenset[str]
    """Thumbprints (x5t#S256)."""
    ssh_keys: frozenset[str]
    """Fingerprints ("SHA256:...")."""
    compromised: bool
    """Whether somebody else may have them."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """The client gives up all access; nothing of it comes in again."""


Wish = Introduction | Retirement | Revocation


@dataclass(frozen=True, slots=True)
class Statement(jws.Common):
    """What a client wants, once every signature has been checked."""

    kid: str
    generation: int
    wish: Wish

    @property
    def method(self) -> str:
        """What it is called on record."""
        match self.wish:
            case Introduction():
                return "keys.introduce"
            case Retirement():
                return "keys.retire"
            case _:
                return "keys.revoke"


class Author:
    """Makes statements in the name of one client."""

    def __init__(self, key: Ed25519PrivateKey, client: str, audience: str) -> None:
        self._key = key
        self._client = client
        self._audience = audience
        self.kid = thumbprint(key.public_key())

    def introduce(
        self,
        generation: int,
        now: float,
        jti: bytes,
        *,
        token_key: Ed25519PrivateKey | None = None,
        csr: str | None = None,
        ssh_key: Ed25519PrivateKey | None = None,
    ) -> str:
        """Return the statement that introduces these keys; the private halves only sign.

        Args:
            generation: of the registry, as last told.
            now: seconds since the epoch, as the gateway counts them.
            jti: 16 random bytes, never used before.
            token_key: the new token key.
            csr: request for a certificate of the new TLS key, PEM.
            ssh_key: the new SSH key.
        """
        wish: dict[str, Any] = {}
        nonce = base64url(jti)
        if token_key is not None:
            proof = {"aud": self._audience, "sub": self._client, "jti": nonce, "old": self.kid}
            wish["token_key"] = to_jwk(token_key.public_key())
            wish["token_proof"] = jws.sign(proof, token_key, PROOF_TYPE)
        if csr is not None:
            wish["csr"] = csr
        if ssh_key is not None:
            wish["ssh_key"] = sshkey.public_line(ssh_key.public_key())
            wish["ssh_proof"] = sshkey.prove(ssh_key, self._audience, self._client, nonce)
        return self._sign(generation, now, jti, "introduce", wish)

    def retire(
        self,
        generation: int,
        now: float,
        jti: bytes,
        *,
        kids: Collection[str] = (),
        certificates: Collection[str] = (),
        ssh_keys: Collection[str] = (),
        compromised: bool = False,
    ) -> str:
        """Return the statement that retires these, by kid, thumbprint and fingerprint.

        Args:
            generation, now, jti: see `introduce`.
            kids, certificates, ssh_keys: what shall not be let in again.
            compromised: whether somebody else may have them.
        """
        wish = {
            "kids": sorted(kids),
            "certificates": sorted(certificates),
            "ssh_keys": sorted(ssh_keys),
            "compromised": compromised,
        }
        return self._sign(generation, now, jti, "retire", wish)

    def revoke(self, generation: int, now: float, jti: bytes) -> str:
        """Return the statement that gives up all access of this client; see `introduce`."""
        return self._sign(generation, now, jti, "revoke", {"client": self._client})

    def _sign(
        self, generation: int, now: float, jti: bytes, verb: str, wish: Mapping[str, Any]
    ) -> str:
        if len(jti) != JTI:
            raise ValueError(f"jti must be {JTI} bytes")
        members = {
            "iss": self._client,
            "sub": self._client,
            "aud": self._audience,
            "iat": int(now),
            "exp": int(now) + LIFETIME,
            "jti": base64url(jti),
            "generation": generation,
            verb: wish,
        }
        return jws.sign(members, self._key, TYPE)


def read(text: str, audience: str, ring: KeyRing, now: float) -> Statement:
    """Return what `text` says at `now` (seconds since the epoch).

    Whether its key is still accepted, and may decide on what it names, is the registry's to say.

    Raises:
        TokenError: with the reason; nothing else, whatever `text` is.
    """
    kid, members = jws.read(text, TYPE, ring, SIZE)
    said = jws.common(members, audience, LIFETIME, _VERBS | {"generation"})
    said.check_time(now)
    generation = members.get("generation")
    if type(generation) is not int or generation < 0:
        raise TokenError("generation_invalid")
    verbs = members.keys() & _VERBS
    if len(verbs) != 1:
        raise TokenError("wish_invalid")
    [verb] = verbs
    wish: Wish
    if verb == "introduce":
        wish = _introduction(members[verb], audience, said, kid)
    elif verb == "retire":
        wish = _retirement(members[verb])
    elif members[verb] == {"client": said.client}:
        wish = Revocation()
    else:
        raise TokenError("wish_invalid")
    return Statement(said.client, said.issued, said.expires, said.jti, kid, generation, wish)


def _introduction(wish: object, audience: str, said: jws.Common, kid: str) -> Introduction:
    if not isinstance(wish, dict) or not wish or wish.keys() - _INTRODUCED:
        raise TokenError("wish_invalid")
    if any(len(pair & wish.keys()) == 1 for pair in _PAIRS):
        raise TokenError("proof_missing")
    token_key = None
    if "token_key" in wish:
        try:
            token_key = from_jwk(wish["token_key"])
        except ValueError:
            raise TokenError("token_key_invalid") from None
        _check_proof(wish["token_proof"], token_key, audience, said, kid)
    csr = wish.get("csr")
    if "csr" in wish and (not isinstance(csr, str) or not csr):
        raise TokenError("csr_invalid")
    if "ssh_key" in wish:
        try:
            proved = sshkey.proves(
                wish["ssh_key"], wish["ssh_proof"], audience, said.client, said.jti
            )
        except ValueError:
            raise TokenError("ssh_key_invalid") from None
        if not proved:
            raise TokenError("ssh_proof_invalid")
    return Introduction(token_key, csr, wish.get("ssh_key"))


def _check_proof(
    proof: object, key: Ed25519PublicKey, audience: str, said: jws.Common, kid: str
) -> None:
    """Refuse a new token key that has not signed for just this statement."""
    if not isinstance(proof, str):
        raise TokenError("token_proof_invalid")
    if thumbprint(key) == kid:
        raise TokenError("token_key_unchanged")
    try:
        _, members = jws.read(proof, PROOF_TYPE, KeyRing([key]), SIZE)
    except TokenError:
        raise TokenError("token_proof_invalid") from None
    wanted = {"aud": audience, "sub": said.client, "jti": said.jti, "old": kid}
    if members != wanted:
        raise TokenError("token_proof_invalid")


def _retirement(wish: object) -> Retirement:
    if not isinstance(wish, dict) or wish.keys() != _RETIRED:
        raise TokenError("wish_invalid")
    lists = [wish["kids"], wish["certificates"], wish["ssh_keys"]]
    for listed in lists:
        if not isinstance(listed, list) or len(listed) > MOST:
            raise TokenError("wish_invalid")
    prints = [*wish["kids"], *wish["certificates"]]
    if not all(jws.is_octets(one, THUMBPRINT) for one in prints):
        raise TokenError("wish_invalid")
    if not all(map(sshkey.is_fingerprint, wish["ssh_keys"])):
        raise TokenError("wish_invalid")
    if type(wish["compromised"]) is not bool or not any(lists):
        raise TokenError("wish_invalid")
    kids, certificates, ssh_keys = map(frozenset, lists)
    return Retirement(kids, certificates, ssh_keys, wish["compromised"])
