"""Who may come in: each proof taken away, forged or swapped, one at a time."""

import hashlib
from dataclasses import replace
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.decision import CATALOGUE, UNAUTHORIZED, DeniedError
from gateway.identity import CERTIFICATE, VERIFY, Caller, Way, identify, still_welcome
from gateway.registry import Client, Key, Registry
from keys import certs
from keys.keyring import base64url
from keys.token import JTI, Minter, Verifier
from tests.forge import Forger, hostile_tokens

NOW = 1_800_000_000.0
DAY = 86400.0
AUDIENCE = "catalyst-gateway:droplet.example"
CA = certs.make_authority("clients", NOW - DAY)


def certificate(client: str, now: float = NOW - 60, days: int = 30) -> bytes:
    request = certs.make_request(ec.generate_private_key(ec.SECP256R1()))
    return certs.issue(CA, request, client, now, days)


def escaped(pem: bytes) -> str:
    return quote(pem.decode(), safe="")


def print_of(pem: bytes) -> str:
    """The thumbprint, worked out by other means than the gateway's."""
    der = x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    return base64url(hashlib.sha256(der).digest())


LAPTOP, DESK, OLD = (Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in (1, 2, 3))
PEM, DESK_PEM, OTHER_PEM = certificate("laptop"), certificate("desk"), certificate("laptop")
REGISTRY = Registry(
    (
        Client(
            "laptop",
            "operator",
            (
                Key(OLD.public_key(), frozenset({print_of(PEM)}), revoked=True),
                Key(LAPTOP.public_key(), frozenset({print_of(PEM)})),
            ),
        ),
        Client("desk", "observer", (Key(DESK.public_key(), frozenset({print_of(DESK_PEM)})),)),
    )
)


def token(
    key: Ed25519PrivateKey = LAPTOP,
    name: str = "laptop",
    *,
    bound: bytes | None = PEM,
    now: float = NOW,
) -> str:
    thumbprint = print_of(bound) if bound else None
    return Minter(key, name, AUDIENCE).mint(now, bytes(JTI), thumbprint)


def fields(
    *extra: tuple[str, str],
    verify: str | None = "SUCCESS",
    pem: bytes | None = PEM,
    bearer: str | None = None,
) -> CIMultiDict[str]:
    found: CIMultiDict[str] = CIMultiDict()
    if verify is not None:
        found.add(VERIFY, verify)
    if pem is not None:
        found.add(CERTIFICATE, escaped(pem))
    found.add("Authorization", f"Bearer {token() if bearer is None else bearer}")
    for name, value in extra:
        found.add(name, value)
    return found


def ask(
    given: CIMultiDict[str], way: Way = "https", registry: Registry = REGISTRY, now: float = NOW
) -> Caller:
    return identify(given, way, registry, Verifier(AUDIENCE, registry.ring()), now)


def refusal(
    given: CIMultiDict[str], way: Way = "https", registry: Registry = REGISTRY, now: float = NOW
) -> str:
    with pytest.raises(DeniedError) as caught:
        ask(given, way, registry, now)
    assert caught.value.entry is UNAUTHORIZED  # whatever the reason, the outside sees one answer
    assert caught.value.code not in CATALOGUE
    return caught.value.code


def bare(*values: str) -> CIMultiDict[str]:
    return CIMultiDict([("Authorization", value) for value in values])


# Those who may.


def test_over_https() -> None:
    caller = ask(fields())
    assert (caller.client, caller.role) == ("laptop", "operator")
    assert caller.certificate == print_of(PEM)
    assert caller.single_use is None


def test_over_ssh_a_token_serves_once() -> None:
    caller = ask(bare(f"Bearer {token(bound=None)}"), "ssh")
    assert (caller.client, caller.certificate) == ("laptop", None)
    assert caller.single_use is not None
    assert caller.single_use.jti == base64url(bytes(JTI))


def test_the_scheme_in_any_case_and_fields_in_any_case() -> None:
    given: CIMultiDict[str] = CIMultiDict(
        {
            "authorization": f"bEARER {token()}",
            VERIFY.lower(): "SUCCESS",
            CERTIFICATE.upper(): escaped(PEM),
        }
    )
    assert ask(given).client == "laptop"


