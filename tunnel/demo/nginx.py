"""NGINX for the demo: the real one, on a high port with a certificate of its own."""

import datetime
import ipaddress
import os
import shutil
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from keys.certs import private_pem
from keys.files import write_private, write_whole


def find() -> str | None:
    """Return where NGINX is, also for users whose PATH has no sbin."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def make_certificate(directory: Path, days: int = 60) -> tuple[Path, Path]:
    """Make a certificate for localhost that vouches for itself, and return its file and its key's.

    Args:
        directory: where they are written.
        days: its life; by default longer than the warning before an end.

    Raises:
        OSError: they cannot be written.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "catalyst-tunnel demo")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file, key_file = directory / "tls.pem", directory / "tls.key"
    write_private(key_file, private_pem(key), replace=True)
    write_whole(file, certificate.public_bytes(Encoding.PEM), replace=True, mode=0o644)
    return file, key_file


def configure(directory: Path, site: str) -> Path:
    """Write a configuration around `site`, which keeps to `directory`, and return its file.

    Raises:
        OSError: it cannot be written.
    """
    temporary = "\n".join(
        f"    {kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    # Workers of another user could not reach the gateway's socket in the demo's private directory.
    user = "user root;" if hasattr(os, "geteuid") and os.geteuid() == 0 else ""
    file = directory / "nginx.conf"
    text = f"""\
{user}
daemon off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
{temporary}
    include {directory}/site.conf;
}}
"""
    write_private(directory / "site.conf", site.encode(), replace=True)
    write_private(file, text.encode(), replace=True)
    return file
