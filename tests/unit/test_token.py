import base64
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import keys.token
from keys.keyring import KeyRing, base64url
from keys.token import LEEWAY, LIFETIME, LONGEST, SIZE, Claims, Minter, TokenError, Verifier
from tests.forge import ABSENT, Forger, Hostile, hostile_tokens, second_spelling, unb64

NOW = 1_800_000_000.75
JTI = bytes(range(16))
AUDIENCE = "catalyst-gateway:mcp.example.com"
CERTIFICATE = base64url(hashlib.sha256(b"a certificate").digest())
FORGER = Forger(Ed25519PrivateKey.from_private_bytes(b"1" * 32), "laptop", AUDIENCE, CERTIFICATE)
UNBOUND = Forger(FORGER.key, FORGER.client, AUDIENCE, None)
NEIGHBOUR = Forger(Ed25519PrivateKey.from_private_bytes(b"2" * 32), "desk", AUDIENCE, CERTIFICATE)
PUBLIC = [forger.key.public_key() for forger in (FORGER, NEIGHBOUR)]

HOSTILE = hostile_tokens(FORGER, NOW, NEIGHBOUR)


def respelled(token: str) -> str:
    """Return the same three parts, with the signature's last letter written differently."""
    text, _, signature = token.rpartition(".")
    return f"{text}.{second_spelling(signature)}"


class CountingRing(KeyRing):
    """Counts how often a key is looked for, which is once for each token that is read."""

    found = 0

    def find(self, kid: str) -> Ed25519PublicKey | None:
        self.found += 1
        return super().find(kid)


def verifier() -> Verifier:
    return Verifier(AUDIENCE, KeyRing(PUBLIC))


def code_of(token: str, now: float = NOW, by: Verifier | None = None) -> str | None:
    """Return why `token` is refused, or None; whatever else is raised fails the test."""
    try:
        (by or verifier()).verify(token, now)
    except TokenError as refusal:
        return refusal.code
    return None


# What must not come in.


@pytest.mark.parametrize("hostile", HOSTILE, ids=[one.name for one in HOSTILE])
def test_a_hostile_token_is_refused_for_its_reason(hostile: Hostile) -> None:
    assert code_of(hostile.token) == hostile.code


def test_hostile_tokens_without_a_certificate() -> None:
    by = verifier()
    cases = hostile_tokens(UNBOUND, NOW, NEIGHBOUR)
    told = [(one.name, code_of(one.token, by=by)) for one in cases]
    assert told == [(one.name, one.code) for one in cases]


def test_a_refused_token_stays_refused() -> None:
    """Nothing of a refusal is remembered as a success, in whatever order they come."""
    by = verifier()
    for _ in range(2):
        assert [code_of(one.token, by=by) for one in HOSTILE] == [one.code for one in HOSTILE]
        assert code_of(FORGER.token(NOW), by=by) is None


def test_the_forger_does_not_repeat_itself() -> None:
    assert len(HOSTILE) >= 60
    assert len({one.name for one in HOSTILE}) == len(HOSTILE)
    assert len({one.token for one in HOSTILE}) == len(HOSTILE)
    assert sum(one.fits_a_field for one in HOSTILE) >= 60
    assert len(hostile_tokens(FORGER, NOW)) < len(HOSTILE)


def test_the_forger_would_get_in_but_for_what_it_changes() -> None:
    """Otherwise every refusal above might have one and the same cause."""
    for forger in (FORGER, UNBOUND, NEIGHBOUR):
        assert code_of(forger.token(NOW)) is None
        assert code_of(forger.seal(forger.header(), forger.claims(NOW))) is None


def test_half_a_surrogate_pair_is_no_client() -> None:
    """json takes it, and then nobody can write it to a log."""
    text = FORGER.claims(NOW, {"iss": "\ud800", "sub": "\ud800"})
    assert json.loads(text)["iss"] == "\ud800"
    assert code_of(FORGER.seal(FORGER.header(), text)) == "claims_invalid"


