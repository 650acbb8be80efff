"""Statements about keys: what a thief, a neighbour or a careless client could send, and is refused.

What a statement looks like is written down a second time here, by `tests.forge`.
"""

import json
import os
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from keys import sshkey, statement
from keys.jws import TokenError
from keys.keyring import KeyRing, to_jwk
from keys.statement import Author, Introduction, Retirement, Revocation, Statement
from tests.forge import ABSENT, Forger, b64, second_spelling, unb64

NOW = 1_800_000_000.75
AT = int(NOW)
JTI = bytes(range(16))
AUDIENCE = "catalyst-gateway:mcp.example.com"
OLD, NEW, SSH, STRANGER = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(4))
LAPTOP = Forger(OLD, "laptop", AUDIENCE, None)
FRESH = Forger(NEW, "laptop", AUDIENCE, None)
THIEF = Forger(STRANGER, "laptop", AUDIENCE, None)
RING = KeyRing([OLD.public_key()])
AUTHOR = Author(OLD, "laptop", AUDIENCE)
CSR = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
PRINT = b64(bytes(32))
FINGERPRINT = sshkey.fingerprint(sshkey.public_line(SSH.public_key()))


def proof_payload(**changes: Any) -> dict[str, Any]:
    good = {"aud": AUDIENCE, "sub": "laptop", "jti": b64(JTI), "old": LAPTOP.kid}
    return {name: value for name, value in (good | changes).items() if value is not ABSENT}


def token_proof(
    forger: Forger = FRESH, *, kind: str = "catalyst-key-proof+jwt", **changes: Any
) -> str:
    return forger.seal(forger.header({"typ": kind}), json.dumps(proof_payload(**changes)).encode())


def ssh_proof(
    key: Ed25519PrivateKey = SSH,
    audience: str = AUDIENCE,
    client: str = "laptop",
    jti: str = b64(JTI),
) -> str:
    text = b"catalyst-ssh-proof\0" + b"\0".join(one.encode() for one in (audience, client, jti))
    return b64(key.sign(text))


def ssh_line(key: Ed25519PrivateKey = SSH) -> str:
    return sshkey.public_line(key.public_key())


INTRODUCED: dict[str, Any] = {
    "token_key": to_jwk(NEW.public_key()),
    "token_proof": token_proof(),
    "csr": CSR,
    "ssh_key": ssh_line(),
    "ssh_proof": ssh_proof(),
}
RETIRED: dict[str, Any] = {
    "kids": [PRINT],
    "certificates": [PRINT],
    "ssh_keys": [FINGERPRINT],
    "compromised": True,
}


def made(forger: Forger = LAPTOP, *, kind: str = "catalyst-keys+jwt", **changes: Any) -> str:
    """A statement that is good, but for these members."""
    members = {"jti": b64(JTI), "generation": 7, "introduce": INTRODUCED} | changes
    return forger.seal(forger.header({"typ": kind}), forger.claims(NOW, members))


def introducing(**changes: Any) -> str:
    wish = {name: one for name, one in (INTRODUCED | changes).items() if one is not ABSENT}
    return made(introduce=wish)


def retiring(**changes: Any) -> str:
    wish = {name: one for name, one in (RETIRED | changes).items() if one is not ABSENT}
    return made(introduce=ABSENT, retire=wish)


def read(text: str, now: float = NOW, ring: KeyRing = RING) -> Statement:
    return statement.read(text, AUDIENCE, ring, now)


def refusal(text: str, now: float = NOW, ring: KeyRing = RING) -> str:
    with pytest.raises(TokenError) as told:
        read(text, now, ring)
    return told.value.code


# Good ones.


def test_what_is_made_here_is_what_is_documented() -> None:
    ours = AUTHOR.introduce(7, NOW, JTI, token_key=NEW, csr=CSR, ssh_key=SSH)
    for text in (ours, made()):
        said = read(text)
        assert (said.client, said.kid, said.jti) == ("laptop", LAPTOP.kid, b64(JTI))
        assert (said.issued, said.expires, said.generation) == (AT, AT + 60, 7)
        assert isinstance(said.wish, Introduction)
        assert said.wish.token_key == NEW.public_key()
        assert (said.wish.csr, said.wish.ssh_key) == (CSR, ssh_line())
        assert said.method == "keys.introduce"


