"""The key files of a laptop by their names: making them, what they are called, removing them."""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from keys import certs, sshkey
from keys.errors import KeyFileError
from keys.files import write_private, write_whole
from keys.keyring import load_token_key, make_token_key, thumbprint
from keys.locked import Unlock
from keys.pointer import Family, Names


@dataclass(frozen=True, slots=True)
class Called:
    """What the keys of `Names` are called at the other end; None for a family that is not asked."""

    kid: str | None = None
    certificate: str | None = None
    fingerprint: str | None = None


class KeyStore:
    """The directory of keys.

    Args:
        directory: where they are.
        unlock: how to get the passphrase of theirs, which new ones get, too; None: there is none.
    """

    def __init__(self, directory: Path, unlock: Unlock | None = None) -> None:
        self.directory = directory
        self._unlock = unlock

    def ssh(self, names: Names) -> Path:
        """Return the SSH key's file."""
        return self.directory / names.ssh

    def token(self, names: Names) -> Path:
        """Return the token key's file."""
        return self.directory / names.token

    def tls(self, names: Names) -> Path:
        """Return the TLS key's file."""
        return self.directory / f"{names.tls}.key"

    def certificate(self, names: Names) -> Path:
        """Return the certificate's file."""
        return self.directory / f"{names.tls}.crt"

    def make(self, names: Names, families: Collection[Family]) -> None:
        """Make the private keys that are not there yet.

        Raises:
            OSError: one cannot be written.
        """
        for family in families:
            match family:
                case "ssh":
                    self._make_ssh(self.ssh(names))
                case "token" if not self.token(names).exists():
                    make_token_key(self.token(names), self._unlock)
                case "cert" if not self.tls(names).exists():
                    key = ec.generate_private_key(ec.SECP256R1())
                    write_private(
                        self.tls(names), certs.private_pem(key, self._unlock), replace=False
                    )

    def public(self, names: Names) -> str:
        """Return the public half of the SSH key, "type base64".

        Raises:
            KeyFileError, OSError: it cannot be read.
        """
        return sshkey.public_half(self.ssh(names), self._unlock)

    def _make_ssh(self, path: Path) -> None:
        public = path.with_name(f"{path.name}.pub")
        if not path.exists():
            sshkey.make_key(path, self._unlock)
        elif not public.exists():  # the disk was full, or the machine went down, in between
            write_private(
                public, f"{sshkey.public_half(path, self._unlock)}\n".encode(), replace=False
            )

    def csr(self, names: Names) -> str:
        """Return the request for a certificate of the TLS key.

        Raises:
            KeyFileError, OSError: the key cannot be read.
        """
        return certs.make_request(
            certs.load_private(self.tls(names).read_bytes(), self._unlock)
        ).decode("ascii")

    def keep_certificate(self, names: Names, pem: str) -> None:
        """Write the certificate of the TLS key.

        Raises:
            KeyFileError: it is that of another key.
            OSError: it cannot be written.
        """
        key = certs.load_private(self.tls(names).read_bytes(), self._unlock)
        try:
            ours = certs.belongs(pem.encode(), key)
        except ValueError:
            ours = False
        if not ours:
            raise KeyFileError("The certificate that came back is not one for the new TLS key.")
        write_whole(self.certificate(names), pem.encode(), replace=True, mode=0o644)

    def called(self, names: Names, families: Collection[Family]) -> Called:
        """Return what the keys of these families are called; of files that are gone, None.

        Raises:
            KeyFileError, OSError: a file that is there cannot be read.
        """
        kid = certificate = fingerprint = None
        with contextlib.suppress(FileNotFoundError):
            if "token" in families:
                kid = thumbprint(load_token_key(self.token(names), self._unlock).public_key())
        with contextlib.suppress(FileNotFoundError):
            if "cert" in families:
                try:
                    certificate = certs.facts(self.certificate(names).read_bytes()).thumbprint
                except ValueError:
                    text = f"{self.certificate(names)} is not one PEM certificate, whole."
                    raise KeyFileError(text) from None
        with contextlib.suppress(FileNotFoundError):
            if "ssh" in families:
                fingerprint = sshkey.fingerprint(self.public(names))
        return Called(kid, certificate, fingerprint)

    def remove(self, names: Names, families: Collection[Family]) -> None:
        """Remove the files of these families.

        Raises:
            OSError: one cannot be removed.
        """
        for family in families:
            for name in names.files(family):
                (self.directory / name).unlink(missing_ok=True)
