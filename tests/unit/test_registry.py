"""The record of who may come in: what it finds, what it refuses whole, what it writes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from gateway.registry import Client, Key, Registry, load, parse, save, to_text
from keys.keyring import thumbprint, to_jwk

PUBLIC = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32).public_key() for n in range(1, 5)]
KIDS = [thumbprint(public) for public in PUBLIC]
PRINT = "A" * 43
LAPTOP = Client("laptop", "operator", (Key(PUBLIC[0], frozenset({PRINT})),))
DESK = Client(
    "desk",
    "observer",
    (Key(PUBLIC[1], frozenset({PRINT}), revoked=True), Key(PUBLIC[2], frozenset())),
)
REGISTRY = Registry((LAPTOP, DESK))


def record(**changes: Any) -> dict[str, Any]:
    key = {"jwk": to_jwk(PUBLIC[0]), "certificates": [PRINT], "revoked": False}
    one = {"name": "laptop", "role": "operator", "revoked": False, "keys": [key], "ssh_keys": []}
    return one | changes


def text(*clients: Any, **changes: Any) -> bytes:
    return json.dumps({"version": 1, "generation": 0, "clients": list(clients)} | changes).encode()


def with_key(**changes: Any) -> dict[str, Any]:
    one = record()
    one["keys"][0] |= changes
    return one


def test_looking_up() -> None:
    known = REGISTRY.key(KIDS[0])
    assert known is not None
    assert (known.client, known.certificates, known.revoked) == (LAPTOP, {PRINT}, False)
    assert REGISTRY.key("x") is None
    assert REGISTRY.client("desk") == DESK
    assert REGISTRY.client("Desk") is None
    revoked = REGISTRY.key(KIDS[1])
    assert revoked is not None
    assert revoked.revoked


def test_the_ring_has_every_key_so_that_a_revoked_one_is_told_from_an_unknown_one() -> None:
    ring = REGISTRY.ring()
    assert all(ring.find(kid) is not None for kid in KIDS[:3])
    assert ring.find(KIDS[3]) is None
    assert ring.signing is None


def test_revoking_keeps_the_record() -> None:
    after = REGISTRY.without("laptop")
    known = after.key(KIDS[0])
    assert known is not None
    assert known.client.revoked
    assert after.client("desk") == DESK
    assert REGISTRY.client("laptop") == LAPTOP  # what was loaded is never changed in place
    assert after.without("laptop").client("laptop") == after.client("laptop")
    with pytest.raises(LookupError):
        REGISTRY.without("nobody")


def test_putting_a_client_in_its_place() -> None:
    new = replace(LAPTOP, role="observer", keys=(*LAPTOP.keys, Key(PUBLIC[3], frozenset())))
    after = REGISTRY.with_client(new)
    assert len(after.clients) == 2
    assert after.client("laptop") == new
    with pytest.raises(ValueError, match="twice"):
        REGISTRY.with_client(Client("other", "operator", LAPTOP.keys))


def test_names_and_keys_are_there_once() -> None:
    with pytest.raises(ValueError, match="same name"):
        Registry((LAPTOP, replace(LAPTOP, keys=())))
    with pytest.raises(ValueError, match="twice"):
        Registry((LAPTOP, replace(DESK, keys=LAPTOP.keys)))
    with pytest.raises(ValueError, match="twice"):
        Registry((replace(LAPTOP, keys=LAPTOP.keys * 2),))


clients = st.lists(
    st.tuples(
        st.from_regex(r"[a-z0-9][a-z0-9._-]{0,62}", fullmatch=True),
        st.sampled_from(["operator", "observer"]),
        st.booleans(),
        st.booleans(),
        st.frozensets(st.from_regex(r"[A-Za-z0-9_-]{43}", fullmatch=True), max_size=3),
    ),
    max_size=4,
    unique_by=lambda one: one[0],
)


@given(clients)
def test_what_is_written_is_read(drawn: list[Any]) -> None:
    made = Registry(
        tuple(
            Client(name, role, (Key(public, prints, key_revoked),), revoked)
            for (name, role, revoked, key_revoked, prints), public in zip(
                drawn, PUBLIC, strict=False
            )
        )
    )
    read = parse(to_text(made).encode())
    assert to_text(read) == to_text(made)
    assert [(one.name, one.role, one.revoked) for one in read.clients] == [
        (one.name, one.role, one.revoked) for one in made.clients
    ]
    for client in made.clients:
        for key in client.keys:
            known = read.key(key.kid)
            assert known is not None
            assert (known.certificates, known.revoked) == (key.certificates, key.revoked)


def test_nothing_secret_is_in_it() -> None:
    assert '"d"' not in to_text(REGISTRY)
    assert "PRIVATE" not in to_text(REGISTRY)


PRIVATE_JWK = to_jwk(PUBLIC[0]) | {"d": "AQ"}


@pytest.mark.parametrize(
    "wrong",
    [
        *(b"", b"{}", b"[]", b"null", b"\xff", b"{", text()[:-1], text().decode().encode("utf-16")),
        *(text(version=2), text(version="1"), text(version=True), text(version=1.0)),
        *(text(more=1), text(clients={}), text(clients=None), text(1), text(None), text([])),
        b'{"version": 1, "clients": [], "clients": []}',
        *(
            text(record(name=name))
            for name in ("", "A", "a b", "../x", "a\n", "ä", "x" * 64, 1, None)
        ),
        *(text(record(role=role)) for role in ("", "root", "Operator", None, [], 1)),
        *(text(record(revoked=one)) for one in (None, 0, 1, "false", [])),
        *(text(record(keys=one)) for one in (None, {}, "", [1], [None], [{}], [[]])),
        text(record(more=1)),
        text({name: value for name, value in record().items() if name != "revoked"}),
        *(text(with_key(jwk=one)) for one in (None, {}, "x", PRIVATE_JWK)),
        text(with_key(jwk=to_jwk(PUBLIC[0]) | {"crv": "Ed448"})),
        text(with_key(jwk=to_jwk(PUBLIC[0]) | {"x": "AAAA"})),
        text(with_key(jwk=to_jwk(PUBLIC[0]) | {"x": to_jwk(PUBLIC[0])["x"] + "="})),
        *(text(with_key(certificates=one)) for one in (None, PRINT, [1], [None], ["A" * 42], {})),
        *(text(with_key(revoked=one)) for one in (None, 0, "no")),
        text(with_key(more=1)),
        text(record(), record()),
        text(record(), record(name="other")),
    ],
)
def test_what_is_no_registry(wrong: bytes) -> None:
    with pytest.raises(ValueError):
        parse(wrong)


@given(st.binary(max_size=300))
def test_whatever_the_file_holds(wrong: bytes) -> None:
    with pytest.raises(ValueError):
        parse(wrong)


def test_the_file(tmp_path: Path) -> None:
    file = tmp_path / "registry.json"
    with pytest.raises(FileNotFoundError):
        load(file)
    save(file, REGISTRY)
    assert to_text(load(file)) == to_text(REGISTRY)
    assert file.stat().st_mode & 0o777 == 0o644
    save(file, Registry())
    assert load(file) == Registry()
    assert [one.name for one in tmp_path.iterdir()] == ["registry.json"]
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"registry\.json: must be an object"):
        load(file)


def test_a_fault_names_the_client() -> None:
    with pytest.raises(ValueError, match="laptop: certificates"):
        parse(text(with_key(certificates=None)))