def test_a_retirement() -> None:
    ours = AUTHOR.retire(
        7, NOW, JTI, kids=[PRINT], certificates=[PRINT], ssh_keys=[FINGERPRINT], compromised=True
    )
    wanted = Retirement(frozenset({PRINT}), frozenset({PRINT}), frozenset({FINGERPRINT}), True)
    for text in (ours, retiring()):
        said = read(text)
        assert (said.wish, said.method) == (wanted, "keys.retire")


def test_a_revocation() -> None:
    ours = AUTHOR.revoke(7, NOW, JTI)
    for text in (ours, made(introduce=ABSENT, revoke={"client": "laptop"})):
        said = read(text)
        assert (said.wish, said.method) == (Revocation(), "keys.revoke")


@pytest.mark.parametrize(
    "wish",
    [
        {"token_key": INTRODUCED["token_key"], "token_proof": INTRODUCED["token_proof"]},
        {"csr": CSR},
        {"ssh_key": INTRODUCED["ssh_key"], "ssh_proof": INTRODUCED["ssh_proof"]},
    ],
)
def test_one_family_alone(wish: dict[str, str]) -> None:
    assert isinstance(read(made(introduce=wish)).wish, Introduction)


def test_no_private_half_is_in_it() -> None:
    text = AUTHOR.introduce(7, NOW, JTI, token_key=NEW, csr=CSR, ssh_key=SSH)
    for part in text.split(".")[:2]:
        for key in (OLD, NEW, SSH):
            assert b64(key.private_bytes_raw()) not in part
            assert '"d"' not in part


# Who signed, for whom, when.


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (made(THIEF), "key_unknown"),
        (made(Forger(STRANGER, "laptop", AUDIENCE, None), kid=LAPTOP.kid), "key_unknown"),
        (THIEF.seal(LAPTOP.header({"typ": "catalyst-keys+jwt"}), b"{}"), "signature_invalid"),
        (made(kind="catalyst-tunnel+jwt"), "type_refused"),
        (made(kind="catalyst-key-proof+jwt"), "type_refused"),
        (made(kind="JWT"), "type_refused"),
        (LAPTOP.token(NOW), "type_refused"),
        (token_proof(LAPTOP), "type_refused"),
        (made(aud="catalyst-gateway:other.example"), "audience_refused"),
        (made(aud=[AUDIENCE]), "audience_refused"),
        (made(sub="desk"), "subject_refused"),
        (made(iss=""), "subject_refused"),
        (made(exp=AT + 61), "lifetime_refused"),
        (made(exp=AT), "lifetime_refused"),
        (made(exp=float(AT + 60)), "time_invalid"),
        (made(iat=True), "time_invalid"),
        (made(iat=AT + 86400, exp=AT + 86460), "token_early"),
        (made(iat=AT - 86400, exp=AT - 86340), "token_expired"),
        (made(jti=""), "jti_invalid"),
        (made(jti=b64(bytes(15))), "jti_invalid"),
        (made(jti=second_spelling(b64(JTI))), "jti_invalid"),
        *((made(**{name: ABSENT}), "claim_missing") for name in ("iss", "sub", "aud", "iat")),
        *((made(**{name: ABSENT}), "claim_missing") for name in ("exp", "jti")),
        (made(cnf={"x5t#S256": PRINT}), "claim_unknown"),
        (made(more=1), "claim_unknown"),
        (made(generation=ABSENT), "generation_invalid"),
        *((made(generation=one), "generation_invalid") for one in (-1, 7.0, "7", True, None, [7])),
        (made(introduce=ABSENT), "wish_invalid"),
        (made(retire=RETIRED), "wish_invalid"),
        (made(introduce=ABSENT, revoke={"client": "desk"}), "wish_invalid"),
        (made(introduce=ABSENT, revoke={}), "wish_invalid"),
        (made(introduce=ABSENT, revoke=True), "wish_invalid"),
        (made() + "=", "token_malformed"),
        ("", "token_malformed"),
        ("x" * (statement.SIZE + 1), "token_too_large"),
        ("ä.b.c", "token_not_ascii"),
    ],
)
def test_a_statement_that_does_not_hold(text: str, code: str) -> None:
    assert refusal(text) == code


