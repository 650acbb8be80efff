"""The client CA on this machine: where it is, and how another takes its place.

`ca rotate` is a sequence of whole-file writes in an order in which a crash after any of them leaves
a CA that signs and an NGINX that takes what it signs; running it again completes it:

1. the next CA is made: ca/next.key, then ca/next.pem;
2. the bundle that NGINX trusts gets it, in front of the current one;
3. NGINX tests the bundle, reads it, and has been seen to take a certificate of the next CA;
4. ca/next.key takes the place of ca/ca.key, then ca/next.pem that of ca/ca.pem.

Between the two of step 4 the key of `ca.key` belongs to `next.pem`: `load` knows that. The first
certificate of the bundle is the current CA's from step 2 on, for whoever may not look into ca/.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from keys import certs
from keys.certs import Authority
from keys.errors import KeyFileError
from keys.files import private_file_fault, write_private, write_whole

from . import issued
from .changing import Draft, drafting, locked
from .registry import Client, Key, Registry
from .settings import Layout

Say = Callable[[str], object]


class AuthorityError(Exception):
    """The CA cannot be replaced now; says why, with the remedy. What worked still works."""


class FrontDoor(Protocol):
    """What has to take the bundle: NGINX, or nothing at all where it runs elsewhere."""

    def take(self) -> None:
        """Test the bundle as it is on disk, and have it read.

        Raises:
            AuthorityError: it was not taken; what was read before is still in force.
        """

    def prove(self, authority: Authority) -> None:
        """Wait until a certificate of `authority` is taken for good.

        Raises:
            AuthorityError: it is not.
        """


def load(layout: Layout) -> Authority:
    """Return the CA that signs now.

    Raises:
        KeyFileError: what is there is not a CA, or open to others.
        OSError: it is not there, or cannot be read.
    """
    key = layout.ca_key.read_bytes()
    if fault := private_file_fault(layout.ca_key):
        raise KeyFileError(fault)
    try:
        return certs.load_authority(layout.ca_certificate.read_bytes(), key)
    except KeyFileError:
        if not layout.next_ca_certificate.exists():
            raise
        return certs.load_authority(layout.next_ca_certificate.read_bytes(), key)


def trusted(layout: Layout) -> list[bytes]:
    """Return the CA certificates that NGINX takes clients by, PEM, the current one first.

    Raises:
        ValueError: the bundle is not one.
        OSError: it cannot be read.
    """
    try:
        return certs.split(layout.client_ca.read_bytes())
    except ValueError:
        raise ValueError(f"{layout.client_ca}: is not a bundle of PEM certificates") from None


def rotate(layout: Layout, name: str, door: FrontDoor, say: Say) -> None:
    """Put another CA in place of the current one; both are trusted until `finish`.

    Args:
        layout: where everything is.
        name: what the CA is called, without its generation.
        door: what has to take it.
        say: is told each step.

    Raises:
        AuthorityError: it cannot be done now.
        KeyFileError, ValueError, OSError: a file cannot be used or written.
    """
    with locked(layout):
        bundle = trusted(layout)
        if not layout.next_ca_certificate.exists() and len(bundle) > 1:
            raise AuthorityError(
                "A rotation is under way: clients of the outgoing CA still come in. When they "
                "have new certificates: catalyst-gateway ca rotate --finish"
            )
        following = _following(layout, name, say)
        if following is None:  # step 4 was all but done
            layout.next_ca_certificate.replace(layout.ca_certificate)
            say(f"completed {layout.ca_certificate}")
            return
        pem = following.certificate_pem()
        if bundle[0] != pem:
            old = layout.client_ca.read_bytes()
            _write_bundle(layout, [pem, *bundle])
            try:
                door.take()
            except AuthorityError:
                write_whole(layout.client_ca, old, replace=True, mode=0o644)
                raise
            say("both CAs are trusted")
        else:
            door.take()
        door.prove(following)
        layout.next_ca_key.replace(layout.ca_key)
        layout.next_ca_certificate.replace(layout.ca_certificate)
        say("new certificates come from the new CA")


def _following(layout: Layout, name: str, say: Say) -> Authority | None:
    """Return the CA that waits, made if there is none; None where its key is in place already."""
    key, pem = layout.next_ca_key, layout.next_ca_certificate
    if pem.exists() and key.exists():
        return certs.load_authority(pem.read_bytes(), key.read_bytes())
    if pem.exists() and _is_authority(pem, layout.ca_key):
        return None
    for left in key.parent.glob(".next.*"):  # by a crash in the middle of a write
        left.unlink()
    made = certs.make_authority(name, time.time())
    write_private(key, made.key_pem(), replace=True)  # half a CA has signed nothing
    write_whole(pem, made.certificate_pem(), replace=True, mode=0o644)
    say(f"made the next CA: {made.certificate.subject.rfc4514_string()}")
    return made


def _is_authority(certificate: Path, key: Path) -> bool:
    try:
        certs.load_authority(certificate.read_bytes(), key.read_bytes())
    except (OSError, KeyFileError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class Dependent:
    """A certificate that only an outgoing CA vouches for."""

    client: str
    thumbprint: str
    accepted: bool
    """Whether it still lets its client in."""


def dependents(layout: Layout, registry: Registry, current: bytes, now: float) -> list[Dependent]:
    """Return what the registry names that the CA with certificate `current` did not sign.

    A certificate that is not on record is taken for one of those.
    """
    return list(_dependents(layout, registry, current, now))


def _dependents(
    layout: Layout, registry: Registry, current: bytes, now: float
) -> Iterator[Dependent]:
    for client in registry.clients:
        for key in client.keys:
            for name in sorted(key.certificates):
                found = issued.find(layout, name)
                if found is not None and certs.issued_by(found.pem, current):
                    continue
                live = found is None or found.not_after > now
                accepted = live and not client.revoked and not key.revoked
                yield Dependent(client.name, name, accepted)


def finish(layout: Layout, door: FrontDoor, say: Say, *, force: bool) -> None:
    """Trust the current CA alone, and have the registry forget what the outgoing ones signed.

    The registry comes first: what it does not name is refused by the gateway at once, on resumed
    TLS sessions too. A crash after that is completed by another run.

    Raises:
        AuthorityError: clients still depend on an outgoing CA, and not `force`.
        changing.ConflictError: the registry was changed meanwhile.
        KeyFileError, ValueError, OSError: a file cannot be used or written.
    """
    with drafting(layout) as draft:
        if layout.next_ca_certificate.exists():
            raise AuthorityError("A rotation was interrupted: run `catalyst-gateway ca rotate`.")
        bundle = trusted(layout)
        current = layout.ca_certificate.read_bytes()
        if certs.split(current) != bundle[:1]:
            raise AuthorityError(
                f"{layout.client_ca} does not begin with {layout.ca_certificate}: put it there."
            )
        old = dependents(layout, draft.registry, current, time.time())
        if names := sorted({one.client for one in old if one.accepted}):
            if not force:
                raise AuthorityError(
                    f"Still with a certificate of an outgoing CA: {', '.join(names)}. "
                    "Rotate there (catalyst-tunnel keys rotate cert), or use --force."
                )
            say(f"locked out on https: {', '.join(names)}")
        _forget(layout, draft, frozenset(one.thumbprint for one in old))
        if len(bundle) > 1:
            _write_bundle(layout, bundle[:1])
            try:
                door.take()
            except AuthorityError:
                _write_bundle(layout, bundle)
                raise
        say("the current CA alone is trusted")


def _forget(layout: Layout, draft: Draft, thumbprints: frozenset[str]) -> None:
    def without(key: Key) -> Key:
        return replace(key, certificates=key.certificates - thumbprints)

    def pruned(client: Client) -> Client:
        return replace(client, keys=tuple(map(without, client.keys)))

    clients = tuple(map(pruned, draft.registry.clients))
    draft.save(replace(draft.registry, clients=clients))
    for one in thumbprints:
        issued.forget(layout, one)


def _write_bundle(layout: Layout, certificates: list[bytes]) -> None:
    write_whole(layout.client_ca, b"".join(certificates), replace=True, mode=0o644)
