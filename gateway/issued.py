"""The certificates that were issued, one file each, by thumbprint.

The registry alone says which of them come in; these say when they end and which CA signed them. A
file that is missing makes nobody come in or stay out.
"""

from dataclasses import dataclass
from pathlib import Path

from keys import certs
from keys.files import write_whole

from .settings import Layout


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate on record."""

    thumbprint: str
    pem: bytes
    not_after: float  # seconds since the epoch


def keep(layout: Layout, pem: bytes) -> Issued:
    """Put a certificate on record, before the registry names it.

    Raises:
        OSError: it cannot be written.
    """
    facts = certs.facts(pem)
    write_whole(_file(layout, facts.thumbprint), pem, replace=True, mode=0o644)
    return Issued(facts.thumbprint, pem, facts.not_after)


def find(layout: Layout, thumbprint: str) -> Issued | None:
    """Return the certificate of that name; None where there is none that can be read."""
    try:
        pem = _file(layout, thumbprint).read_bytes()
        facts = certs.facts(pem)
    except (OSError, ValueError):
        return None
    return Issued(thumbprint, pem, facts.not_after) if facts.thumbprint == thumbprint else None


def not_after(layout: Layout, thumbprint: str) -> int | None:
    """Return when a certificate ends, in seconds since the epoch, where that is known."""
    found = find(layout, thumbprint)
    return int(found.not_after) if found else None


def forget(layout: Layout, thumbprint: str) -> None:
    """Take a certificate off the record, once the registry names it no longer.

    Raises:
        OSError: it cannot be removed.
    """
    _file(layout, thumbprint).unlink(missing_ok=True)


def _file(layout: Layout, thumbprint: str) -> Path:
    return layout.issued / f"{thumbprint}.pem"
