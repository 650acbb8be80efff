import base64
import datetime
import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.certs import (
    CA_DAYS,
    CLIENT_DAYS,
    Authority,
    belongs,
    facts,
    issue,
    load_authority,
    load_private,
    make_authority,
    make_request,
    private_pem,
)
from keys.errors import KeyFileError

USES = [
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
]
NOW = 1_800_000_000.75
DAY = 86400.0
OPENSSL = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on this machine")

AUTHORITY = make_authority("catalyst clients", NOW)
OTHER = make_authority("catalyst clients", NOW)
KEY = ec.generate_private_key(ec.SECP256R1())
REQUEST = make_request(KEY)
LEAF = issue(AUTHORITY, REQUEST, "laptop", NOW, CLIENT_DAYS)


def load(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def pem_of(der: bytes, label: str = "CERTIFICATE") -> bytes:
    lines = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{lines}-----END {label}-----\n".encode()


def der_of(request: bytes) -> bytes:
    return x509.load_pem_x509_csr(request).public_bytes(Encoding.DER)


def request_pem(der: bytes) -> bytes:
    return pem_of(der, "CERTIFICATE REQUEST")


def request_of(key: Any, algorithm: Any = hashes.SHA256(), **options: Any) -> bytes:  # noqa: B008
    builder = x509.CertificateSigningRequestBuilder(**options)
    if "subject_name" not in options:
        builder = builder.subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def verify(leaf: bytes, authority: Authority, now: float) -> None:
    """Check a chain as a server does, with the web's rules, but for one.

    The web wants a name in subjectAltName. A client is known by its thumbprint; it has none.
    """
    nameless = verification.ExtensionPolicy.webpki_defaults_ee().may_be_present(
        x509.SubjectAlternativeName, verification.Criticality.AGNOSTIC, None
    )
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([authority.certificate]))
        .time(moment(now))
        .extension_policies(
            ca_policy=verification.ExtensionPolicy.webpki_defaults_ca(), ee_policy=nameless
        )
        .build_client_verifier()
    )
    assert verifier.verify(load(leaf), []).chain == [load(leaf), authority.certificate]


# The chain.


@pytest.mark.parametrize("now", [NOW - 299, NOW, NOW + 364 * DAY])
def test_a_client_certificate_verifies(now: float) -> None:
    verify(LEAF, AUTHORITY, now)


@pytest.mark.parametrize("now", [0.0, NOW - 301, NOW + 365 * DAY + 1, NOW + 9 * 365 * DAY])
def test_it_does_not_verify_before_or_after_its_dates(now: float) -> None:
    with pytest.raises(verification.VerificationError):
        verify(LEAF, AUTHORITY, now)


def test_it_does_not_verify_under_another_generation() -> None:
    with pytest.raises(verification.VerificationError):
        verify(LEAF, OTHER, NOW)
    impostor = Authority(AUTHORITY.certificate, OTHER.key)  # the name is right, the key is not
    with pytest.raises(verification.VerificationError):
        verify(issue(impostor, REQUEST, "laptop", NOW, 1), AUTHORITY, NOW)


def test_a_client_certificate_cannot_issue_others() -> None:
    """Neither to a verifier, nor to us."""
    upstart = Authority(load(LEAF), KEY)
    forged = issue(upstart, REQUEST, "admin", NOW, 1)
    store = verification.Store([AUTHORITY.certificate])
    verifier = verification.PolicyBuilder().store(store).time(moment(NOW)).build_client_verifier()
    with pytest.raises(verification.VerificationError):
        verifier.verify(load(forged), [load(LEAF)])
    with pytest.raises(KeyFileError, match="not a CA's certificate"):
        load_authority(LEAF, private_pem(KEY))


