"""Client certificates from a small CA of our own (public CAs issue none any longer).

The CA has a P-256 key, and a name that no other generation of it has: NGINX takes a certificate
for good when its issuer's name matches a CA that it trusts and the signature holds, so two
generations must never be confused. Pure: the time is passed in. Profile: RFC 5280.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import KeyFileError
from .keyring import base64url
from .locked import Unlock, encryption, unlocked

CA_DAYS = 3650
CLIENT_DAYS = 365
_EARLY = timedelta(minutes=5)  # clocks differ, and a certificate is used at once


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its certificate and the key that signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def certificate_pem(self) -> bytes:
        """Return the certificate, PEM."""
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self) -> bytes:
        """Return the private key, PKCS #8 PEM: a secret."""
        return private_pem(self.key)


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """What is asked of a certificate: its name for tokens and registry, and its dates."""

    thumbprint: str  # x5t#S256: SHA-256 of the DER form, base64url (RFC 8705 section 3.1)
    not_before: float  # seconds since the epoch
    not_after: float


def private_pem(key: ec.EllipticCurvePrivateKey, unlock: Unlock | None = None) -> bytes:
    """Return a private key, PKCS #8 PEM: a secret."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption(unlock))


def load_private(pem: bytes, unlock: Unlock | None = None) -> ec.EllipticCurvePrivateKey:
    """Return the P-256 key in `pem`.

    Raises:
        KeyFileError: it is something else.
    """
    try:
        key = unlocked(load_pem_private_key, pem, unlock)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise KeyFileError("That is not a PEM private key without passphrase.") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp256r1":
        raise KeyFileError("That is not a P-256 key.")
    return key


def make_authority(name: str, now: float) -> Authority:
    """Make a CA called `name` and a random generation, valid from `now` for ten years.

    A common name has 64 characters at most (RFC 5280, appendix A.1): a longer `name` is cut.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    subject = _name(f"{name[:55]} {serial % (1 << 32):08x}")
    builder = _builder(subject, key.public_key(), serial, now, _day(now, CA_DAYS))
    certificate = (
        builder.issuer_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key)


def load_authority(certificate: bytes, key: bytes) -> Authority:
    """Return the CA in two PEM texts.

    Raises:
        KeyFileError: they are not a CA's certificate and its key.
    """
    private = load_private(key)
    try:
        parsed = _load(certificate)
        ours = parsed.public_key() == private.public_key()
        constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        raise KeyFileError("That is not a CA's certificate.") from None
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as exc:
        raise KeyFileError("That is not a PEM certificate.") from exc
    if not constraints.ca:
        raise KeyFileError("That is not a CA's certificate.")
    if not ours:
        raise KeyFileError("The CA's key is not the one of its certificate.")
    return Authority(parsed, private)


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a certificate request (PKCS #10, PEM) for `key`; the issuer decides on the name."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name("catalyst-tunnel"))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def issue(authority: Authority, request: bytes, client: str, now: float, days: int) -> bytes:
    """Return a client certificate (PEM) for the key in `request`.

    Of the request only the key is taken: name, dates and uses are the issuer's. It ends after so
    many days, or with the CA.

    Raises:
        ValueError: the request is not one, does not prove its key, or has a key of another kind.
    """
    try:
        parsed = x509.load_pem_x509_csr(request)
        key = parsed.public_key()
        proved = parsed.is_signature_valid
    except (ValueError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion) as exc:
        raise ValueError("the csr is not a PKCS #10 request in PEM") from exc
    if not proved:
        raise ValueError("the csr is not signed with its own key")
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise ValueError("the TLS key must be a P-256 key")
    end = min(_day(now, days), authority.certificate.not_valid_after_utc)
    builder = _builder(_name(client), key, x509.random_serial_number(), now, end)
    certificate = (
        builder.issuer_name(authority.certificate.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def facts(pem: bytes) -> CertificateFacts:
    """Return what is asked of the one certificate in `pem`.

    Raises:
        ValueError: it is not one.
    """
    certificate = _load(pem)
    der = certificate.public_bytes(Encoding.DER)
    return CertificateFacts(
        base64url(hashlib.sha256(der).digest()),
        certificate.not_valid_before_utc.timestamp(),
        certificate.not_valid_after_utc.timestamp(),
    )


def belongs(pem: bytes, key: ec.EllipticCurvePrivateKey) -> bool:
    """Return whether the certificate in `pem` is one for `key`.

    Raises:
        ValueError: it is not a certificate.
    """
    try:
        return _load(pem).public_key() == key.public_key()
    except UnsupportedAlgorithm as exc:
        raise ValueError("the certificate has a key of an unknown kind") from exc


def same_key(pem: bytes, request: bytes) -> bool:
    """Return whether the certificate in `pem` is one for the key of a certificate request.

    Raises:
        ValueError: one of the two is not what it should be.
    """
    try:
        key = x509.load_pem_x509_csr(request).public_key()
        return _load(pem).public_key() == key
    except (UnsupportedAlgorithm, x509.InvalidVersion) as exc:
        raise ValueError("the csr is not a PKCS #10 request in PEM") from exc


def issued_by(pem: bytes, authority: bytes) -> bool:
    """Return whether the CA whose certificate is `authority` signed the certificate in `pem`."""
    try:
        _load(pem).verify_directly_issued_by(_load(authority))
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def split(bundle: bytes) -> list[bytes]:
    """Return the certificates of a bundle one by one, PEM.

    Raises:
        ValueError: it is not one.
    """
    try:
        found = x509.load_pem_x509_certificates(bundle)
    except x509.InvalidVersion as exc:
        raise ValueError("a certificate has an unknown version") from exc
    return [one.public_bytes(Encoding.PEM) for one in found]


def _load(pem: bytes) -> x509.Certificate:
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except x509.InvalidVersion as exc:
        raise ValueError("the certificate has an unknown version") from exc
    if len(certificates) != 1:  # which of them was meant?
        raise ValueError("that is more than one certificate")
    return certificates[0]


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    now: float,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(_day(now, 0) - _EARLY)
        .not_valid_after(end)
    )


def _day(now: float, days: int) -> datetime:
    return datetime.fromtimestamp(int(now), UTC) + timedelta(days=days)


def _usage(**uses: bool) -> x509.KeyUsage:
    none = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**(none | uses))
