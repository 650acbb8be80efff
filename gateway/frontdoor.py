"""NGINX, as a rotation of the CA needs it: tested, told to read its files, and seen to have.

A reload returns before new workers serve. So a certificate of the new CA, made for this one moment
and known to no registry, is shown to it until it is taken three times in a row.
"""

import contextlib
import http.client
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from keys import certs
from keys.certs import Authority
from keys.files import write_private

from .authority import AuthorityError

DEADLINE = 15.0  # seconds
_ROW = 3  # proofs, one after another
_PAUSE = 0.05  # seconds between them
_SECONDS = 30  # that nginx may take for a command


class Nginx:
    """The one on this machine.

    Args:
        command: how it is called; "-t" and "-s reload" are added.
        domain: of our site.
        port: that it serves https on.
    """

    def __init__(self, command: Sequence[str], domain: str, port: int) -> None:
        self._command = list(command)
        self._domain = domain
        self._port = port

    def take(self) -> None:
        """Test the configuration, and have it read."""
        self._run("-t", "-q")
        self._run("-s", "reload")

    def _run(self, *arguments: str) -> None:
        try:
            done = subprocess.run(
                [*self._command, *arguments],
                check=False,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise AuthorityError(f"{self._command[0]} cannot be run: {exc}") from None
        if done.returncode:
            said = done.stderr.strip() or f"exit code {done.returncode}"
            raise AuthorityError(
                f"`{' '.join([*self._command, *arguments])}` says: {said}\n"
                "Nothing was changed. Where NGINX is not ours to call: --no-reload."
            )

    def prove(self, authority: Authority) -> None:
        """Wait until a certificate of `authority` is taken."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = certs.issue(authority, certs.make_request(key), "ca-proof", time.time(), 1)
        with tempfile.TemporaryDirectory() as closed:  # mode 0700
            file = Path(closed) / "proof.pem"
            write_private(file, certs.private_pem(key) + pem, replace=False)
            context = ssl.create_default_context()
            context.check_hostname = False  # it is told nothing, and believed nothing else
            context.verify_mode = ssl.CERT_NONE
            context.load_cert_chain(file)
        row, fault, limit = 0, "", time.monotonic() + DEADLINE
        while row < _ROW:
            fault = self._fault(context)
            row = 0 if fault else row + 1
            if fault and time.monotonic() > limit:
                raise AuthorityError(
                    f"NGINX on port {self._port} does not take the new CA: {fault}. "
                    "Run the command again when it does; the old CA is still the one that signs."
                )
            time.sleep(_PAUSE)

    def _fault(self, context: ssl.SSLContext) -> str:
        """Return why the certificate was not taken, or ""."""
        link = http.client.HTTPConnection("127.0.0.1", self._port)
        with contextlib.closing(link):
            try:
                plain = socket.create_connection(("127.0.0.1", self._port), 5)
                link.sock = context.wrap_socket(plain, server_hostname=self._domain)
                link.request("GET", "/mcp/health", headers={"Host": self._domain})
                answer = link.getresponse()
            except (OSError, http.client.HTTPException) as exc:
                return str(exc) or type(exc).__name__
            if 'details="certificate"' in answer.headers.get("Proxy-Status", ""):
                return "it refuses a certificate"
            return "" if answer.status in (401, 502) else f"it answers {answer.status}"


class Elsewhere:
    """Where NGINX is not ours to call: the operator sees to it."""

    def take(self) -> None:
        """Nothing is done here."""

    def prove(self, authority: Authority) -> None:
        """Nothing can be proved from here."""