@OPENSSL
def test_openssl_agrees(tmp_path: Path) -> None:
    """It is what NGINX verifies with."""
    (tmp_path / "ca").write_bytes(AUTHORITY.certificate_pem())
    (tmp_path / "leaf").write_bytes(LEAF)

    def openssl(*more: str, now: float = NOW) -> subprocess.CompletedProcess[str]:
        command = ["openssl", "verify", "-x509_strict", "-attime", str(int(now)), "-CAfile", "ca"]
        return subprocess.run(
            [*command, *more, "leaf"], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    assert openssl("-purpose", "sslclient").stdout == "leaf: OK\n"
    assert "unsuitable certificate purpose" in openssl("-purpose", "sslserver").stderr
    assert "expired" in openssl(now=NOW + 366 * DAY).stderr
    (tmp_path / "ca").write_bytes(OTHER.certificate_pem())
    assert openssl().returncode != 0


# The CA.


def test_every_generation_has_a_name_of_its_own() -> None:
    """NGINX would go on trusting the old one's certificates under the new one's name."""
    names = {make_authority("same", NOW).certificate.subject.rfc4514_string() for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith("CN=same ") for name in names)


def test_what_the_ca_says_of_itself() -> None:
    certificate = AUTHORITY.certificate
    assert certificate.version is x509.Version.v3
    assert certificate.issuer == certificate.subject
    certificate.verify_directly_issued_by(certificate)
    assert isinstance(certificate.signature_hash_algorithm, hashes.SHA256)
    said = {one.value.__class__: one for one in certificate.extensions}
    basic = said[x509.BasicConstraints]
    assert basic.critical
    assert basic.value == x509.BasicConstraints(ca=True, path_length=0)
    assert said[x509.KeyUsage].critical
    assert uses(certificate) == {"key_cert_sign", "crl_sign"}
    assert said.keys() == {x509.BasicConstraints, x509.KeyUsage, x509.SubjectKeyIdentifier}
    assert AUTHORITY.key.curve.name == "secp256r1"


def test_the_dates_of_the_ca() -> None:
    certificate = AUTHORITY.certificate
    assert certificate.not_valid_before_utc == moment(int(NOW) - 300)
    assert certificate.not_valid_after_utc == moment(int(NOW) + CA_DAYS * DAY)


def test_a_name_too_long_for_a_certificate_is_cut_and_the_generation_is_not() -> None:
    """A domain may have 253 characters, a common name 64."""
    long = f"catalyst clients of {'long.' * 40}example.com"
    names = {make_authority(long, NOW).certificate.subject for _ in range(10)}
    assert len(names) == 10
    for name in names:
        (common,) = name
        assert str(common.value).rpartition(" ")[0] == long[:55]
        assert len(str(common.value)) == 64


def test_a_ca_survives_its_files() -> None:
    loaded = load_authority(AUTHORITY.certificate_pem(), AUTHORITY.key_pem())
    assert loaded.certificate == AUTHORITY.certificate
    verify(issue(loaded, REQUEST, "laptop", NOW, 1), AUTHORITY, NOW)


def broken(pem: bytes, old: str, new: str) -> bytes:
    """Return the certificate with some bytes of its DER form changed."""
    der = load(pem).public_bytes(Encoding.DER)
    assert bytes.fromhex(old) in der
    return pem_of(der.replace(bytes.fromhex(old), bytes.fromhex(new), 1))


VERSION_3, VERSION_6 = "a003020102", "a003020105"
EC_KEY, NO_KEY = "06072a8648ce3d0201", "06072a8648ce3d027f"


def test_files_that_are_no_ca() -> None:
    certificate, key = AUTHORITY.certificate_pem(), AUTHORITY.key_pem()
    cases = {
        "PEM certificate": [
            (b"", key),
            (key, key),
            (certificate[:-60], key),
            (AUTHORITY.certificate.public_bytes(Encoding.DER), key),
            (certificate + OTHER.certificate_pem(), key),
            (broken(certificate, VERSION_3, VERSION_6), key),
            (broken(certificate, EC_KEY, NO_KEY), key),
        ],
        "key is not the one": [(certificate, OTHER.key_pem()), (certificate, private_pem(KEY))],
        "CA's certificate": [(LEAF, private_pem(KEY)), (LEAF, key)],
        "private key": [(certificate, b""), (certificate, certificate), (certificate, key[:-50])],
    }
    for words, pairs in cases.items():
        for pair in pairs:
            with pytest.raises(KeyFileError, match=words):
                load_authority(*pair)


def test_a_private_key_of_another_kind() -> None:
    kinds: list[Any] = [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ]
    for key in kinds:
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        with pytest.raises(KeyFileError, match="not a P-256 key"):
            load_private(text)
    locked = BestAvailableEncryption(b"secret")
    text = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked)
    with pytest.raises(KeyFileError, match="without passphrase"):
        load_private(text)
    assert load_private(private_pem(KEY)).private_numbers() == KEY.private_numbers()


# What is issued.


def uses(certificate: x509.Certificate) -> set[str]:
    value = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    return {name for name in USES if getattr(value, name)}


