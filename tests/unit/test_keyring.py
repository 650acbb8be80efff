import base64
import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from keys.errors import KeyFileError
from keys.keyring import (
    KeyRing,
    base64url,
    from_base64url,
    from_jwk,
    load_token_key,
    make_token_key,
    thumbprint,
    to_jwk,
)

# RFC 8037, appendices A.1 to A.3.
RFC_D = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
RFC_X = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
RFC_KID = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
RFC_JWK = {"kty": "OKP", "crv": "Ed25519", "x": RFC_X}


def a_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


# base64url.


@given(st.binary(max_size=100))
def test_base64url_there_and_back(data: bytes) -> None:
    text = base64url(data)
    assert not set(text) & set("+/=")
    assert from_base64url(text) == data


@given(st.text(max_size=12) | st.text("AQgw-_+/= \n", max_size=12))
def test_bytes_have_one_spelling(text: str) -> None:
    """Whatever is accepted is what we would have written."""
    try:
        data = from_base64url(text)
    except ValueError:
        return
    assert base64url(data) == text


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AAAAA",
        "AA==",
        "AAA=",
        "AB",  # as AA, and four bits that stand for nothing
        "AAB",
        "A+A/",
        "AA AA",
        " AAAA",
        "AAAA\n",
        "AAAA\0",
        "AA\u00e4A",
        "\uff21\uff21\uff21\uff21",
        "!!!!",
        "AA%3D",
        "====",
        "=",
    ],
)
def test_what_is_not_base64url(text: str) -> None:
    with pytest.raises(ValueError, match="not base64url"):
        from_base64url(text)


# Names of keys.


def test_the_thumbprint_of_rfc_8037() -> None:
    private = Ed25519PrivateKey.from_private_bytes(from_base64url(RFC_D))
    assert to_jwk(private.public_key()) == RFC_JWK
    assert thumbprint(private.public_key()) == thumbprint(from_jwk(RFC_JWK)) == RFC_KID


def test_a_thumbprint_is_made_of_the_sorted_members() -> None:
    """RFC 7638, section 3: no blanks, in order of names, hashed as UTF-8."""
    public = a_key().public_key()
    canonical = json.dumps(to_jwk(public), sort_keys=True, separators=(",", ":")).encode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(canonical).digest()).decode()
    assert thumbprint(public) == digest.rstrip("=")
    assert len(thumbprint(public)) == 43


def test_a_key_survives_its_jwk() -> None:
    public = a_key().public_key()
    assert from_jwk(to_jwk(public)) == public
    assert from_jwk(dict(reversed(to_jwk(public).items()))) == public


JWKS: dict[str, object] = {
    "a private one": RFC_JWK | {"d": RFC_D},
    "an empty private part": RFC_JWK | {"d": ""},
    "a kid besides": RFC_JWK | {"kid": RFC_KID},
    "an alg besides": RFC_JWK | {"alg": "EdDSA"},
    "without x": {"kty": "OKP", "crv": "Ed25519"},
    "without kty": {"crv": "Ed25519", "x": RFC_X},
    "without crv": {"kty": "OKP", "x": RFC_X},
    "kty EC": RFC_JWK | {"kty": "EC"},
    "kty oct": {"kty": "oct", "k": RFC_X},
    "kty in lower case": RFC_JWK | {"kty": "okp"},
    "crv Ed448": RFC_JWK | {"crv": "Ed448"},
    "crv X25519": RFC_JWK | {"crv": "X25519"},
    "crv in lower case": RFC_JWK | {"crv": "ed25519"},
    "crv a list": RFC_JWK | {"crv": ["Ed25519"]},
    "x of 31 bytes": RFC_JWK | {"x": base64url(bytes(31))},
    "x of 33 bytes": RFC_JWK | {"x": base64url(bytes(33))},
    "x empty": RFC_JWK | {"x": ""},
    "x padded": RFC_JWK | {"x": f"{RFC_X}="},
    "x spelled differently": RFC_JWK | {"x": f"{RFC_X[:-1]}p"},
    "x in the other alphabet": RFC_JWK | {"x": RFC_X.replace("_", "/")},
    "x with a line break": RFC_JWK | {"x": f"{RFC_X}\n"},
    "x in hexadecimal": RFC_JWK | {"x": from_base64url(RFC_X).hex()},
    "x a number": RFC_JWK | {"x": 1},
    "x null": RFC_JWK | {"x": None},
    "x a list": RFC_JWK | {"x": [RFC_X]},
    "a set of keys": {"keys": [RFC_JWK]},
    "a list": [RFC_JWK],
    "a string": json.dumps(RFC_JWK),
    "null": None,
    "empty": {},
}


