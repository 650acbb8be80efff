"""`check-config`: everything that would keep the gateway from serving, found before it starts."""

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from keys.errors import KeyFileError
from keys.files import private_file_fault

from . import authority, registry, settings
from .settings import Layout


def faults(layout: Layout) -> list[str]:
    """Return every fault in words; an empty list is a good sign."""
    found: list[str] = []
    try:
        checked = settings.load(layout.settings)
        if checked.tls_ca is not None:
            found += _certificate(layout.directory / checked.tls_ca)
    except ValueError as exc:
        found += str(exc).splitlines()
    except OSError as exc:
        found.append(f"{layout.settings}: {exc.strerror}")
    try:
        registry.load(layout.registry)
    except ValueError as exc:
        found.append(str(exc))
    except OSError as exc:
        found.append(f"{layout.registry}: {exc.strerror}")
    found += _certificate(layout.client_ca)
    found += _authority(layout)
    if layout.socket.parent.is_dir() and not layout.sessions.is_dir():
        found.append(f"{layout.sessions}: is not there, so sshd lets no key in. Run `init`.")
    return found + missing(layout)


def missing(layout: Layout) -> list[str]:
    """Tell which directories that `serve` writes to are not there."""
    return [
        f"{path}: is not there. Run `catalyst-gateway init`."
        for path in (layout.state, layout.socket.parent)
        if not path.is_dir()
    ]


def _authority(layout: Layout) -> list[str]:
    """Tell what is wrong with the client CA, for those who may look at it."""
    try:
        if not layout.ca_key.exists():
            return []  # it may as well be kept elsewhere between enrolments
    except PermissionError:
        return []  # closed to us, as it is to the gateway itself, which has no use for it
    if fault := private_file_fault(layout.ca_key):
        return [fault]
    try:
        authority.load(layout)
    except KeyFileError as exc:
        return [f"{layout.ca_key.parent}: {exc}"]
    except OSError as exc:
        return [f"{exc.filename}: {exc.strerror}"]
    if layout.next_ca_certificate.exists():
        return ["A rotation of the client CA was interrupted: run `catalyst-gateway ca rotate`."]
    return []


def _certificate(path: Path) -> list[str]:
    """Tell what is wrong with a file of CA certificates; between two generations it has both."""
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as exc:
        return [f"{path}: {exc.strerror}"]
    except (ValueError, x509.InvalidVersion):
        return [f"{path}: is not a PEM certificate"]
    now = datetime.now(UTC)
    return [f"{path}: has expired" for one in found if one.not_valid_after_utc < now]
