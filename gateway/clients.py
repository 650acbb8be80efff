"""`client add|list|revoke`: changes to the registry, one at a time."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

from keys import certs
from keys.enrolment import CLIENT, EnrolmentAnswer, EnrolmentRequest, Role
from keys.keyring import thumbprint

from . import registry as registries
from .registry import Client, Key
from .settings import Layout, Settings

if sys.platform == "win32":
    raise ImportError("The gateway is for the droplet: Linux, or another POSIX system.")

import fcntl


class ClientError(Exception):
    """The registry is left as it was; says why."""


@contextlib.contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    """Keep other commands from changing the registry meanwhile."""
    path = layout.directory / ".lock"
    # Closed to others: whoever can open it can hold it, and keep a client from being revoked.
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
        ClientError: the name is not one or is taken, or the key is known already.
        ValueError: the request is at fault, or the registry.
        keys.errors.KeyFileError, OSError: the CA cannot be used, or the registry not be written.
    """
    if not CLIENT.fullmatch(name):
        raise ClientError(f"{name!r} cannot be a client's name: use a-z, 0-9, '.', '_' and '-'.")
    kid = thumbprint(request.token_key)
    ca = _private_ca(layout, settings)  # first: a client that is added must get its answer
    with _locked(layout):
        registry = registries.load(layout.registry)
        old = registry.client(name)
        if old is not None and not old.revoked:
            raise ClientError(f"{name} is there already. Revoke it first, or take another name.")
        if registry.key(kid) is not None:
            raise ClientError(
                "That token key is known already. Make new ones: catalyst-tunnel keys request --new"
            )
        authority = certs.load_authority(
            layout.ca_certificate.read_bytes(), layout.ca_key.read_bytes()
        )
        certificate = certs.issue(authority, request.csr.encode(), name, time.time(), days)
        key = Key(request.token_key, frozenset({certs.facts(certificate).thumbprint}))
        past = tuple(replace(one, revoked=True) for one in old.keys) if old else ()
        registries.save(layout.registry, registry.with_client(Client(name, role, (*past, key))))
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


def _private_ca(layout: Layout, settings: Settings) -> str | None:
    if settings.tls_ca is None:
        return None
    path = layout.directory / settings.tls_ca
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a PEM certificate") from None


def revoke(layout: Layout, name: str) -> None:
    """Never let the client of that name in again; a gateway that runs ends its streams.

    Raises:
        ClientError: there is none.
        ValueError, OSError: the registry cannot be read or written.
    """
    with _locked(layout):
        registry = registries.load(layout.registry)
        try:
            registries.save(layout.registry, registry.without(name))
        except LookupError:
            raise ClientError(f"There is no client called {name!r}.") from None