@pytest.mark.parametrize("jwk", JWKS.values(), ids=JWKS)
def test_a_jwk_that_is_not_exactly_a_public_ed25519_key(jwk: object) -> None:
    with pytest.raises(ValueError, match=r"^the token key") as caught:
        from_jwk(jwk)
    assert RFC_D not in str(caught.value)


# Rings.


def test_a_ring_finds_what_it_accepts_and_nothing_else() -> None:
    first, second, stranger = a_key(), a_key(), a_key()
    ring = KeyRing([first.public_key(), second.public_key()])
    assert ring.find(thumbprint(first.public_key())) == first.public_key()
    assert ring.find(thumbprint(second.public_key())) == second.public_key()
    assert ring.signing is None
    kid = thumbprint(first.public_key())
    for other in (thumbprint(stranger.public_key()), "", f"{kid}=", kid[:-1], kid.swapcase()):
        assert ring.find(other) is None
    assert KeyRing([]).find(kid) is None


def test_the_signing_key_is_accepted_too() -> None:
    signing, other = a_key(), a_key()
    ring = KeyRing([other.public_key()], signing)
    assert ring.signing is signing
    assert ring.find(thumbprint(signing.public_key())) == signing.public_key()
    assert ring.find(thumbprint(other.public_key())) == other.public_key()


def test_a_ring_keeps_what_it_was_made_of() -> None:
    keys = [a_key().public_key()]
    ring = KeyRing(keys)
    late = a_key().public_key()
    keys.append(late)
    assert ring.find(thumbprint(late)) is None


# Files.


def test_a_key_survives_its_file(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "token"
    key = make_token_key(file)
    assert load_token_key(file).private_bytes_raw() == key.private_bytes_raw()
    assert make_token_key(tmp_path / "another").private_bytes_raw() != key.private_bytes_raw()


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_a_token_key_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_token_key(tmp_path / "keys" / "token")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys" / "token").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_a_token_key_is_never_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "token"
    key = make_token_key(file)
    with pytest.raises(FileExistsError):
        make_token_key(file)
    assert load_token_key(file).private_bytes_raw() == key.private_bytes_raw()
    assert [path.name for path in tmp_path.iterdir()] == ["token"]


def pem(key: Any, encryption: Any = None) -> bytes:
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    return text


@pytest.mark.parametrize("kind", ["P-256", "RSA", "Ed448", "X25519"])
def test_a_file_with_a_key_of_another_kind(tmp_path: Path, kind: str) -> None:
    makers: dict[str, Any] = {
        "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "RSA": lambda: rsa.generate_private_key(65537, 2048),
        "Ed448": ed448.Ed448PrivateKey.generate,
        "X25519": x25519.X25519PrivateKey.generate,
    }
    file = tmp_path / "token"
    file.write_bytes(pem(makers[kind]()))
    with pytest.raises(KeyFileError, match="not an Ed25519 key"):
        load_token_key(file)


def test_a_file_that_holds_no_private_key(tmp_path: Path) -> None:
    key = a_key()
    good = pem(key)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    openssh = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    file = tmp_path / "token"
    for content in (
        b"",
        b"\0" * 100,
        key.private_bytes_raw(),
        json.dumps(RFC_JWK | {"d": RFC_D}).encode(),
        public,
        good[:-40],
        good.replace(b"M", b"N", 1),
        pem(key, BestAvailableEncryption(b"secret")),
        openssh.replace(b"OPENSSH", b"UNKNOWN"),
    ):
        file.write_bytes(content)
        with pytest.raises(KeyFileError, match=r"token is not a PEM private key") as caught:
            load_token_key(file)
        said = str(caught.value)
        assert said == f"{file} is not a PEM private key without passphrase."


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_token_key(tmp_path / "none")
    with pytest.raises(OSError, match="directory"):
        load_token_key(tmp_path)