@pytest.mark.parametrize("where", ["iss", "sub", "aud", "iat", "exp", "jti", "cnf", "kid", "alg"])
def test_no_depth_of_nesting_does_anything_but_refuse(where: str) -> None:
    """Nearly as deep as the interpreter can go, from the stack's foot and from near its top."""

    def deeper(levels: int, then: Callable[[], None]) -> None:
        if levels:
            deeper(levels - 1, then)
        else:
            then()

    def attack() -> None:
        for depth in (1, 400, 800, 880, 900, 950, 990, 1000, 1300):
            nested = b"[" * depth + b"]" * depth
            header, claims = FORGER.header({"kid": ABSENT}), FORGER.claims(NOW, {where: ABSENT})
            if where in {"kid", "alg"}:
                header = FORGER.header({where: ABSENT})
                header = header[:-1] + b',"%s":%s}' % (where.encode(), nested)
            else:
                header = FORGER.header()
                claims = claims[:-1] + b',"%s":%s}' % (where.encode(), nested)
            assert code_of(FORGER.seal(header, claims)) is not None

    attack()
    deeper(sys.getrecursionlimit() // 2, attack)


# What nobody thought of.

ANYTHING = st.text(st.characters(), max_size=200)  # lone surrogates too
TOKENISH = st.text(st.sampled_from("eyJhbGciOi-_=+/. ,\n\0\u00e4A1"), max_size=200)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | ANYTHING
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANYTHING, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """Draw a good token with one to four small changes."""
    token = GOOD
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(token) - 1)))
        match draw(st.sampled_from(["flip", "delete", "insert", "replace", "move", "double"])):
            case "flip":
                letter = chr(ord(token[at : at + 1] or "A") ^ 1 << draw(st.integers(0, 6)))
                token = token[:at] + letter + token[at + 1 :]
            case "delete":
                token = token[:at] + token[at + draw(st.integers(1, 5)) :]
            case "insert":
                token = token[:at] + draw(st.characters()) + token[at:]
            case "replace":
                token = token[:at] + draw(st.sampled_from("AQgw-_.=+/")) + token[at + 1 :]
            case "move":
                token = token[at:] + token[:at]
            case _:
                token = token[:at] + token[: at + 1]
    return token


GOOD = FORGER.token(NOW)
OTHERS = [GOOD, FORGER.token(NOW), FORGER.token(NOW + 1), NEIGHBOUR.token(NOW), UNBOUND.token(NOW)]


@settings(max_examples=400, deadline=None)
@given(mutations())
@example(respelled(GOOD))
@example(f"{GOOD}==")
@example(f"{GOOD}\n")
def test_a_changed_token_never_verifies(token: str) -> None:
    assume(token != GOOD)
    assert code_of(token) is not None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([p for one in OTHERS for p in one.split(".")]), max_size=5))
def test_parts_of_several_tokens_never_make_one(parts: list[str]) -> None:
    token = ".".join(parts)
    # Ed25519 signs letter for letter; only the whole of a good token is good.
    assert (code_of(token) is None) == (token in OTHERS)


@settings(max_examples=200, deadline=None)
@given(ANYTHING | TOKENISH)
def test_any_text_is_refused_and_nothing_worse(token: str) -> None:
    assert code_of(token) is not None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_that_are_signed_are_refused(data: bytes, in_header: bool) -> None:
    header, claims = (data, FORGER.claims(NOW)) if in_header else (FORGER.header(), data)
    assert code_of(FORGER.seal(header, claims)) is not None


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["iss", "sub", "aud", "iat", "exp", "jti", "cnf"]), JSON)
@example("exp", float("nan"))
@example("iat", 10**2000)
@example("cnf", {"x5t#S256": ["\ud800"]})
def test_any_value_of_a_claim_is_right_or_refused(claim: str, value: Any) -> None:
    assume(claim not in {"iat", "exp"} or type(value) is not int or abs(value - int(NOW)) > 200)
    assert code_of(FORGER.token(NOW, claims={claim: value})) is not None


@settings(max_examples=200, deadline=None)
@given(ANYTHING, JSON)
def test_any_other_member_is_refused(name: str, value: Any) -> None:
    assume(name not in json.loads(FORGER.header()).keys() | json.loads(FORGER.claims(NOW)).keys())
    assert code_of(FORGER.token(NOW, header={name: value})) == "header_invalid"
    assert code_of(FORGER.token(NOW, claims={name: value})) in {"claim_unknown", "claims_invalid"}