# The token's place.


def test_no_token_or_more_than_one() -> None:
    good = f"Bearer {token(bound=None)}"
    assert refusal(bare(), "ssh") == "token_missing"
    assert refusal(bare(good, good), "ssh") == "token_repeated"
    assert refusal(bare(good, "Basic eDp5"), "ssh") == "token_repeated"
    assert refusal(fields(("authorization", good))) == "token_repeated"


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer ", "Basic eDp5", "Digest a=b", "DPoP x.y.z"]
)
def test_another_scheme(value: str) -> None:
    assert refusal(bare(value), "ssh") == "scheme_refused"


def test_a_token_without_scheme() -> None:
    assert refusal(bare(token(bound=None)), "ssh") == "scheme_refused"


@pytest.mark.parametrize(
    "format", ["Bearer  {}", "Bearer {} ", "Bearer {},", "Bearer\t{}", 'Bearer "{}"']
)
def test_odd_spellings_of_a_good_token(format: str) -> None:
    code = refusal(bare(format.format(token(bound=None))), "ssh")
    assert code in {"token_malformed", "scheme_refused"}


@pytest.mark.parametrize("way", ["https", "ssh"])
def test_the_forgers_tokens(way: Way) -> None:
    bound = print_of(PEM) if way == "https" else None
    forger = Forger(LAPTOP, "laptop", AUDIENCE, bound)
    neighbour = Forger(DESK, "desk", AUDIENCE, bound)
    for hostile in hostile_tokens(forger, NOW, neighbour):
        given = fields(bearer=hostile.token) if way == "https" else bare(f"Bearer {hostile.token}")
        with pytest.raises(DeniedError) as caught:
            ask(given, way)
        assert caught.value.entry is UNAUTHORIZED, hostile.name


# Who the registry knows.


def test_keys_that_are_not_good() -> None:
    stranger = Ed25519PrivateKey.generate()
    assert refusal(fields(bearer=token(stranger))) == "key_unknown"
    assert refusal(fields(bearer=token(OLD))) == "client_revoked"
    gone = REGISTRY.without("laptop")
    assert refusal(fields(), registry=gone) == "client_revoked"
    assert refusal(bare(f"Bearer {token(bound=None)}"), "ssh", gone) == "client_revoked"


def test_a_token_in_the_name_of_another_client() -> None:
    assert refusal(fields(bearer=token(LAPTOP, "desk"))) == "client_mismatch"
    assert refusal(fields(bearer=token(DESK, "laptop"))) == "client_mismatch"


def test_a_verifier_that_still_has_a_key_which_the_registry_has_lost() -> None:
    with pytest.raises(DeniedError, match="key_unknown"):
        identify(fields(), "https", Registry(), Verifier(AUDIENCE, REGISTRY.ring()), NOW)


# What NGINX says.


@pytest.mark.parametrize(
    ("verify", "code"),
    [
        (None, "certificate_missing"),
        ("NONE", "certificate_missing"),
        ("", "certificate_refused"),
        ("success", "certificate_refused"),
        ("SUCCESS ", "certificate_refused"),
        ("FAILED", "certificate_refused"),
        ("FAILED:certificate has expired", "certificate_refused"),
        ("FAILED:SUCCESS", "certificate_refused"),
    ],
)
def test_a_certificate_that_was_not_proved(verify: str | None, code: str) -> None:
    assert refusal(fields(verify=verify)) == code


def test_identity_fields_are_wanted_once() -> None:
    assert refusal(fields(pem=None)) == "certificate_missing"
    assert refusal(fields((VERIFY, "SUCCESS"))) == "identity_repeated"
    assert refusal(fields((VERIFY.lower(), "NONE"))) == "identity_repeated"
    assert refusal(fields((CERTIFICATE, escaped(DESK_PEM)))) == "identity_repeated"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "%",
        "%zz",
        "ä",
        "%00",
        escaped(PEM)[:-90],
        escaped(PEM[30:]),
        escaped(PEM + DESK_PEM),
        escaped(DESK_PEM + PEM),
        escaped(PEM.replace(b"CERTIFICATE", b"PRIVATE KEY")),
        escaped(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ],
)
def test_what_is_no_certificate(text: str) -> None:
    given = fields(pem=None)
    given.add(CERTIFICATE, text)
    assert refusal(given) == "certificate_invalid"


