"""A forger of hostile tokens: each would serve, but for the one thing that its name tells.

Nothing here uses the code under test: what a token looks like is written down a second time, from
docs/protocol.md and the RFCs. The signature is right wherever the name does not say otherwise, so
that it cannot be what saves a careless verifier.
"""

import base64
import functools
import hashlib
import hmac
import json
import os
import re
import string
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

ABSENT: Final = object()
"""As a header's or a claim's value: leave the member out."""
NONE: Mapping[str, Any] = {}

_ORDER = 2**252 + 27742317777372353535851937790883648493  # of Ed25519's group, RFC 8032 section 5.1
_ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
_STANDARD = str.maketrans("-_", "+/")  # from base64url's letters to base64's

Case = tuple[str, str, str]
"""Name, the reason code that is expected, token."""


@dataclass(frozen=True)
class Hostile:
    """A token that must be refused, and the reason code that a verifier must give."""

    name: str
    code: str
    token: str

    @property
    def fits_a_field(self) -> bool:
        """Whether HTTP carries "Bearer TOKEN" as it stands (RFC 9110 section 5.5).

        Of the others a server sees nothing, or something else: blanks at the end are not part of
        a field's value, so one of these arrives as a good token.
        """
        return bool(re.fullmatch(r"[ -~]*[!-~]", self.token))


@dataclass(frozen=True)
class Forger:
    """Makes tokens, good and otherwise, with the key of one client."""

    key: Ed25519PrivateKey
    client: str
    audience: str
    certificate: str | None
    """Thumbprint (x5t#S256) to bind tokens to, or None."""

    @property
    def kid(self) -> str:
        """The key's RFC 7638 thumbprint."""
        x = b64(self.key.public_key().public_bytes_raw())
        return b64(hashlib.sha256(b'{"crv":"Ed25519","kty":"OKP","x":"%s"}' % x.encode()).digest())

    def header(self, changes: Mapping[str, Any] = NONE) -> bytes:
        """Return the header of a good token, changed, as JSON."""
        return _json({"alg": "EdDSA", "kid": self.kid, "typ": "catalyst-tunnel+jwt", **changes})

    def claims(self, now: float, changes: Mapping[str, Any] = NONE) -> bytes:
        """Return the claims of a token that is good at `now`, changed, as JSON."""
        claims: dict[str, Any] = {
            "iss": self.client,
            "sub": self.client,
            "aud": self.audience,
            "iat": int(now),
            "exp": int(now) + 60,
            "jti": b64(os.urandom(16)),
        }
        if self.certificate is not None:
            claims["cnf"] = {"x5t#S256": self.certificate}
        return _json({**claims, **changes})

    def token(
        self, now: float, *, header: Mapping[str, Any] = NONE, claims: Mapping[str, Any] = NONE
    ) -> str:
        """Return a token that is good at `now`, but for these members."""
        return self.seal(self.header(header), self.claims(now, claims))

    def seal(self, header: bytes, claims: bytes) -> str:
        """Sign these two texts, whatever they say."""
        return self.sign(b64(header), b64(claims))

    def sign(self, *parts: str) -> str:
        """Sign what stands for header and claims, letter for letter."""
        text = ".".join(parts)
        return f"{text}.{b64(self.key.sign(text.encode()))}"


