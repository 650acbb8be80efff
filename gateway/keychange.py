"""What a client's statement about its keys does to the registry.

Pure: a registry and a verified statement in, another registry and the answer out, or `ChangeError`.
A client decides on its own keys only, and never takes its last way in from itself, unless it says
so in as many words.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from keys.keyring import thumbprint
from keys.sshkey import fingerprint
from keys.statement import Introduction, Retirement, Statement

from .registry import Client, Key, Registry, SshKey

ACCEPTED = 16
"""Token keys, certificates of one, and SSH keys that a client may have in force at once."""
RECORDED = 1024
"""The same, retired ones included: what a client can make grow has an end."""

Issue = Callable[[str, frozenset[str]], tuple[str, str]]
"""From a csr and the thumbprints that its key may have already: thumbprint and certificate, PEM.

Raises ValueError: the csr is at fault."""


class ChangeError(Exception):
    """A statement is refused; nothing is changed."""

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        """What the outside is told: see docs/protocol.md."""
        self.reason = reason
        """The exact reason, for the audit log."""
        super().__init__(f"{code}: {reason}")


@dataclass(frozen=True, slots=True)
class Change:
    """What a statement comes to."""

    registry: Registry
    answer: dict[str, Any]
    """Without the generation, which is known once the registry is written."""
    dropped: frozenset[str] = frozenset()
    """Thumbprints of certificates that the registry named for this client and names no longer."""


def apply(registry: Registry, statement: Statement, issue: Issue) -> Change:
    """Return what `statement` comes to.

    Raises:
        ChangeError: keys_denied, generation_mismatch, statement_invalid.
    """
    known = registry.key(statement.kid)
    if known is None:
        raise ChangeError("keys_denied", "key_unknown")
    client = known.client
    if client.name != statement.client:
        raise ChangeError("keys_denied", "client_mismatch")
    if client.revoked or known.revoked:
        raise ChangeError("keys_denied", "key_revoked")
    if statement.generation != registry.generation:
        raise ChangeError("generation_mismatch", f"{statement.generation}")
    match statement.wish:
        case Introduction() as wish:
            return _introduce(registry, client, statement.kid, wish, issue)
        case Retirement() as wish:
            return _retire(registry, client, statement.kid, wish)
        case _:
            changed = registry.without(client.name)
            return Change(changed, {"catalyst": "revoked", "version": 1})


def _introduce(
    registry: Registry, client: Client, signer: str, wish: Introduction, issue: Issue
) -> Change:
    keys = {key.kid: key for key in client.keys}
    target = keys[signer]
    if wish.token_key is not None:
        kid = thumbprint(wish.token_key)
        known = registry.key(kid)
        if known is not None and known.client.name != client.name:
            raise ChangeError("keys_denied", "key_of_another")
        if known is not None and known.revoked:
            raise ChangeError("keys_denied", "key_revoked")
        taken = frozenset() if wish.csr is not None else target.certificates
        target = keys.get(kid) or Key(wish.token_key, taken)
    ssh_keys = client.ssh_keys
    if wish.ssh_key is not None:
        ssh_keys = _with_ssh(registry, client, wish.ssh_key)
    keys[target.kid] = target
    changed = replace(client, keys=tuple(keys.values()), ssh_keys=ssh_keys)
    _check_bounds(changed)
    certificate = None
    if wish.csr is not None:  # last, since what is signed for a refused statement would be left
        if len(target.certificates) >= ACCEPTED:
            raise ChangeError("keys_denied", "too_many")
        try:
            name, certificate = issue(wish.csr, target.certificates)
        except ValueError:
            raise ChangeError("statement_invalid", "csr_invalid") from None
        keys[target.kid] = replace(target, certificates=target.certificates | {name})
        changed = replace(changed, keys=tuple(keys.values()))
    answer = {
        "catalyst": "introduced",
        "version": 1,
        "kid": target.kid,
        "certificate": certificate,
    }
    return Change(registry.with_client(changed), answer)


def _check_bounds(client: Client) -> None:
    for family in (client.keys, client.ssh_keys):
        if len(family) > RECORDED or sum(not one.revoked for one in family) > ACCEPTED:
            raise ChangeError("keys_denied", "too_many")


def _with_ssh(registry: Registry, client: Client, line: str) -> tuple[SshKey, ...]:
    known = registry.ssh_key(fingerprint(line))
    if known is None:
        return (*client.ssh_keys, SshKey(line))
    if known.client.name != client.name:
        raise ChangeError("keys_denied", "ssh_key_of_another")
    if known.key.revoked:
        raise ChangeError("keys_denied", "ssh_key_revoked")
    return client.ssh_keys


def _retire(registry: Registry, client: Client, signer: str, wish: Retirement) -> Change:
    if signer in wish.kids:
        raise ChangeError("keys_denied", "own_key")
    if wish.kids - {key.kid for key in client.keys}:
        raise ChangeError("keys_denied", "key_unknown")
    if wish.ssh_keys - {ssh.fingerprint for ssh in client.ssh_keys}:
        raise ChangeError("keys_denied", "ssh_key_unknown")
    # A certificate that is on no key of the client is one that was retired before. A revoked key
    # needs none: what is kept of it has to stay small.
    keys = tuple(
        replace(key, revoked=True, certificates=frozenset())
        if key.revoked or key.kid in wish.kids
        else replace(key, certificates=key.certificates - wish.certificates)
        for key in client.keys
    )
    ssh_keys = tuple(
        replace(ssh, revoked=ssh.revoked or ssh.fingerprint in wish.ssh_keys)
        for ssh in client.ssh_keys
    )
    changed = replace(client, keys=keys, ssh_keys=ssh_keys)
    if _certificates(client) and not _certificates(changed):
        raise ChangeError("keys_denied", "last_certificate")
    if _ssh(client) and not _ssh(changed):
        raise ChangeError("keys_denied", "last_ssh_key")
    answer = {"catalyst": "retired", "version": 1}
    return Change(registry.with_client(changed), answer, _named(client) - _named(changed))


def _certificates(client: Client) -> bool:
    return any(key.certificates for key in client.keys if not key.revoked)


def _ssh(client: Client) -> bool:
    return any(not ssh.revoked for ssh in client.ssh_keys)


def _named(client: Client) -> frozenset[str]:
    return frozenset(name for key in client.keys for name in key.certificates)