@given(st.text(max_size=200))
def test_whatever_the_identity_fields_hold(text: str) -> None:
    given = fields(pem=None)
    given.add(CERTIFICATE, text)
    assert refusal(given) == "certificate_invalid"
    given = fields(verify=None)
    given.add(VERIFY, text)
    if text != "SUCCESS":
        assert refusal(given).startswith("certificate_")


def test_the_dates_are_the_gateways_business() -> None:
    """NGINX looked when the session began; a resumed one may have outlived the certificate."""
    short = certificate("laptop", NOW - 2 * DAY, days=1)
    late = certificate("laptop", NOW + DAY)
    key = Key(LAPTOP.public_key(), frozenset({print_of(short), print_of(late)}))
    registry = Registry((Client("laptop", "operator", (key,)),))
    expired = fields(pem=short, bearer=token(bound=short))
    assert refusal(expired, registry=registry) == "certificate_expired"
    assert refusal(fields(pem=late, bearer=token(bound=late)), registry=registry) == (
        "certificate_early"
    )
    facts = certs.facts(short)
    for when, fine in ((facts.not_after, True), (facts.not_after + 1, False)):
        given = fields(pem=short, bearer=token(bound=short, now=when))
        if fine:
            assert ask(given, registry=registry, now=when).client == "laptop"
        else:
            assert refusal(given, registry=registry, now=when) == "certificate_expired"


# Token and certificate together.


def test_the_binding() -> None:
    unbound = token(bound=None)
    assert refusal(fields(bearer=unbound)) == "binding_missing"
    assert refusal(fields(pem=DESK_PEM)) == "binding_mismatch"
    assert refusal(bare(f"Bearer {token()}"), "ssh") == "binding_unproved"


def test_a_cnf_that_the_client_wrote_itself_proves_nothing() -> None:
    """A good certificate of the CA, bound in the token, but not one on record for that key."""
    for pem in (OTHER_PEM, DESK_PEM):
        assert refusal(fields(pem=pem, bearer=token(bound=pem))) == "certificate_unknown"


def test_over_ssh_identity_fields_are_not_believed() -> None:
    assert refusal(fields(), "ssh") == "binding_unproved"
    caller = ask(fields(bearer=token(bound=None)), "ssh")
    assert caller.certificate is None
    assert caller.single_use is not None


# Later.


def test_still_welcome() -> None:
    for caller in (ask(fields()), ask(bare(f"Bearer {token(bound=None)}"), "ssh")):
        assert still_welcome(caller, REGISTRY)
        assert not still_welcome(caller, Registry())
        assert not still_welcome(caller, REGISTRY.without("laptop"))
        assert still_welcome(caller, REGISTRY.without("desk"))
        laptop = REGISTRY.client("laptop")
        assert laptop is not None
        demoted = replace(laptop, role="observer")
        assert not still_welcome(caller, REGISTRY.with_client(demoted))
        revoked = replace(laptop, keys=tuple(replace(key, revoked=True) for key in laptop.keys))
        assert not still_welcome(caller, REGISTRY.with_client(revoked))
        renamed = replace(laptop, name="other")
        assert not still_welcome(caller, Registry((renamed,)))


def test_a_certificate_that_was_struck_off() -> None:
    laptop = REGISTRY.client("laptop")
    assert laptop is not None
    struck = replace(
        laptop, keys=tuple(replace(key, certificates=frozenset()) for key in laptop.keys)
    )
    registry = REGISTRY.with_client(struck)
    assert not still_welcome(ask(fields()), registry)
    assert still_welcome(ask(bare(f"Bearer {token(bound=None)}"), "ssh"), registry)
