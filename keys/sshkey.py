"""The SSH user key: made where it is used, and the line that lets it in on the droplet."""

import base64
import hashlib
import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from .errors import KeyFileError
from .files import write_private
from .keyring import base64url, from_base64url
from .locked import Unlock, encryption, unlocked

_BLOB = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"  # what stands before the 32 bytes: RFC 8709 section 4
_PKCS8 = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_LINE = re.compile(r"ssh-ed25519 ([A-Za-z0-9+/]{68})")  # 51 bytes: no padding, one spelling
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_PROOF = b"catalyst-ssh-proof\0"
"""What an SSH login signs begins with a length (RFC 4252 section 7): no proof can be one."""


def make_key(path: Path, unlock: Unlock | None = None) -> str:
    """Make an Ed25519 key in `path` (mode 0600) and return its public half.

    Its format is OpenSSH's own, or PKCS #8 under a passphrase (ssh reads both).

    The public half, "ssh-ed25519 AAAA...", is also written beside it as `path`.pub.

    Raises:
        FileExistsError: there is a key already; it is left as it was.
        OSError: the file cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    kind = PrivateFormat.OpenSSH if unlock is None else PrivateFormat.PKCS8
    pem = private.private_bytes(Encoding.PEM, kind, encryption(unlock))
    write_private(path, pem, replace=False)
    public = public_line(private.public_key())
    write_private(path.with_name(f"{path.name}.pub"), f"{public}\n".encode(), replace=True)
    return public


def public_half(path: Path, unlock: Unlock | None = None) -> str:
    """Return the public half of the private key in `path`, as "type base64".

    Raises:
        KeyFileError: it is not an OpenSSH private key without passphrase.
        OSError: the file cannot be read.
    """
    line = _load(path, unlock).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return line.decode("ascii")


def public_line(key: Ed25519PublicKey) -> str:
    """Return a key as "ssh-ed25519 AAAA..."."""
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def read_line(line: object) -> Ed25519PublicKey:
    """Return the key in "ssh-ed25519 AAAA...": no comment, no option, no other kind of key.

    Raises:
        ValueError: it is anything else.
    """
    match = _LINE.fullmatch(line) if isinstance(line, str) else None
    blob = base64.b64decode(match[1]) if match else b""
    if not blob.startswith(_BLOB):
        raise ValueError('the ssh key must be "ssh-ed25519 AAAA...", and nothing else')
    return Ed25519PublicKey.from_public_bytes(blob.removeprefix(_BLOB))


def is_fingerprint(value: object) -> bool:
    """Return whether `value` is "SHA256:...", as `fingerprint` returns it."""
    return isinstance(value, str) and _FINGERPRINT.fullmatch(value) is not None


def prove(key: Ed25519PrivateKey, audience: str, client: str, nonce: str) -> str:
    """Return the proof that whoever introduces an SSH key also holds it.

    Args:
        key: the SSH key.
        audience: whom it is for; "" in a request for enrolment, which does not know yet.
        client: who introduces it; "" likewise.
        nonce: the statement's jti, or the thumbprint of the request's token key.
    """
    return base64url(key.sign(_proved(audience, client, nonce)))


def proves(line: object, proof: object, audience: str, client: str, nonce: str) -> bool:
    """Return whether `proof` is what `prove` makes with the key in `line`.

    Raises:
        ValueError: the line is not a key.
    """
    key = read_line(line)
    if not isinstance(proof, str):
        return False
    try:
        key.verify(from_base64url(proof), _proved(audience, client, nonce))
    except (ValueError, InvalidSignature):
        return False
    return True


def _proved(audience: str, client: str, nonce: str) -> bytes:
    return _PROOF + "\0".join((audience, client, nonce)).encode()


def load_key(path: Path, unlock: Unlock | None = None) -> Ed25519PrivateKey:
    """Return the Ed25519 key in `path`.

    Raises:
        KeyFileError: it holds something else.
        OSError: the file cannot be read.
    """
    key = _load(path, unlock)
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} is not an Ed25519 key.")
    return key


def _load(path: Path, unlock: Unlock | None) -> PrivateKeyTypes:
    text = path.read_bytes()
    ours = load_pem_private_key if text.startswith(_PKCS8) else load_ssh_private_key
    try:
        return unlocked(ours, text, unlock)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise KeyFileError(
            f"{path} is not an OpenSSH private key that can be read without a passphrase."
        ) from exc


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
