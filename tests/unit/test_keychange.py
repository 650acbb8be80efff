"""What statements do to the registry: only to their own client, and never to its last way in."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import keychange
from gateway.keychange import Change, ChangeError
from gateway.registry import Client, Key, Registry, SshKey, parse, to_text
from keys.keyring import thumbprint
from keys.sshkey import fingerprint, public_line
from keys.statement import Introduction, Retirement, Revocation, Statement, Wish

PUBLIC = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32).public_key() for n in range(6)]
KIDS = [thumbprint(one) for one in PUBLIC]
LINES = [public_line(one) for one in PUBLIC]
PRINTS = [letter * 43 for letter in "ABCD"]

LAPTOP = Client(
    "laptop",
    "operator",
    (Key(PUBLIC[0], frozenset({PRINTS[0]})), Key(PUBLIC[1], frozenset(), revoked=True)),
    ssh_keys=(SshKey(LINES[0]), SshKey(LINES[1], revoked=True)),
)
DESK = Client(
    "desk", "observer", (Key(PUBLIC[2], frozenset({PRINTS[1]})),), ssh_keys=(SshKey(LINES[2]),)
)
REGISTRY = Registry((LAPTOP, DESK), 7)


def issue(csr: str, present: frozenset[str]) -> tuple[str, str]:
    if csr != "csr":
        raise ValueError("no csr")
    return PRINTS[2], "PEM"


def apply(
    wish: Wish,
    registry: Registry = REGISTRY,
    *,
    client: str = "laptop",
    kid: str = KIDS[0],
    generation: int | None = None,
) -> Change:
    seen = registry.generation if generation is None else generation
    said = Statement(client, 0, 60, "x", kid, seen, wish)
    return keychange.apply(registry, said, issue)


def refusal(wish: Wish, registry: Registry = REGISTRY, **more: Any) -> tuple[str, str]:
    with pytest.raises(ChangeError) as told:
        apply(wish, registry, **more)
    return told.value.code, told.value.reason


def laptop(change: Change) -> Client:
    """The client afterwards; its neighbour is as it was, and the file can hold it all."""
    assert change.registry.client("desk") == DESK
    assert to_text(parse(to_text(change.registry).encode())) == to_text(change.registry)
    client = change.registry.client("laptop")
    assert client is not None
    return client


def introduction(
    token_key: int | None = None, csr: str | None = None, ssh: int | None = None
) -> Introduction:
    key = None if token_key is None else PUBLIC[token_key]
    return Introduction(key, csr, None if ssh is None else LINES[ssh])


def retirement(**what: Any) -> Retirement:
    sets = {name: frozenset(what.get(name, ())) for name in ("kids", "certificates", "ssh_keys")}
    return Retirement(**sets, compromised=False)


# Who may.


@pytest.mark.parametrize("wish", [introduction(ssh=3), retirement(kids=[KIDS[1]]), Revocation()])
def test_who_may_not(wish: Wish) -> None:
    assert refusal(wish, kid=KIDS[5]) == ("keys_denied", "key_unknown")
    assert refusal(wish, kid=KIDS[1]) == ("keys_denied", "key_revoked")
    assert refusal(wish, kid=KIDS[2]) == ("keys_denied", "client_mismatch")
    assert refusal(wish, client="desk") == ("keys_denied", "client_mismatch")
    assert refusal(wish, REGISTRY.without("laptop")) == ("keys_denied", "key_revoked")
    for seen in (6, 8, 0):
        assert refusal(wish, generation=seen)[0] == "generation_mismatch"


# Introductions.


def test_a_token_key_with_a_csr_has_the_new_certificate_only() -> None:
    change = apply(introduction(3, "csr"))
    assert laptop(change).keys == (*LAPTOP.keys, Key(PUBLIC[3], frozenset({PRINTS[2]})))
    assert change.answer["kid"] == KIDS[3]
    assert change.answer["certificate"] == "PEM"


def test_a_token_key_alone_takes_over_the_certificates() -> None:
    change = apply(introduction(3))
    assert laptop(change).keys == (*LAPTOP.keys, Key(PUBLIC[3], frozenset({PRINTS[0]})))
    assert change.answer == {
        "catalyst": "introduced",
        "version": 1,
        "kid": KIDS[3],
        "certificate": None,
    }


def test_a_csr_alone_adds_a_certificate() -> None:
    change = apply(introduction(csr="csr"))
    wanted = Key(PUBLIC[0], frozenset({PRINTS[0], PRINTS[2]}))
    assert laptop(change).keys == (wanted, LAPTOP.keys[1])
    assert change.answer["kid"] == KIDS[0]


def test_an_ssh_key() -> None:
    change = apply(introduction(ssh=3))
    assert laptop(change) == replace(LAPTOP, ssh_keys=(*LAPTOP.ssh_keys, SshKey(LINES[3])))


def test_what_is_introduced_again_changes_nothing() -> None:
    first = apply(introduction(3, "csr", 3))
    again = apply(introduction(3, "csr", 3), first.registry)
    assert again.registry == first.registry
    assert again.answer == first.answer


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (introduction(2), "key_of_another"),
        (introduction(1), "key_revoked"),
        (introduction(ssh=2), "ssh_key_of_another"),
        (introduction(ssh=1), "ssh_key_revoked"),
        (introduction(3, "csr", 2), "ssh_key_of_another"),
    ],
)
def test_keys_that_cannot_be_introduced(wish: Wish, reason: str) -> None:
    assert refusal(wish) == ("keys_denied", reason)


def test_a_bad_csr() -> None:
    assert refusal(introduction(3, "x", 3)) == ("statement_invalid", "csr_invalid")


# Retirements.

TWO = apply(introduction(3, "csr", 3)).registry


def test_the_old_ones_go() -> None:
    old = fingerprint(LINES[0])
    change = apply(retirement(kids=[KIDS[0]], ssh_keys=[old]), TWO, kid=KIDS[3])
    client = laptop(change)
    assert [key.revoked for key in client.keys] == [True, True, False]
    assert [ssh.revoked for ssh in client.ssh_keys] == [True, True, False]
    again = apply(retirement(kids=[KIDS[0]], ssh_keys=[old]), change.registry, kid=KIDS[3])
    assert again.registry == change.registry


def test_a_certificate_goes_from_every_key() -> None:
    both = apply(introduction(csr="csr")).registry
    shared = apply(introduction(3), both).registry
    change = apply(retirement(certificates=[PRINTS[0]]), shared, kid=KIDS[3])
    assert [key.certificates for key in laptop(change).keys] == [
        {PRINTS[2]},
        frozenset(),
        {PRINTS[2]},
    ]
    assert change.dropped == {PRINTS[0]}
    again = apply(retirement(certificates=[PRINTS[0]]), change.registry, kid=KIDS[3])
    assert (again.registry, again.dropped) == (change.registry, frozenset())


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (retirement(kids=[KIDS[0]]), "own_key"),
        (retirement(kids=[KIDS[2]]), "key_unknown"),
        (retirement(kids=[KIDS[5]]), "key_unknown"),
        (retirement(kids=[KIDS[1]], ssh_keys=[fingerprint(LINES[2])]), "ssh_key_unknown"),
        (retirement(certificates=[PRINTS[0]]), "last_certificate"),
        (retirement(ssh_keys=[fingerprint(LINES[0])]), "last_ssh_key"),
    ],
)
def test_what_cannot_be_retired(wish: Wish, reason: str) -> None:
    assert refusal(wish) == ("keys_denied", reason)


def test_a_neighbours_certificate_is_left_alone() -> None:
    change = apply(retirement(certificates=[PRINTS[1]]))
    assert (change.registry, change.dropped) == (REGISTRY, frozenset())


def test_the_last_certificate_is_not_retired_by_way_of_its_key() -> None:
    bare = apply(introduction(3)).registry
    assert refusal(retirement(kids=[KIDS[0]], certificates=[PRINTS[0]]), bare, kid=KIDS[3]) == (
        "keys_denied",
        "last_certificate",
    )


def test_a_client_without_certificates_can_rotate() -> None:
    plain = replace(LAPTOP, keys=(Key(PUBLIC[0], frozenset()),), ssh_keys=())
    registry = Registry((plain, DESK), 1)
    two = apply(introduction(3), registry).registry
    assert laptop(apply(retirement(kids=[KIDS[0]]), two, kid=KIDS[3])).keys[0].revoked


def test_giving_up_everything() -> None:
    change = apply(Revocation())
    assert laptop(change).revoked
    assert change.answer == {"catalyst": "revoked", "version": 1}
    assert not change.registry.ssh_accepted() & {fingerprint(LINES[0])}


def test_what_a_client_can_make_grow_has_an_end() -> None:
    many = [
        Ed25519PrivateKey.from_private_bytes(bytes([n, 9]) * 16).public_key() for n in range(40)
    ]
    registry = REGISTRY
    for count, public in enumerate(many, 2):
        wish = Introduction(public, None, public_line(public))
        if count > keychange.ACCEPTED:
            assert refusal(wish, registry) == ("keys_denied", "too_many")
            break
        registry = apply(wish, registry).registry
    assert count == keychange.ACCEPTED + 1
    prints = frozenset(chr(65 + n) * 43 for n in range(keychange.ACCEPTED))
    full = replace(LAPTOP, keys=(Key(PUBLIC[0], prints - {PRINTS[2]} | {"_" * 43}),))
    assert refusal(introduction(csr="csr"), Registry((full, DESK))) == ("keys_denied", "too_many")


def test_nothing_is_signed_for_a_statement_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each certificate is a file, so a client could fill the disk by being refused."""

    def signs(csr: str, present: frozenset[str]) -> tuple[str, str]:
        raise AssertionError("signed")

    prints = frozenset(chr(65 + n) * 43 for n in range(keychange.ACCEPTED))
    full = Registry((replace(LAPTOP, keys=(Key(PUBLIC[0], prints),)),))
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "issue", signs)
        assert refusal(introduction(csr="csr"), full) == ("keys_denied", "too_many")
        assert refusal(introduction(3, "csr", 1)) == ("keys_denied", "ssh_key_revoked")
        patch.setattr(keychange, "RECORDED", 2)
        assert refusal(introduction(3, "csr")) == ("keys_denied", "too_many")


def test_of_a_retired_key_no_certificates_are_kept() -> None:
    """A client that retires key after key would make the registry, and each answer, grow."""
    assert laptop(apply(retirement(kids=[KIDS[0]]), TWO, kid=KIDS[3])).keys[0] == Key(
        PUBLIC[0], frozenset(), revoked=True
    )
    assert apply(retirement(kids=[KIDS[0]]), TWO, kid=KIDS[3]).dropped == {PRINTS[0]}
    shared = apply(introduction(3)).registry  # with the certificate of the old key
    assert apply(retirement(kids=[KIDS[0]]), shared, kid=KIDS[3]).dropped == frozenset()


def test_what_is_on_record_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keychange, "RECORDED", 2)
    assert refusal(introduction(3)) == ("keys_denied", "too_many")
    assert refusal(introduction(ssh=3)) == ("keys_denied", "too_many")