def test_its_minute() -> None:
    text = made()
    assert read(text, AT - 5).generation == read(text, AT + 65).generation == 7
    assert refusal(text, AT - 6) == "token_early"
    assert refusal(text, AT + 66) == "token_expired"
    assert refusal(text, NOW + 86400) == "token_expired"
    assert refusal(text, NOW - 86400) == "token_early"


def test_a_member_that_is_named_twice() -> None:
    text = LAPTOP.claims(NOW, {"generation": 7, "introduce": {"csr": CSR}})
    twice = text.replace(b'"generation"', b'"generation": 8, "generation"')
    header = LAPTOP.header({"typ": "catalyst-keys+jwt"})
    assert refusal(LAPTOP.seal(header, twice)) == "claims_invalid"


# Proofs.


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token_proof": ABSENT}, "proof_missing"),
        ({"token_key": ABSENT}, "proof_missing"),
        ({"ssh_proof": ABSENT}, "proof_missing"),
        ({"ssh_key": ABSENT}, "proof_missing"),
        ({"more": 1}, "wish_invalid"),
        ({"token_key": to_jwk(OLD.public_key())}, "token_key_unchanged"),
        ({"token_key": to_jwk(STRANGER.public_key())}, "token_proof_invalid"),
        ({"token_key": to_jwk(NEW.public_key()) | {"d": PRINT}}, "token_key_invalid"),
        ({"token_key": PRINT}, "token_key_invalid"),
        ({"token_proof": None}, "token_proof_invalid"),
        ({"token_proof": ""}, "token_proof_invalid"),
        ({"token_proof": token_proof(THIEF)}, "token_proof_invalid"),
        ({"token_proof": token_proof(LAPTOP)}, "token_proof_invalid"),
        ({"token_proof": token_proof(kind="catalyst-keys+jwt")}, "token_proof_invalid"),
        ({"token_proof": token_proof(kind="catalyst-tunnel+jwt")}, "token_proof_invalid"),
        ({"token_proof": token_proof(aud="catalyst-gateway:other")}, "token_proof_invalid"),
        ({"token_proof": token_proof(sub="desk")}, "token_proof_invalid"),
        ({"token_proof": token_proof(jti=b64(bytes(16)))}, "token_proof_invalid"),
        ({"token_proof": token_proof(old=FRESH.kid)}, "token_proof_invalid"),
        ({"token_proof": token_proof(old=ABSENT)}, "token_proof_invalid"),
        ({"token_proof": token_proof(exp=AT + 60)}, "token_proof_invalid"),
        ({"token_proof": INTRODUCED["ssh_proof"]}, "token_proof_invalid"),
        ({"csr": ""}, "csr_invalid"),
        ({"csr": None}, "csr_invalid"),
        ({"csr": [CSR]}, "csr_invalid"),
        ({"ssh_key": ssh_line(STRANGER)}, "ssh_proof_invalid"),
        ({"ssh_proof": ssh_proof(STRANGER)}, "ssh_proof_invalid"),
        ({"ssh_proof": ssh_proof(NEW)}, "ssh_proof_invalid"),
        ({"ssh_proof": ssh_proof(audience="catalyst-gateway:other")}, "ssh_proof_invalid"),
        ({"ssh_proof": ssh_proof(client="desk")}, "ssh_proof_invalid"),
        ({"ssh_proof": ssh_proof(jti=b64(bytes(16)))}, "ssh_proof_invalid"),
        # What was signed for enrolment serves for nothing else.
        ({"ssh_proof": ssh_proof(audience="", client="", jti=LAPTOP.kid)}, "ssh_proof_invalid"),
        ({"ssh_proof": ""}, "ssh_proof_invalid"),
        ({"ssh_proof": None}, "ssh_proof_invalid"),
        ({"ssh_proof": INTRODUCED["token_proof"]}, "ssh_proof_invalid"),
        ({"ssh_proof": second_spelling(ssh_proof())}, "ssh_proof_invalid"),
        ({"ssh_key": f"{ssh_line()} comment"}, "ssh_key_invalid"),
        ({"ssh_key": f'command="sh" {ssh_line()}'}, "ssh_key_invalid"),
        ({"ssh_key": f"{ssh_line()}\n{ssh_line(STRANGER)}"}, "ssh_key_invalid"),
        ({"ssh_key": ssh_line().replace("ssh-ed25519", "ssh-rsa")}, "ssh_key_invalid"),
        ({"ssh_key": ssh_line()[:-1]}, "ssh_key_invalid"),
        ({"ssh_key": None}, "ssh_key_invalid"),
    ],
)
def test_an_introduction_that_does_not_hold(changes: dict[str, Any], code: str) -> None:
    assert refusal(introducing(**changes)) == code


