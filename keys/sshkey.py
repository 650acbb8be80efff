"""The SSH user key: made where it is used, and the line that lets it in on the droplet."""

import base64
import hashlib
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from .errors import KeyFileError
from .files import write_private


def make_key(path: Path) -> str:
    """Make an Ed25519 key in `path` (OpenSSH format, mode 0600) and return its public half.

    The public half, "ssh-ed25519 AAAA...", is also written beside it as `path`.pub.

    Raises:
        FileExistsError: there is a key already; it is left as it was.
        OSError: the file cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_private(path, pem, replace=False)
    public = public_half(path)
    write_private(path.with_name(f"{path.name}.pub"), f"{public}\n".encode(), replace=True)
    return public


def public_half(path: Path) -> str:
    """Return the public half of the private key in `path`, as "type base64".

    Raises:
        KeyFileError: it is not an OpenSSH private key without passphrase.
        OSError: the file cannot be read.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise KeyFileError(
            f"{path} is not an OpenSSH private key that can be read without a passphrase."
        ) from exc
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return line.decode("ascii")


def fingerprint(public: str) -> str:
    """Return "SHA256:..." of a public key line, as `ssh-keygen -l` prints it.

    Raises:
        KeyFileError: the line is not "type base64 [comment]".
    """
    parts = public.split()
    try:
        blob = base64.b64decode(parts[1], validate=True)
    except (IndexError, ValueError) as exc:
        raise KeyFileError("That is not a public key line.") from exc
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")
    return f"SHA256:{digest}"


def authorized_line(public: str, targets: list[str], comment: str) -> str:
    """Return the authorized_keys line that lets this key forward to `targets` and nothing else.

    Each option closes a door that sshd(8) leaves open: without permitlisten a client may open
    listeners on the droplet, without command it may run one. Listening on a Unix socket is the
    door that only sshd_config(5) closes (AllowStreamLocalForwarding).

    Args:
        public: "type base64".
        targets: "host:port", letter for letter as the client will ask for them.
        comment: how the line is told apart, e.g. the machine's name.
    """
    permits = ",".join(f'permitopen="{target}"' for target in targets)
    return (
        f'restrict,port-forwarding,{permits},permitlisten="127.0.0.1:1",'
        f'command="/usr/sbin/nologin" {public} {comment}'
    )
