"""`client add|list|revoke`: changes to the registry that an operator makes."""

import time
from dataclasses import replace
from typing import Any

from keys import certs
from keys.enrolment import CLIENT, EnrolmentAnswer, EnrolmentRequest, Role
from keys.keyring import thumbprint
from keys.sshkey import fingerprint

from . import authority, issued
from .changing import drafting
from .registry import Client, Key, Registry, SshKey
from .settings import Layout, Settings


class ClientError(Exception):
    """The registry is left as it was; says why."""


def add(
    layout: Layout,
    settings: Settings,
    name: str,
    role: Role,
    request: EnrolmentRequest,
    days: int,
) -> EnrolmentAnswer:
    """Let a client in, and return the answer for it.

    A client that was revoked may come back under its name with new keys; the old ones stay revoked.

    Raises:
        ClientError: the name is not one or is taken, or a key is known already.
        changing.ConflictError: the registry was changed meanwhile.
        ValueError: the request is at fault, or the registry.
        keys.errors.KeyFileError, OSError: the CA cannot be used, or the registry not be written.
    """
    if not CLIENT.fullmatch(name):
        raise ClientError(f"{name!r} cannot be a client's name: use a-z, 0-9, '.', '_' and '-'.")
    kid = thumbprint(request.token_key)
    ca = private_ca(layout, settings)  # first: a client that is added must get its answer
    with drafting(layout) as draft:
        registry = draft.registry
        old = registry.client(name)
        if old is not None and not old.revoked:
            raise ClientError(f"{name} is there already. Revoke it first, or take another name.")
        if registry.key(kid) is not None:
            raise ClientError(
                "That token key is known already. Make new ones: catalyst-tunnel keys request --new"
            )
        ssh_keys = _ssh_keys(registry, request)
        signer = authority.load(layout)
        certificate = certs.issue(signer, request.csr.encode(), name, time.time(), days)
        key = Key(request.token_key, frozenset({issued.keep(layout, certificate).thumbprint}))
        past = tuple(replace(one, revoked=True) for one in old.keys) if old else ()
        past_ssh = tuple(replace(one, revoked=True) for one in old.ssh_keys) if old else ()
        client = Client(name, role, (*past, key), ssh_keys=(*past_ssh, *ssh_keys))
        draft.save(registry.with_client(client))
    return EnrolmentAnswer(
        client=name,
        role=role,
        url=settings.url,
        audience=settings.audience,
        kid=kid,
        certificate=certificate.decode("ascii"),
        ca=ca,
        ssh_target=settings.ssh_target,
    )


def _ssh_keys(registry: Registry, request: EnrolmentRequest) -> tuple[SshKey, ...]:
    if request.ssh_key is None:
        return ()
    if registry.ssh_key(fingerprint(request.ssh_key)) is not None:
        raise ClientError(
            "That SSH key is known already. Make new ones: catalyst-tunnel keys request --new"
        )
    return (SshKey(request.ssh_key),)


def private_ca(layout: Layout, settings: Settings) -> str | None:
    """Return the private CA of the site's certificate, PEM; None where a public one signed it.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    if settings.tls_ca is None:
        return None
    path = layout.directory / settings.tls_ca
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a PEM certificate") from None


def revoke(layout: Layout, name: str) -> Registry:
    """Never let the client of that name in again, and return the registry as it is then.

    A gateway that runs ends its streams; its ssh sessions are `sessions.end`'s.

    Raises:
        ClientError: there is none.
        changing.ConflictError: the registry was changed meanwhile.
        ValueError, OSError: it cannot be read or written.
    """
    with drafting(layout) as draft:
        try:
            return draft.save(draft.registry.without(name))
        except LookupError:
            raise ClientError(f"There is no client called {name!r}.") from None


def listing(layout: Layout, registry: Registry) -> dict[str, Any]:
    """Return all clients with their keys, and when their certificates end, as JSON has it."""
    return {
        "version": 1,
        "generation": registry.generation,
        "clients": [
            {
                "name": client.name,
                "role": client.role,
                "revoked": client.revoked,
                **keys_of(layout, client),
            }
            for client in registry.clients
        ],
    }


def keys_of(layout: Layout, client: Client) -> dict[str, list[dict[str, Any]]]:
    """Return the keys of a client by their names, as JSON has them."""
    return {
        "keys": [
            {
                "kid": key.kid,
                "revoked": key.revoked,
                "certificates": [
                    {"thumbprint": one, "not_after": issued.not_after(layout, one)}
                    for one in sorted(key.certificates)
                ],
            }
            for key in client.keys
        ],
        "ssh_keys": [
            {"fingerprint": ssh.fingerprint, "revoked": ssh.revoked} for ssh in client.ssh_keys
        ],
    }