@pytest.mark.parametrize("wish", [None, {}, [], "x", 1, True, [INTRODUCED]])
def test_an_introduction_of_nothing(wish: object) -> None:
    assert refusal(made(introduce=wish)) == "wish_invalid"


def test_proofs_of_another_statement_do_not_serve_again() -> None:
    """Whoever saw one go by cannot introduce its keys in his own name, or in its name again."""
    desk = Author(STRANGER, "desk", AUDIENCE)
    seen = Author(OLD, "laptop", AUDIENCE).introduce(7, NOW, JTI, token_key=NEW, ssh_key=SSH)
    wish = json.loads(_payload(seen))["introduce"]
    forger = Forger(STRANGER, "desk", AUDIENCE, None)
    ring = KeyRing([STRANGER.public_key(), OLD.public_key()])
    stolen = made(forger, introduce=wish)
    assert desk.kid == forger.kid
    assert refusal(stolen, ring=ring) == "token_proof_invalid"
    only_ssh = {name: wish[name] for name in ("ssh_key", "ssh_proof")}
    assert refusal(made(forger, introduce=only_ssh), ring=ring) == "ssh_proof_invalid"
    assert refusal(made(jti=b64(os.urandom(16)), introduce=wish)) == "token_proof_invalid"


def _payload(text: str) -> bytes:
    return unb64(text.split(".")[1])


def test_a_proof_is_no_login_signature() -> None:
    """An SSH login signs a session id with its length in front: RFC 4252 section 7."""
    signed: list[bytes] = []

    class Recorder:
        def sign(self, text: bytes) -> bytes:
            signed.append(text)
            return SSH.sign(text)

    sshkey.prove(Recorder(), AUDIENCE, "laptop", b64(JTI))  # type: ignore[arg-type]
    assert signed[0].startswith(b"catalyst-ssh-proof\0")
    assert not signed[0].startswith(b"\0\0\0")
    assert not signed[0].startswith(b"SSHSIG")


# Retirements.


@pytest.mark.parametrize(
    "changes",
    [
        *({name: ABSENT} for name in RETIRED),
        {"more": []},
        {"kids": [], "certificates": [], "ssh_keys": []},
        *({"kids": one} for one in (PRINT, None, {}, [1], [None], [""], [PRINT[:-1]], [[PRINT]])),
        {"kids": [second_spelling(PRINT)]},
        {"kids": ["../../../../../../../../../../etc/passwd00000"]},
        {"kids": [PRINT] * (statement.MOST + 1)},
        *({"certificates": one} for one in (PRINT, [FINGERPRINT], [{}])),
        *({"ssh_keys": one} for one in ([PRINT], ["SHA256:"], [f"{FINGERPRINT}\n"], [ssh_line()])),
        *({"compromised": one} for one in (None, 0, 1, "true", [])),
    ],
)
def test_a_retirement_that_does_not_hold(changes: dict[str, Any]) -> None:
    assert refusal(retiring(**changes)) == "wish_invalid"


# Whatever comes.


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_refused(text: str) -> None:
    refusal(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.sampled_from(["introduce", "retire", "revoke", "generation", "jti"]), json_values)
def test_any_member_is_refused_or_read(name: str, value: object) -> None:
    """Signed by the right key, so that only the form can be what is wrong."""
    try:
        read(
            made(**({"introduce": ABSENT} if name in ("retire", "revoke") else {}), **{name: value})
        )
    except TokenError:
        return
    assert name == "generation"


@given(st.sampled_from(sorted(INTRODUCED)), json_values)
def test_any_value_in_an_introduction_is_refused_or_read(name: str, value: object) -> None:
    try:
        read(introducing(**{name: value}))
    except TokenError:
        return
    assert name == "csr" and isinstance(value, str)