def check_leaf(pem: bytes, client: str, key: ec.EllipticCurvePrivateKey) -> None:
    """Check that a certificate says what we say, and nothing besides."""
    certificate = load(pem)
    assert certificate.version is x509.Version.v3
    assert certificate.subject == x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, client)])
    assert certificate.issuer == AUTHORITY.certificate.subject
    certificate.verify_directly_issued_by(AUTHORITY.certificate)
    assert certificate.public_key() == key.public_key()
    said: dict[Any, Any] = {one.value.__class__: one for one in certificate.extensions}
    assert said.keys() == {
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.AuthorityKeyIdentifier,
    }
    assert said[x509.BasicConstraints].critical
    assert not said[x509.BasicConstraints].value.ca
    assert said[x509.KeyUsage].critical
    assert uses(certificate) == {"digital_signature"}
    assert list(said[x509.ExtendedKeyUsage].value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    ours = AUTHORITY.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    identifier = said[x509.AuthorityKeyIdentifier].value.key_identifier
    assert identifier == ours.value.digest


def test_what_a_client_certificate_says() -> None:
    check_leaf(LEAF, "laptop", KEY)


def test_of_the_request_only_the_key_is_taken() -> None:
    names = [(NameOID.COMMON_NAME, "admin"), (NameOID.ORGANIZATION_NAME, "Catalyst")]
    subject = x509.Name([x509.NameAttribute(*name) for name in names])
    every = dict.fromkeys([*USES, "encipher_only", "decipher_only"], True)
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    wishes: list[tuple[x509.ExtensionType, bool]] = [
        (x509.BasicConstraints(ca=True, path_length=9), True),
        (x509.KeyUsage(**every), True),
        (x509.SubjectAlternativeName([x509.DNSName("*"), x509.DNSName("example.com")]), False),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False),
        (x509.NameConstraints([x509.DNSName("example.com")], None), True),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),
    ]
    for value, critical in wishes:
        builder = builder.add_extension(value, critical=critical)
    builder = builder.add_attribute(x509.ObjectIdentifier("1.2.840.113549.1.9.7"), b"challenge")
    request = builder.sign(KEY, hashes.SHA512()).public_bytes(Encoding.PEM)
    check_leaf(issue(AUTHORITY, request, "laptop", NOW, 1), "laptop", KEY)


@settings(max_examples=30, deadline=None)
@given(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True), st.integers(1, 3650))
def test_every_client_name_and_term_makes_a_certificate(client: str, days: int) -> None:
    pem = issue(AUTHORITY, REQUEST, client, NOW, days)
    check_leaf(pem, client, KEY)
    verify(pem, AUTHORITY, NOW)


def test_the_dates_of_a_client_certificate() -> None:
    for days in (1, 30, CLIENT_DAYS):
        told = facts(issue(AUTHORITY, REQUEST, "laptop", NOW, days))
        assert told.not_before == int(NOW) - 300, "a clock that is a little behind"
        assert told.not_after == int(NOW) + days * DAY
    with pytest.raises(ValueError, match="after"):
        issue(AUTHORITY, REQUEST, "laptop", NOW, -1)


def test_no_two_certificates_are_the_same() -> None:
    again = issue(AUTHORITY, REQUEST, "laptop", NOW, CLIENT_DAYS)
    assert load(again).serial_number != load(LEAF).serial_number
    assert facts(again).thumbprint != facts(LEAF).thumbprint


# Requests that are refused.


def test_a_request_proves_its_key_and_asks_for_no_name() -> None:
    request = x509.load_pem_x509_csr(REQUEST)
    assert request.is_signature_valid
    assert request.public_key() == KEY.public_key()
    assert request.subject.rfc4514_string() == "CN=catalyst-tunnel"
    assert not list(request.extensions)
    assert b"PRIVATE" not in REQUEST


@pytest.mark.parametrize(
    "make",
    [
        lambda: request_of(rsa.generate_private_key(65537, 2048)),
        lambda: request_of(rsa.generate_private_key(65537, 1024)),
        lambda: request_of(dsa.generate_private_key(2048)),
        lambda: request_of(ed25519.Ed25519PrivateKey.generate(), None),
        lambda: request_of(ed448.Ed448PrivateKey.generate(), None),
        lambda: request_of(ec.generate_private_key(ec.SECP384R1())),
        lambda: request_of(ec.generate_private_key(ec.SECP521R1())),
        lambda: request_of(ec.generate_private_key(ec.SECP256K1())),
        lambda: request_of(ec.generate_private_key(ec.BrainpoolP256R1())),
    ],
    ids=["RSA", "RSA-1024", "DSA", "Ed25519", "Ed448", "P-384", "P-521", "secp256k1", "brainpool"],
)
def test_a_key_of_another_kind(make: Any) -> None:
    request = make()
    assert x509.load_pem_x509_csr(request).is_signature_valid
    with pytest.raises(ValueError, match="must be a P-256 key"):
        issue(AUTHORITY, request, "laptop", NOW, 1)