# What must come in.


@pytest.mark.parametrize(("forger", "bound"), [(FORGER, CERTIFICATE), (UNBOUND, None)])
def test_a_good_token(forger: Forger, bound: str | None) -> None:
    token = forger.token(NOW, claims={"jti": base64url(JTI)})
    at = int(NOW)
    assert verifier().verify(token, NOW) == Claims(
        client="laptop",
        issued=at,
        expires=at + 60,
        jti=base64url(JTI),
        kid=forger.kid,
        bound=bound,
    )


@pytest.mark.parametrize("lifetime", [1, LIFETIME, LONGEST])
def test_lifetimes_that_are_accepted(lifetime: int) -> None:
    at = int(NOW)
    assert code_of(FORGER.token(NOW, claims={"exp": at + lifetime})) is None
    assert code_of(FORGER.token(NOW, claims={"exp": at + LONGEST + 1})) == "lifetime_refused"


def test_the_edges_of_the_leeway() -> None:
    at = 1_800_000_000
    token = FORGER.token(at)
    edges = {
        at - LEEWAY - 0.001: "token_early",
        at - LEEWAY: None,
        at: None,
        at + LIFETIME: None,
        at + LIFETIME + LEEWAY: None,
        at + LIFETIME + LEEWAY + 0.001: "token_expired",
    }
    by = verifier()
    assert {now: code_of(token, now) for now in edges} == edges, "read anew each time"
    assert {now: code_of(token, now, by) for now in edges} == edges, "remembered"


def test_the_order_of_members_and_blanks_between_them_are_free() -> None:
    header = json.dumps(dict(reversed(json.loads(FORGER.header()).items())), indent=1)
    claims = json.dumps(dict(reversed(json.loads(FORGER.claims(NOW)).items())), indent=1)
    assert code_of(FORGER.seal(header.encode(), claims.encode())) is None


def test_the_size_is_counted_to_the_letter() -> None:
    def padded(blanks: int) -> str:
        return FORGER.seal(FORGER.header() + b"  ", FORGER.claims(NOW) + b" " * blanks)

    fitting = {len(token): code_of(token) for token in map(padded, range(2600, 2800))}
    assert fitting.keys() > {SIZE, SIZE + 1}
    assert {code for size, code in fitting.items() if size <= SIZE} == {None}
    assert {code for size, code in fitting.items() if size > SIZE} == {"token_too_large"}


# Signatures are remembered: no further than they may be.


def test_a_signature_is_checked_once() -> None:
    ring = CountingRing(PUBLIC)
    by = Verifier(AUDIENCE, ring)
    token = FORGER.token(NOW)
    first = by.verify(token, NOW)
    assert by.verify(token, NOW + 30) == first
    assert ring.found == 1


def test_being_remembered_does_not_outlive_expiry() -> None:
    by = verifier()
    token = FORGER.token(NOW)
    assert code_of(token, NOW, by) is None
    assert code_of(token, NOW + 66, by) == "token_expired"
    assert code_of(token, NOW + 10**9, by) == "token_expired"
    assert code_of(token, NOW - 60, by) == "token_early", "the clock was set back"


def test_a_token_that_came_too_early_is_good_in_its_time() -> None:
    by = verifier()
    token = FORGER.token(NOW + 60)
    assert code_of(token, NOW, by) == "token_early"
    assert code_of(token, NOW + 60, by) is None


def test_what_one_verifier_remembers_another_does_not_know() -> None:
    token = FORGER.token(NOW)
    assert code_of(token, by=verifier()) is None
    rotated = Verifier(AUDIENCE, KeyRing(PUBLIC[1:]))
    elsewhere = Verifier("catalyst-gateway:elsewhere.example", KeyRing(PUBLIC))
    assert code_of(token, by=rotated) == "key_unknown"
    assert code_of(token, by=elsewhere) == "audience_refused"
    assert code_of(token, by=Verifier(AUDIENCE, KeyRing([]))) == "key_unknown"


