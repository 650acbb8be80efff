"""HAProxy for the same work: TLS with client certificates, `jwt_verify`, and on to the service.

Its `jwt_verify` knows no EdDSA, so its tokens are RS256 (2048 bits). It checks signature,
algorithm, issuer, audience and expiry; it has no registry, no binding of token to certificate, no
policy on bodies and no audit log.
"""

import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from bench.front import FRONT, Front
from bench.processes import Process, pinned
from tests.droplet import free_port

MISSING = "skipped: no haproxy"
ISSUER, AUDIENCE = "laptop", "catalyst-gateway:localhost"

CONFIG = """\
global
    nbthread 1
    maxconn 4000
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 300s
    timeout http-request 10s
frontend site
    bind 127.0.0.1:{port} ssl crt {directory}/site.pem ca-file {client_ca} verify required
    http-request set-var(txn.token) http_auth_bearer
    http-request set-var(txn.now) date()
    acl alg var(txn.token),jwt_header_query('$.alg') -m str RS256
    acl iss var(txn.token),jwt_payload_query('$.iss') -m str {issuer}
    acl aud var(txn.token),jwt_payload_query('$.aud') -m str {audience}
    acl over var(txn.token),jwt_payload_query('$.exp','int'),sub(txn.now) -m int lt 0
    acl signed var(txn.token),jwt_verify("RS256","{directory}/token.pem") -m int 1
    http-request deny deny_status 401 unless alg iss aud !over signed
    http-request del-header authorization
    http-request replace-path ^/mcp/(.*) /\\1
    default_backend service
backend service
    http-reuse always
    server service 127.0.0.1:{service}
"""


class HAProxy:
    """One that runs: its port, and a token that it takes."""

    def __init__(self, port: int, token: str) -> None:
        self.port = port
        self.fields = {"Host": "localhost", "Authorization": f"Bearer {token}"}


def find() -> str | None:
    """Where haproxy is, also for users whose PATH has no sbin."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    return shutil.which("haproxy", path=path)


@contextlib.asynccontextmanager
async def haproxy(front: Front) -> AsyncIterator[HAProxy | None]:
    """Start it on the core of NGINX and the gateway; None where it is not installed."""
    program = find()
    if program is None:
        yield None
        return
    directory = front.directory / "haproxy"
    directory.mkdir(mode=0o700)
    key = rsa.generate_private_key(65537, 2048)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (directory / "token.pem").write_bytes(public)
    (directory / "site.pem").write_bytes(front.certificate.read_bytes() + front.key.read_bytes())
    file, port = directory / "haproxy.cfg", free_port()
    file.write_text(
        CONFIG.format(
            port=port,
            directory=directory,
            client_ca=front.gateway.directory / "nginx" / "client-ca.pem",
            issuer=ISSUER,
            audience=AUDIENCE,
            service=front.service.port,
        )
    )
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": ISSUER, "aud": AUDIENCE, "iat": now, "exp": now + 3600}
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    process = Process([program, "-db", "-f", file], directory / "log")
    with pinned(FRONT):
        await process.start()
    try:
        yield HAProxy(port, jwt.encode(claims, private, algorithm="RS256"))
    finally:
        await process.stop()