def b64(data: bytes) -> str:
    """Return base64url without padding (RFC 7515, appendix C)."""
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def unb64(text: str) -> bytes:
    """Return the bytes of base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def second_spelling(text: str) -> str:
    """Return other base64url for the same bytes: a bit that stands for nothing is set."""
    assert len(text) % 4 in (2, 3), "every bit of this one counts"
    return text[:-1] + _ALPHABET[_ALPHABET.index(text[-1]) + 1]


def hostile_tokens(forger: Forger, now: float, neighbour: Forger | None = None) -> list[Hostile]:
    """Return tokens that must all be refused at `now` and in the minutes after it.

    Args:
        forger: a registered client who has gone bad.
        now: seconds since the epoch.
        neighbour: another registered client, whose name the forger would like to use.
    """
    cases = [
        *_algorithms(forger, now),
        *_types(forger, now),
        *_key_ids(forger, now),
        *_more_headers(forger, now),
        *_header_texts(forger, now),
        *_claim_texts(forger, now),
        *_numbers(forger, now),
        *_times(forger, now),
        *_audiences(forger, now),
        *_subjects(forger, now),
        *_jtis(forger, now),
        *_more_claims(forger, now),
        *_bindings(forger, now),
        *_signatures(forger, now),
        *_spellings(forger, now),
        *_shapes(forger, now),
    ]
    if neighbour is not None:
        cases += _neighbours(forger, neighbour, now)
    return [Hostile(*case) for case in cases]


def _json(members: Mapping[str, Any]) -> bytes:
    kept = {name: value for name, value in members.items() if value is not ABSENT}
    return json.dumps(kept, separators=(",", ":")).encode()


def _before(text: bytes, members: bytes) -> bytes:
    """Put more members, as text, in front of those of a JSON object."""
    return b"{" + members + b"," + text[1:]


def _after(text: bytes, members: bytes) -> bytes:
    return text[:-1] + b"," + members + b"}"


@functools.cache
def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


# The header.


def _algorithms(forger: Forger, now: float) -> Iterator[Case]:
    refused = "algorithm_refused"
    claims = b64(forger.claims(now))
    raw = forger.key.public_key().public_bytes_raw()
    pem = forger.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    jwk = _json({"crv": "Ed25519", "kty": "OKP", "x": b64(raw)})

    for name in ("none", "None", "NONE", "nOnE"):
        yield f"alg {name}, signed all the same", refused, forger.token(now, header={"alg": name})
    bare = b64(forger.header({"alg": "none"}))
    yield "alg none with a signature of one byte", refused, f"{bare}.{claims}.AA"
    yield "alg none with an empty signature", "token_malformed", f"{bare}.{claims}."

    for secret, what in ((raw, "bytes"), (pem, "PEM"), (jwk, "JWK"), (b"", "nothing")):
        text = f"{b64(forger.header({'alg': 'HS256'}))}.{claims}"
        mac = hmac.digest(secret, text.encode(), "sha256")
        yield f"HS256 with the public key as secret: {what}", refused, f"{text}.{b64(mac)}"
    text = f"{b64(forger.header())}.{claims}"
    mac = hmac.digest(pem, text.encode(), "sha512")
    yield "HMAC with the public key, called EdDSA", "signature_invalid", f"{text}.{b64(mac)}"

    text = f"{b64(forger.header({'alg': 'ES256'}))}.{claims}"
    es256 = ec.generate_private_key(ec.SECP256R1()).sign(text.encode(), ec.ECDSA(SHA256()))
    yield "ES256", refused, f"{text}.{b64(es256)}"
    text = f"{b64(forger.header({'alg': 'RS256'}))}.{claims}"
    rs256 = _rsa().sign(text.encode(), padding.PKCS1v15(), SHA256())
    yield "RS256", refused, f"{text}.{b64(rs256)}"

    ed448 = Ed448PrivateKey.generate()
    text = f"{b64(forger.header())}.{claims}"
    signed = b64(ed448.sign(text.encode()))
    yield "Ed448 under EdDSA, our kid", "signature_invalid", f"{text}.{signed}"
    x = b64(ed448.public_key().public_bytes_raw())
    own = b64(hashlib.sha256(b'{"crv":"Ed448","kty":"OKP","x":"%s"}' % x.encode()).digest())
    text = f"{b64(forger.header({'kid': own}))}.{claims}"
    signed = b64(ed448.sign(text.encode()))
    yield "Ed448 under EdDSA, its own kid", "key_unknown", f"{text}.{signed}"

    for value in (
        "eddsa",
        "EDDSA",
        "Ed25519",
        "EdDSA ",
        "",
        None,
        1,
        True,
        ["EdDSA"],
        {"EdDSA": 1},
    ):
        yield f"alg {value!r}", refused, forger.token(now, header={"alg": value})
    yield "alg missing", refused, forger.token(now, header={"alg": ABSENT})


def _types(forger: Forger, now: float) -> Iterator[Case]:
    own = "catalyst-tunnel+jwt"
    values = ("JWT", "jwt", "at+jwt", "Catalyst-Tunnel+JWT", f"application/{own}", f"{own} ", "")
    for value in (*values, None, 1, [own]):
        yield f"typ {value!r}", "type_refused", forger.token(now, header={"typ": value})
    yield "typ missing", "type_refused", forger.token(now, header={"typ": ABSENT})


def _key_ids(forger: Forger, now: float) -> Iterator[Case]:
    kid = forger.kid
    unknown = {
        "nobody's": b64(bytes(32)),
        "empty": "",
        "a path": "../../etc/passwd",
        "a file with NUL": f"{kid}\0.pem",
        "SQL": "' OR 1=1 --",
        "a URL": "https://example.com/key",
        "in the other case": kid.swapcase(),
        "without its end": kid[:-1],
        "with a blank": f"{kid} ",
        "padded": f"{kid}=",
        "spelled differently": second_spelling(kid),
        "very long": "A" * 2000,
    }
    for name, value in unknown.items():
        yield f"kid {name}", "key_unknown", forger.token(now, header={"kid": value})
    for other in (0, 1.5, True, None, [kid], {"kid": kid}):
        yield f"kid {other!r}", "header_invalid", forger.token(now, header={"kid": other})
    yield "kid missing", "header_invalid", forger.token(now, header={"kid": ABSENT})


def _more_headers(forger: Forger, now: float) -> Iterator[Case]:
    stranger = Ed25519PrivateKey.generate()
    jwk = {"crv": "Ed25519", "kty": "OKP", "x": b64(stranger.public_key().public_bytes_raw())}
    private = jwk | {"d": b64(stranger.private_bytes_raw())}
    own = Forger(stranger, forger.client, forger.audience, forger.certificate)
    for name, key in (("public", jwk), ("private", private)):
        yield (
            f"jwk: a stranger's {name} key, that signed",
            "header_invalid",
            own.token(now, header={"jwk": key, "kid": forger.kid}),
        )
        yield (
            f"jwk: a stranger's {name} key, that signed, and its kid",
            "header_invalid",
            own.token(now, header={"jwk": key}),
        )
    more: dict[str, Any] = {
        "jku": "https://example.com/keys",
        "x5u": "file:///etc/passwd",
        "x5c": ["MIIB"],
        "x5t": "AAAA",
        "x5t#S256": b64(bytes(32)),
        "crit": ["exp"],
        "b64": True,
        "zip": "DEF",
        "cty": "JWT",
        "enc": "A128GCM",
        "nonce": "1",
        "exp": int(now) + 60,
        "x": "something else",
    }
    for name, value in more.items():
        yield f"header with {name}", "header_invalid", forger.token(now, header={name: value})
    yield (
        "crit names what nobody knows",
        "header_invalid",
        forger.token(now, header={"crit": ["x"], "x": 1}),
    )
    yield "crit empty", "header_invalid", forger.token(now, header={"crit": []})
    unencoded = forger.header({"b64": False, "crit": ["b64"]})  # RFC 7797
    yield "b64 false", "header_invalid", forger.seal(unencoded, forger.claims(now))
    text = b64(unencoded).encode() + b"." + forger.claims(now)
    detached = f"{b64(unencoded)}..{b64(forger.key.sign(text))}"
    yield "b64 false, payload detached", "token_malformed", detached
    packed = zlib.compress(forger.claims(now), wbits=-15)
    yield "claims compressed", "header_invalid", forger.seal(forger.header({"zip": "DEF"}), packed)


def _header_texts(forger: Forger, now: float) -> Iterator[Case]:
    good = forger.header()
    texts = _ambiguous(good) | {
        "alg twice, the first none": _before(good, b'"alg":"none"'),
        "alg twice, the last none": _after(good, b'"alg":"none"'),
        "alg twice, both EdDSA": _before(good, b'"alg":"EdDSA"'),
        "alg twice, once escaped": _before(good, b'"\\u0061lg":"none"'),
        "kid twice": _after(good, b'"kid":"%s"' % b64(bytes(32)).encode()),
        "kid twice, once escaped": _after(good, b'"k\\u0069d":"../../etc/passwd"'),
        "typ twice": _before(good, b'"typ":"JWT"'),
        "kid a lone surrogate": forger.header({"kid": "\ud800"}),
    }
    for name, text in texts.items():
        yield f"header: {name}", "header_invalid", forger.seal(text, forger.claims(now))
    yield "header: empty object", "algorithm_refused", forger.seal(b"{}", forger.claims(now))


# Both.


def _ambiguous(good: bytes) -> dict[str, bytes]:
    """Return texts that are not a JSON object, or not the same one to every reader."""
    return {
        "a list": b"[%s]" % good,
        "a string": json.dumps(good.decode()).encode(),
        "a number": b"1",
        "null": b"null",
        "true": b"true",
        "not JSON": b"alg=EdDSA&typ=JWT",
        "one blank": b" ",
        "UTF-16": good.decode().encode("utf-16"),
        "UTF-16 without a mark": good.decode().encode("utf-16-le"),
        "UTF-32": good.decode().encode("utf-32"),
        "a byte order mark": b"\xef\xbb\xbf" + good,
        "a byte that is not UTF-8": _after(good, b'"x":"\xff"'),
        "UTF-8 in too many bytes": _after(good, b'"x":"\xc0\xaf"'),
        "a surrogate in UTF-8": _after(good, b'"x":"\xed\xa0\x80"'),
        "half a surrogate pair": _after(good, b'"x":"\\ud83d"'),
        "half a surrogate pair as a name": _after(good, b'"\\uDE00":1'),
        "nested 1,100 deep": b"[" * 1100 + b"]" * 1100,
        "nested, never closed": b"[" * 2000,
        "NaN": _after(good, b'"x":NaN'),
        "-Infinity": _after(good, b'"x":-Infinity'),
        "1e999": _after(good, b'"x":1e999'),
        "a comma too many": good[:-1] + b",}",
        "a comment": good + b"/**/",
        "two objects": good + good,
        "something behind": good + b"x",
        "NUL behind": good + b"\0",
        "cut short": good[:-1],
        "single quotes": good.replace(b'"', b"'"),
        "a line break in a string": _after(good, b'"x":"\n"'),
        "other white space": good + "\N{NO-BREAK SPACE}".encode(),
    }


# The claims.


def _claim_texts(forger: Forger, now: float) -> Iterator[Case]:
    good = forger.claims(now, {"cnf": ABSENT})
    later = b"%d" % (int(now) + 3600)
    zeros = b64(bytes(32)).encode()
    ones = b64(b"\1" * 32).encode()
    texts = _ambiguous(good) | {
        "exp twice, the first later": _before(good, b'"exp":' + later),
        "exp twice, the last later": _after(good, b'"exp":' + later),
        "exp twice, the same": forger.claims(now).replace(b'"exp"', b'"exp":%d,"exp"' % (now + 60)),
        "exp twice, once escaped": _before(good, b'"\\u0065xp":' + later),
        "exp twice, all escaped": _after(good, b'"\\u0065\\u0078\\u0070":' + later),
        "iss twice": _after(good, b'"iss":"admin"'),
        "sub twice": _before(good, b'"sub":"admin"'),
        "aud twice": _before(good, b'"aud":"elsewhere"'),
        "jti twice": _after(good, b'"jti":"%s"' % b64(bytes(16)).encode()),
        "cnf twice": _after(
            good, b'"cnf":{"x5t#S256":"%s"},"cnf":{"x5t#S256":"%s"}' % (zeros, ones)
        ),
        "a thumbprint twice in cnf": _after(
            good, b'"cnf":{"x5t#S256":"%s","x5t#S\\u003256":"%s"}' % (zeros, ones)
        ),
        "iss and sub lone surrogates": forger.claims(now, {"iss": "\ud800", "sub": "\ud800"}),
    }
    for name, text in texts.items():
        yield f"claims: {name}", "claims_invalid", forger.seal(forger.header(), text)
    yield "claims: empty object", "claim_missing", forger.seal(forger.header(), b"{}")
    empty = forger.seal(forger.header(), b"")
    yield "claims: nothing at all", "token_malformed", empty


def _numbers(forger: Forger, now: float) -> Iterator[Case]:
    """What stands where exp and iat should: as text, because json would not write most of it."""
    whole = int(now) + 60
    wrong = {
        "a string": b'"%d"' % whole,
        "a float": b"%d.0" % whole,
        "with an exponent": b"%de0" % whole,
        "very small": b"1e-999",
        "true": b"true",
        "null": b"null",
        "a list": b"[%d]" % whole,
        "an object": b'{"n":%d}' % whole,
        "a date": b'"2030-01-01T00:00:00Z"',
        "empty": b'""',
    }
    unreadable = {
        "NaN": b"NaN",
        "Infinity": b"Infinity",
        "1e999": b"1e999",
        "with a plus": b"+%d" % whole,
        "with a zero in front": b"0%d" % whole,
        "hexadecimal": b"0x%x" % whole,
        "with an underscore": b"%d_0" % (whole // 10),
        "in Arabic digits": "\u0661\u0667".encode(),
        "missing after the colon": b"",
    }
    for member in ("exp", "iat"):
        rest = forger.claims(now, {member: ABSENT})
        for code, texts in (("time_invalid", wrong), ("claims_invalid", unreadable)):
            for name, text in texts.items():
                claims = _after(rest, b'"%s":%s' % (member.encode(), text))
                yield f"{member} {name}", code, forger.seal(forger.header(), claims)
        missing = forger.seal(forger.header(), rest)
        yield f"{member} missing", "claim_missing", missing


def _times(forger: Forger, now: float) -> Iterator[Case]:
    at = int(now)
    cases = {
        "exp - iat of 121 s": ("lifetime_refused", at, at + 121),
        "ten years": ("lifetime_refused", at, at + 10 * 365 * 86400),
        "iat 1, exp in a minute": ("lifetime_refused", 1, at + 60),
        "exp = iat": ("lifetime_refused", at, at),
        "exp before iat": ("lifetime_refused", at, at - 1),
        "exp negative": ("lifetime_refused", at, -1),
        "exp 0": ("lifetime_refused", at, 0),
        "exp of 31 digits": ("lifetime_refused", at, 10**30),
        "exp of 2,000 digits": ("lifetime_refused", at, 10**1999),
        "exp in milliseconds": ("lifetime_refused", at, (at + 60) * 1000),
        "iat negative": ("lifetime_refused", -at, at + 60),
        "both in milliseconds": ("token_early", at * 1000, at * 1000 + 60),
        "both of 1,000 digits": ("token_early", 10**999, 10**999 + 60),
        "both of 1,000 digits, negative": ("token_expired", -(10**999), 60 - 10**999),
        "iat an hour from now": ("token_early", at + 3600, at + 3660),
        "iat 1, exp a minute after": ("token_expired", 1, 61),
        "both negative": ("token_expired", -60, -1),
        "expired yesterday": ("token_expired", at - 86400, at - 86340),
        "expired a second more than the leeway ago": ("token_expired", at - 66, at - 6),
        "long-lived and expired": ("token_expired", at - 126, at - 6),
    }
    for name, (code, issued, expires) in cases.items():
        yield name, code, forger.token(now, claims={"iat": issued, "exp": expires})


def _audiences(forger: Forger, now: float) -> Iterator[Case]:
    own = forger.audience
    values: dict[str, Any] = {
        "another": "catalyst-gateway:elsewhere.example",
        "empty": "",
        "in a list": [own],
        "in a list with another": ["elsewhere", own],
        "an empty list": [],
        "null": None,
        "a number": 1,
        "true": True,
        "an object": {own: True},
        "without its end": own[:-1],
        "with more behind": f"{own}.evil.example",
        "with a dot behind": f"{own}.",
        "with a blank before": f" {own}",
        "with NUL behind": f"{own}\0",
        "in capitals": own.upper(),
        "without its prefix": own.partition(":")[2],
        "two in one string": f"{own} elsewhere",
    }
    for name, value in values.items():
        yield f"aud {name}", "audience_refused", forger.token(now, claims={"aud": value})
    yield "aud missing", "claim_missing", forger.token(now, claims={"aud": ABSENT})


def _subjects(forger: Forger, now: float) -> Iterator[Case]:
    own = forger.client
    pairs: dict[str, tuple[Any, Any]] = {
        "iss another's": ("admin", own),
        "sub another's": (own, "admin"),
        "sub in capitals": (own, own.upper()),
        "sub with a blank": (own, f"{own} "),
        "sub empty": (own, ""),
        "iss empty": ("", own),
        "both empty": ("", ""),
        "both numbers": (1, 1),
        "both null": (None, None),
        "both true": (True, True),
        "both lists": ([own], [own]),
        "both objects": ({"name": own}, {"name": own}),
        "sub a list": (own, [own]),
        "iss a list": ([own], own),
        "sub null": (own, None),
    }
    for name, (issuer, subject) in pairs.items():
        token = forger.token(now, claims={"iss": issuer, "sub": subject})
        yield f"iss, sub: {name}", "subject_refused", token
    for name in ("iss", "sub"):
        yield f"{name} missing", "claim_missing", forger.token(now, claims={name: ABSENT})


def _jtis(forger: Forger, now: float) -> Iterator[Case]:
    values: dict[str, Any] = {
        "empty": "",
        "of 15 bytes": b64(bytes(15)),
        "of 17 bytes": b64(bytes(17)),
        "of 1,500 bytes": b64(bytes(1500)),
        "of 21 letters": "A" * 21,
        "spelled differently": second_spelling(b64(bytes(16))),
        "padded": f"{b64(bytes(16))}==",
        "in the other alphabet": "+/" * 10 + "+w",
        "in hexadecimal": bytes(16).hex(),
        "a UUID": "00000000-0000-4000-8000-000000000000",
        "with a blank": f"{b64(bytes(16))} ",
        "with a line break": f"{b64(bytes(16))}\n",
        "with NUL": f"{b64(bytes(16))[:-1]}\0",
        "not ASCII": "\u00e4" * 22,
        "a number": 1,
        "null": None,
        "true": True,
        "a list": [b64(bytes(16))],
        "an object": {},
    }
    for name, value in values.items():
        yield f"jti {name}", "jti_invalid", forger.token(now, claims={"jti": value})
    yield "jti missing", "claim_missing", forger.token(now, claims={"jti": ABSENT})


def _more_claims(forger: Forger, now: float) -> Iterator[Case]:
    more = {
        "nbf": int(now),
        "nbf ": 1,
        "role": "operator",
        "scope": "*",
        "azp": forger.client,
        "EXP": int(now) + 60,
        "__proto__": {},
        "": 1,
        "\u0435xp": int(now) + 60,  # a Cyrillic letter
    }
    for name, value in more.items():
        yield f"claims with {name!r}", "claim_unknown", forger.token(now, claims={name: value})


def _bindings(forger: Forger, now: float) -> Iterator[Case]:
    own = forger.certificate or b64(bytes(32))
    values: dict[str, Any] = {
        "empty": {},
        "null": None,
        "a string": own,
        "a list": [own],
        "a list of the right thing": [{"x5t#S256": own}],
        "true": True,
        "0": 0,
        "with another member": {"x5t#S256": own, "jkt": own},
        "SHA-1": {"x5t": b64(bytes(20))},
        "DPoP's": {"jkt": own},
        "in the other case": {"x5t#s256": own},
        "a key itself": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": own}},
        "a thumbprint that is empty": {"x5t#S256": ""},
        "a thumbprint that is null": {"x5t#S256": None},
        "a thumbprint that is a number": {"x5t#S256": 1},
        "a thumbprint in a list": {"x5t#S256": [own]},
        "a thumbprint too short": {"x5t#S256": own[:-1]},
        "a thumbprint too long": {"x5t#S256": f"{own}A"},
        "a thumbprint padded": {"x5t#S256": f"{own}="},
        "a thumbprint spelled differently": {"x5t#S256": second_spelling(own)},
        "a thumbprint in hexadecimal": {"x5t#S256": bytes(32).hex()},
        "43 line breaks": {"x5t#S256": "\n" * 43},
        "43 letters that are not ASCII": {"x5t#S256": "\u00e4" * 43},
    }
    for name, value in values.items():
        yield f"cnf {name}", "binding_invalid", forger.token(now, claims={"cnf": value})


# The signature, and the three parts.


def _signatures(forger: Forger, now: float) -> Iterator[Case]:
    invalid = "signature_invalid"
    header, claims, signature = forger.token(now).split(".")
    raw = unb64(signature)

    def with_signature(data: bytes) -> str:
        return f"{header}.{claims}.{b64(data)}"

    stranger = Forger(
        Ed25519PrivateKey.generate(), forger.client, forger.audience, forger.certificate
    )
    yield "signed by a stranger", invalid, stranger.token(now, header={"kid": forger.kid})
    yield "a stranger's token", "key_unknown", stranger.token(now)
    other = forger.token(now).split(".")
    yield "the signature of another token", invalid, f"{header}.{claims}.{other[2]}"
    yield "the claims of another token", invalid, f"{header}.{other[1]}.{signature}"
    later = b64(forger.claims(now + 30))
    yield "claims changed after signing", invalid, f"{header}.{later}.{signature}"
    blank = b64(unb64(header) + b" ")
    yield "a blank in the header after signing", invalid, f"{blank}.{claims}.{signature}"
    for name, data in {
        "one byte short": raw[:-1],
        "half": raw[:32],
        "one byte long": raw + b"\0",
        "twice": raw * 2,
        "one byte": raw[:1],
        "zeros": bytes(64),
        "ones": b"\xff" * 64,
        "halves exchanged": raw[32:] + raw[:32],
        "first bit flipped": bytes([raw[0] ^ 1]) + raw[1:],
        "last bit flipped": raw[:-1] + bytes([raw[-1] ^ 0x80]),
        "S + L": raw[:32] + (int.from_bytes(raw[32:], "little") + _ORDER).to_bytes(32, "little"),
        "the neutral element": b"\1" + bytes(63),
        "of the bytes, not of their base64url": forger.key.sign(unb64(header) + unb64(claims)),
        "of the claims only": forger.key.sign(claims.encode()),
        "of nothing": forger.key.sign(b""),
    }.items():
        yield f"signature: {name}", invalid, with_signature(data)
    yield "signature: empty", "token_malformed", f"{header}.{claims}."


def _spellings(forger: Forger, now: float) -> Iterator[Case]:
    """Base64url that lenient decoders take; signed as it stands, where that can be."""
    header, claims = _odd(forger.header()), _odd(forger.claims(now))
    good = forger.sign(header, claims)
    while good == good.translate(_STANDARD):
        claims = _odd(forger.claims(now))
        good = forger.sign(header, claims)
    signature = good.rpartition(".")[2]
    for name, token in {
        "header spelled differently": forger.sign(second_spelling(header), claims),
        "claims spelled differently": forger.sign(header, second_spelling(claims)),
        "signature spelled differently": f"{header}.{claims}.{second_spelling(signature)}",
        "header padded": forger.sign(f"{header}=", claims),
        "claims padded": forger.sign(header, f"{claims}="),
        "signature padded": f"{good}==",
        "one padding sign too many": f"{good}===",
        "padding in the middle": f"{header}.{claims}.{signature[:40]}={signature[40:]}",
        "signature in the other alphabet": good.translate(_STANDARD),
        "letters that decoders skip": forger.sign(f"{header[:8]}!*{header[8:]}", claims),
        "a blank in front": f" {good}",
        "a blank behind": f"{good} ",
        "a tab behind": f"{good}\t",
        "a blank in the header": forger.sign(f"{header[:8]} {header[8:]}", claims),
        "a line break in the claims": forger.sign(header, f"{claims[:8]}\n{claims[8:]}"),
        "a line break behind": f"{good}\n",
        "CR LF behind": f"{good}\r\n",
        "NUL behind": f"{good}\0",
        "NUL in front": f"\0{good}",
        "NUL in the middle": f"{header}.{claims[:8]}\0{claims[8:]}.{signature}",
        "DEL in the middle": f"{header}.{claims[:8]}\x7f{claims[8:]}.{signature}",
        "percent-encoded dots": good.replace(".", "%2E"),
        "a percent-encoded letter": f"%{ord(good[0]):02x}{good[1:]}",
        "in quotes": f'"{good}"',
        "the scheme again": f"Bearer {good}",
        "five letters": f"AAAAA.{claims}.{signature}",
    }.items():
        yield name, "token_malformed", token
    for name, token in {
        "a non-ASCII letter": f"{header}.{claims}\u00e4.{signature}",
        "a zero-width blank": f"{good}\u200b",
        "dots of another script": good.replace(".", "\uff0e"),
        "a letter of another script": good.replace("e", "\u0435", 1),
        "a lone surrogate": f"{good}\udc80",
        "a no-break blank": f"{good}\u00a0",
    }.items():
        yield name, "token_not_ascii", token


def _odd(text: bytes) -> str:
    """Return the base64url of a JSON text of such a length that some bits stand for nothing."""
    while len(text) % 3 != 2:
        text += b" "
    return b64(text)


def _shapes(forger: Forger, now: float) -> Iterator[Case]:
    good = forger.token(now)
    header, claims, signature = good.split(".")
    general = {"payload": claims, "signatures": [{"protected": header, "signature": signature}]}
    flattened = {"payload": claims, "protected": header, "signature": signature}
    for name, token in {
        "nothing": "",
        "one part": header,
        "two parts: no signature": f"{header}.{claims}",
        "four parts": f"{good}.{signature}",
        "four parts, the last empty": f"{good}.",
        "five parts, as a JWE": f"{header}.{claims}.{signature}.AAAA.AAAA",
        "an empty part in front": f".{good}",
        "dots": "..",
        "many dots": "." * 4000,
        "no header": f".{claims}.{signature}",
        "no claims": f"{header}..{signature}",
        "JSON serialisation": _json(general).decode(),
        "flattened JSON serialisation": _json(flattened).decode(),
        "twice, with a comma": f"{good},{good}",
        "twice, with a comma and a blank": f"{good}, {good}",
        "twice": f"{good}{good}",
        "an unsigned part with a tilde": f"{good}~{claims}~",
        "not a token": "hunter2",
    }.items():
        yield f"shape: {name}", "token_malformed", token
    padded = forger.claims(now) + b" " * 3000
    number = _after(forger.claims(now), b'"x":' + b"9" * 5_000_000)
    for name, token in {
        "good, but for its size": forger.seal(forger.header(), padded),
        "a kid of 4,096 letters": forger.token(now, header={"kid": "A" * 4096}),
        "a number of 5 MB": forger.seal(forger.header(), number),
        "4,097 letters": "A" * 4097,
    }.items():
        yield f"size: {name}", "token_too_large", token


# Two clients.


def _neighbours(forger: Forger, neighbour: Forger, now: float) -> Iterator[Case]:
    invalid = "signature_invalid"
    mine, theirs = forger.token(now).split("."), neighbour.token(now).split(".")
    yield "a neighbour's kid", invalid, forger.token(now, header={"kid": neighbour.kid})
    both = {"iss": neighbour.client, "sub": neighbour.client}
    token = forger.token(now, header={"kid": neighbour.kid}, claims=both)
    yield "a neighbour's kid and name", invalid, token
    yield "a neighbour's header", invalid, f"{theirs[0]}.{mine[1]}.{mine[2]}"
    yield "a neighbour's claims", invalid, f"{mine[0]}.{theirs[1]}.{mine[2]}"
    yield "a neighbour's signature", invalid, f"{mine[0]}.{mine[1]}.{theirs[2]}"