def test_a_change_to_a_remembered_token_is_noticed() -> None:
    by = verifier()
    token = FORGER.token(NOW)
    assert code_of(token, by=by) is None
    assert code_of(respelled(token), by=by) == "token_malformed"
    head, claims, signature = token.split(".")
    raw = unb64(signature)
    flipped = base64url(bytes([raw[0] ^ 1]) + raw[1:])
    assert code_of(f"{head}.{claims}.{flipped}", by=by) == "signature_invalid"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys.token, "_REMEMBERED", 3)
    ring = CountingRing(PUBLIC)
    by = Verifier(AUDIENCE, ring)
    tokens = [FORGER.token(NOW) for _ in range(5)]
    for token in tokens:
        by.verify(token, NOW)
    for token in tokens[2:]:
        by.verify(token, NOW)
    assert ring.found == 5, "the last three are remembered"
    for token in tokens[:2]:
        by.verify(token, NOW)
    assert ring.found == 7, "and no others"


def test_refused_tokens_are_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or whoever has no key could push out those who have one."""
    monkeypatch.setattr(keys.token, "_REMEMBERED", 1)
    ring = CountingRing(PUBLIC)
    by = Verifier(AUDIENCE, ring)
    token = FORGER.token(NOW)
    by.verify(token, NOW)
    for one in HOSTILE:
        if one.code not in {"token_early", "token_expired"}:  # these bear a good signature
            code_of(one.token, by=by)
    ring.found = 0
    by.verify(token, NOW)
    assert ring.found == 0


# Minting.


def unsigned(token: str) -> Iterator[Any]:
    for part in token.split(".")[:2]:
        yield json.loads(base64.urlsafe_b64decode(part + "=="))


@pytest.mark.parametrize("certificate", [CERTIFICATE, None])
def test_a_minted_token_says_what_is_documented_and_no_more(certificate: str | None) -> None:
    minter = Minter(FORGER.key, "laptop", AUDIENCE)
    token = minter.mint(NOW, JTI, certificate)
    header, claims = unsigned(token)
    assert header == {"alg": "EdDSA", "typ": "catalyst-tunnel+jwt", "kid": FORGER.kid}
    binding = {"cnf": {"x5t#S256": certificate}} if certificate else {}
    assert claims == binding | {
        "iss": "laptop",
        "sub": "laptop",
        "aud": AUDIENCE,
        "iat": 1_800_000_000,
        "exp": 1_800_000_060,
        "jti": "AAECAwQFBgcICQoLDA0ODw",
    }
    assert type(claims["iat"]) is type(claims["exp"]) is int
    assert len(token) < 1024
    assert verifier().verify(token, NOW).bound == certificate


def test_others_read_a_minted_token() -> None:
    token = Minter(FORGER.key, "laptop", AUDIENCE).mint(NOW, JTI, CERTIFICATE)
    options: Any = {"verify_exp": False, "verify_iat": False, "strict_aud": True}
    claims = jwt.decode(token, PUBLIC[0], ["EdDSA"], options, audience=AUDIENCE, issuer="laptop")
    assert claims["sub"] == "laptop"


@pytest.mark.parametrize("size", [0, 1, 15, 17, 22, 32, 64])
def test_a_jti_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Minter(FORGER.key, "laptop", AUDIENCE).mint(NOW, bytes(size), None)


def test_every_jti_makes_another_token() -> None:
    minter = Minter(FORGER.key, "laptop", AUDIENCE)
    assert minter.mint(NOW, JTI, None) == minter.mint(NOW, JTI, None)
    assert minter.mint(NOW, JTI, None) != minter.mint(NOW, bytes(16), None)


def test_minter_and_forger_agree() -> None:
    """They were written apart from each other, from the same page."""
    minted = Minter(FORGER.key, "laptop", AUDIENCE).mint(NOW, JTI, CERTIFICATE)
    forged = FORGER.token(NOW, claims={"jti": base64url(JTI)})
    assert list(unsigned(minted)) == list(unsigned(forged))


def test_a_refusal_says_nothing_but_its_code() -> None:
    with pytest.raises(TokenError) as caught:
        verifier().verify("hunter2." * 3, NOW)
    assert (str(caught.value), caught.value.args) == ("token_malformed", ("token_malformed",))
    assert caught.value.__cause__ is None