def test_a_key_that_the_asker_does_not_hold() -> None:
    """Somebody else's public key, under a signature that is not that key's."""
    stolen = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    thief = ec.generate_private_key(ec.SECP256R1())
    own = thief.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    der = der_of(make_request(thief))
    assert own in der
    with pytest.raises(ValueError, match="not signed with its own key"):
        issue(AUTHORITY, request_pem(der.replace(own, stolen)), "laptop", NOW, 1)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(der_of(REQUEST)) * 8 - 1))
def test_a_request_with_any_bit_flipped(bit: int) -> None:
    der = bytearray(der_of(REQUEST))
    der[bit // 8] ^= 1 << bit % 8
    try:
        issued = issue(AUTHORITY, request_pem(bytes(der)), "laptop", NOW, 1)
    except ValueError as exc:
        assert re.match(r"the (csr is not|TLS key must)", str(exc))
    else:  # a spelling of what the signature does not cover
        assert x509.load_pem_x509_certificate(issued).public_key() == KEY.public_key()


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_for_a_request(data: bytes) -> None:
    for request in (data, request_pem(data), REQUEST[: len(data) % len(REQUEST)]):
        with pytest.raises(ValueError, match=r"^the csr is not a PKCS #10 request in PEM$"):
            issue(AUTHORITY, request, "laptop", NOW, 1)


def test_what_is_no_request() -> None:
    der = der_of(REQUEST)
    version = der.index(bytes.fromhex("020100"))
    for request in (
        LEAF,
        AUTHORITY.certificate_pem(),
        private_pem(KEY),
        der,
        request_pem(der + b"\0"),
        request_pem(der[:version] + bytes.fromhex("020105") + der[version + 3 :]),
        request_pem(der.replace(bytes.fromhex(EC_KEY), bytes.fromhex(NO_KEY))),
    ):
        with pytest.raises(ValueError, match="not a PKCS #10 request") as caught:
            issue(AUTHORITY, request, "laptop", NOW, 1)
        assert "PRIVATE" not in str(caught.value)


@pytest.mark.parametrize("client", ["", "x" * 65])
def test_a_client_name_that_no_certificate_can_hold(client: str) -> None:
    with pytest.raises(ValueError, match="length"):
        issue(AUTHORITY, REQUEST, client, NOW, 1)


# What is asked of a certificate.


def test_the_thumbprint_is_of_the_der_form() -> None:
    """RFC 8705, section 3.1; however the PEM is written."""
    der = load(LEAF).public_bytes(Encoding.DER)
    expected = base64.urlsafe_b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")
    one_line = b"-----BEGIN CERTIFICATE-----\n%s\n-----END CERTIFICATE-----" % base64.b64encode(der)
    for pem in (LEAF, one_line, LEAF.replace(b"\n", b"\r\n"), b"a comment\n" + LEAF):
        assert facts(pem).thumbprint == expected
    assert len(expected) == 43


def test_what_is_not_one_certificate() -> None:
    for pem in (
        b"",
        b"garbage",
        REQUEST,
        private_pem(KEY),
        LEAF[:-50],
        load(LEAF).public_bytes(Encoding.DER),
        LEAF + AUTHORITY.certificate_pem(),  # whose dates, whose thumbprint?
        LEAF + LEAF,
        pem_of(b""),
        pem_of(load(LEAF).public_bytes(Encoding.DER) + b"\0"),
        broken(LEAF, VERSION_3, VERSION_6),
    ):
        with pytest.raises(ValueError):
            facts(pem)
        with pytest.raises(ValueError):
            belongs(pem, KEY)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(load(LEAF).public_bytes(Encoding.DER)) * 8 - 1))
def test_a_certificate_with_any_bit_flipped_is_another_or_none(bit: int) -> None:
    """A signature is for others to check; nothing but ValueError comes of it here."""
    der = bytearray(load(LEAF).public_bytes(Encoding.DER))
    der[bit // 8] ^= 1 << bit % 8
    try:
        told = facts(pem_of(bytes(der)))
    except ValueError:
        return
    assert told.thumbprint != facts(LEAF).thumbprint


def test_whose_certificate_it_is() -> None:
    assert belongs(LEAF, KEY)
    assert not belongs(LEAF, AUTHORITY.key)
    assert not belongs(AUTHORITY.certificate_pem(), KEY)
    with pytest.raises(ValueError, match="unknown kind"):
        belongs(broken(LEAF, EC_KEY, NO_KEY), KEY)


def test_no_certificate_outlives_its_ca() -> None:
    late = NOW + (CA_DAYS - 1) * 86400
    authority = make_authority("clients", NOW)
    request = make_request(ec.generate_private_key(ec.SECP256R1()))
    issued = facts(issue(authority, request, "laptop", late, 365))
    assert issued.not_after == facts(authority.certificate_pem()).not_after
