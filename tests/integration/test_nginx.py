"""The site in a real NGINX: who gets through, as what, and what NGINX itself answers."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import h11
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gateway.site import Site, find_nginx, has_ipv6, installed_version
from tests.droplet import free_port
from tests.nginxserver import Nginx, Upstream

DOMAIN = "droplet.test"
HSTS = "max-age=63072000"
REFUSED = "nginx; error=connection_refused"
TERMINATED = "nginx; error=connection_terminated"
DENIED = "nginx; error=http_request_denied"
UNPROVED = f'{DENIED}; details="certificate"'
Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]
Fields = list[tuple[str, str]]


# Certificates


def issue(
    name: str,
    signer: Pair | None = None,
    *,
    ca: bool = False,
    server: bool = False,
    start: timedelta = timedelta(hours=-1),
    end: timedelta = timedelta(days=1),
) -> Pair:
    """A P-256 certificate; without `signer` signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signing_key = (signer[0].subject, signer[1]) if signer else (subject, key)
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if server:
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signing_key, hashes.SHA256()), key


@dataclass
class Pki:
    """The files: a site with its private CA, two generations of client CAs, their clients.

    NAME.pem holds certificate and key. `good` and `second` are of the new generation, `outgoing` of
    the old one, which is still in the bundle; all others must be refused.
    """

    directory: Path

    def __post_init__(self) -> None:
        site_ca = issue("Site CA", ca=True)
        old = issue("Clients 1", ca=True)
        new = issue("Clients 2", ca=True)
        foreign = issue("Clients 2", ca=True)  # of the same name, with another key
        below = issue("Below", new, ca=True)
        self._write("site-ca", site_ca)
        self._write("site", issue(DOMAIN, site_ca, server=True))
        self._write("good", issue("laptop", new))
        self._write("second", issue("second", new))
        self._write("outgoing", issue("laptop", old))
        self._write("expired", issue("laptop", new, end=timedelta(minutes=-1)))
        self._write("early", issue("laptop", new, start=timedelta(hours=1)))
        self._write("foreign", issue("laptop", foreign))
        self._write("self_signed", issue("laptop"))
        self._write("server_purpose", issue("laptop", new, server=True))
        self._write("deep", issue("laptop", below), chain=[below[0]])
        self.clients = b"".join(pair[0].public_bytes(Encoding.PEM) for pair in (new, old))

    def file(self, name: str) -> Path:
        return self.directory / f"{name}.pem"

    def certificate(self, name: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.file(name).read_bytes())

    def context(self, name: str | None) -> ssl.SSLContext:
        """A client of the site with that certificate, or without one."""
        context = ssl.create_default_context(cafile=self.file("site-ca"))
        if name is not None:
            context.load_cert_chain(self.file(name))
        return context

    def _write(self, name: str, pair: Pair, chain: list[x509.Certificate] | None = None) -> None:
        certificates = [pair[0], *(chain or [])]
        pem = b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
        key = pair[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.file(name).touch(mode=0o600)
        self.file(name).write_bytes(pem + key)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


# NGINX and what stands behind it

MakeSite = Callable[..., Site]


@pytest.fixture
def make_site(pki: Pki, tmp_path: Path) -> MakeSite:
    if find_nginx() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no nginx on this machine, and CI must have one: apt install nginx-light")
        pytest.skip("no nginx on this machine: apt install nginx-light")

    def make(**own: Any) -> Site:
        directory = tmp_path / "gw"
        (directory / "nginx").mkdir(parents=True, exist_ok=True)
        (directory / "nginx" / "client-ca.pem").write_bytes(pki.clients)
        (tmp_path / "webroot").mkdir(exist_ok=True)
        version = installed_version()
        assert version is not None
        site = Site(
            DOMAIN,
            directory,
            https_port=free_port(),
            http_port=free_port(),
            tls_certificate=str(pki.file("site")),
            tls_key=str(pki.file("site")),
            webroot=str(tmp_path / "webroot"),
            access_log=str(tmp_path / "access.log"),
            nginx=version,
            ipv6=has_ipv6(),
        )
        return replace(site, **own)

    return make


@pytest.fixture
def nginx(make_site: MakeSite, tmp_path: Path) -> Iterator[Nginx]:
    with Nginx(tmp_path / "nginx", make_site()) as server:
        yield server
        assert "[emerg]" not in server.log()
        assert "exited on signal" not in server.log()


@pytest.fixture
async def upstream(nginx: Nginx) -> AsyncIterator[Upstream]:
    async with Upstream(nginx.socket) as service:
        yield service


# A client that says exactly what it is told to


@dataclass
class Answer:
    status: int
    headers: Fields
    body: bytes

    def get(self, name: str) -> str | None:
        """Return that field's value, None without one; AssertionError if there are several."""
        found = [value for key, value in self.headers if key.lower() == name]
        assert len(found) <= 1, (name, found)
        return found[0] if found else None

    @property
    def error(self) -> dict[str, str]:
        """What the body says is wrong."""
        assert self.get("content-type") == "application/json"
        content = json.loads(self.body)
        assert set(content) == {"error"}
        assert set(content["error"]) == {"code", "message"}
        return dict(content["error"])

    def is_from_nginx(self, status: int, code: str, proxy_status: str | None = None) -> None:
        """Assert that NGINX answered by itself, in words and with all that belongs to it."""
        assert (self.status, self.error["code"]) == (status, code), self
        proved = UNPROVED if code in ("certificate_required", "certificate_refused") else DENIED
        assert self.get("proxy-status") == (proxy_status or proved)
        assert self.get("strict-transport-security") == HSTS
        assert self.get("server") == "nginx"
        assert self.get("via") is None
        assert self.error["message"].endswith(".")


@contextlib.asynccontextmanager
async def dial(
    nginx: Nginx, context: ssl.SSLContext | None, name: str = DOMAIN
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    port = nginx.https_port if context else nginx.http_port
    reader, writer = await asyncio.open_connection(
        nginx.host, port, ssl=context, server_hostname=name if context else None, limit=1 << 23
    )
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def read_answer(reader: asyncio.StreamReader, method: str = "GET") -> Answer:
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    parser.send(h11.EndOfMessage())
    answer: Answer | None = None
    async with asyncio.timeout(15):
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.Response):
                fields = [
                    (key.decode(), value.decode()) for key, value in event.headers.raw_items()
                ]
                answer = Answer(event.status_code, fields, b"")
            elif isinstance(event, h11.Data):
                assert answer is not None
                answer.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert answer is not None
                return answer


def head(method: str, path: str, headers: Fields = [], length: int | None = None) -> bytes:  # noqa: B006
    lines = [f"{method} {path} HTTP/1.1", f"Host: {DOMAIN}"]
    lines += [f"{name}: {value}" for name, value in headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


@dataclass
class Client:
    """HTTP/1.1, one connection a request, with a certificate of the Pki unless told otherwise."""

    nginx: Nginx
    pki: Pki

    async def ask(
        self,
        path: str = "/mcp",
        *,
        method: str = "GET",
        headers: Fields = [],  # noqa: B006
        body: bytes | None = None,
        cert: str | None = "good",
    ) -> Answer:
        async with dial(self.nginx, self.pki.context(cert)) as (reader, writer):
            length = None if body is None else len(body)
            writer.write(head(method, path, headers, length) + (body or b""))
            return await read_answer(reader, method)

    async def curl(self, path: str, *arguments: str, cert: str | None = "good") -> Answer:
        """Over HTTP/2, which curl must say it spoke."""
        url = f"https://{DOMAIN}:{self.nginx.https_port}{path}"
        own = [] if cert is None else ["--cert", str(self.pki.file(cert))]
        process = await asyncio.create_subprocess_exec(
            *("curl", "-sS", "-q", "--http2", "--path-as-is", "-i", "--noproxy", "*"),
            *("--resolve", f"{DOMAIN}:{self.nginx.https_port}:{self.nginx.host}"),
            *("--cacert", str(self.pki.file("site-ca")), *own, *arguments, url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, trouble = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0, trouble
        start, _, body = said.partition(b"\r\n\r\n")
        status, *fields = start.decode().split("\r\n")
        assert status.startswith("HTTP/2 ")
        pairs = [(name, value) for name, _, value in (line.partition(": ") for line in fields)]
        return Answer(int(status.split()[1]), pairs, body)


@pytest.fixture
def client(nginx: Nginx, pki: Pki) -> Client:
    return Client(nginx, pki)


# Who gets through


async def test_a_certificate_of_ours_gets_through(client: Client, upstream: Upstream) -> None:
    for cert in ("good", "outgoing"):
        answer = await client.ask("/mcp", method="POST", body=b"{}", cert=cert)
        assert answer.status == 200
        assert answer.get("via") == "1.1 catalyst-gateway"
        assert answer.get("strict-transport-security") == HSTS
        assert answer.get("proxy-status") is None
    assert [seen.body for seen in upstream.seen] == [b"{}", b"{}"]


async def test_none_shown_is_refused_in_words(client: Client, upstream: Upstream) -> None:
    for path in ("/mcp", "/mcp/", "/mcp/x"):
        answer = await client.ask(path, method="POST", body=b"{}", cert=None)
        answer.is_from_nginx(403, "certificate_required")
        answer = await client.curl(path, "-d", "{}", cert=None)
        answer.is_from_nginx(403, "certificate_required")
    assert upstream.seen == []


@pytest.mark.parametrize(
    "cert", ["expired", "early", "foreign", "self_signed", "server_purpose", "deep"]
)
async def test_any_other_certificate_is_refused_in_words(
    cert: str, client: Client, upstream: Upstream
) -> None:
    answer = await client.ask("/mcp", method="POST", body=b"{}", cert=cert)
    answer.is_from_nginx(400, "certificate_refused")
    assert (await client.curl("/mcp/x", cert=cert)).status == 400
    assert upstream.seen == []


async def test_a_ca_that_is_taken_out_lets_nobody_in(
    client: Client, nginx: Nginx, pki: Pki, upstream: Upstream
) -> None:
    context = pki.context("outgoing")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with dial(nginx, context) as (reader, writer):
        writer.write(head("GET", "/mcp"))
        assert (await read_answer(reader)).status == 200
        session = writer.get_extra_info("ssl_object").session

    newest = pki.clients.split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    (nginx.site.directory / "nginx" / "client-ca.pem").write_bytes(newest)
    await asyncio.to_thread(nginx.reload)
    (await client.ask(cert="outgoing")).is_from_nginx(400, "certificate_refused")
    assert (await client.ask(cert="good")).status == 200
    assert not session.has_ticket


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_session_is_resumed(version: ssl.TLSVersion, nginx: Nginx, pki: Pki) -> None:
    context = pki.context("good")
    context.minimum_version = context.maximum_version = version

    def shake(session: ssl.SSLSession | None) -> tuple[bool, ssl.SSLSession | None]:
        raw = socket.create_connection((nginx.host, nginx.https_port), timeout=5)
        with context.wrap_socket(raw, server_hostname=DOMAIN, session=session) as tls:
            tls.sendall(head("GET", "/health", [("Connection", "close")]))
            while tls.recv(4096):  # tickets of TLS 1.3 come with the first data
                pass
            return bool(tls.session_reused), tls.session

    _, session = await asyncio.to_thread(shake, None)
    resumed, _ = await asyncio.to_thread(shake, session)
    assert not resumed


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_old_tls_is_refused(version: ssl.TLSVersion, nginx: Nginx, pki: Pki) -> None:
    context = pki.context("good")
    context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")  # the client would; it is the server that will not
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        async with dial(nginx, context):
            pass


@pytest.mark.parametrize("cipher", ["AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256"])
async def test_suites_without_ephemeral_keys_or_aead_are_refused(
    cipher: str, nginx: Nginx, pki: Pki
) -> None:
    context = pki.context("good")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{cipher}:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        async with dial(nginx, context):
            pass


# As what


SPELLINGS: Fields = [
    ("X-Client-Verify", "SUCCESS"),
    ("X-Client-Cert", "forged"),
    ("x-client-verify", "SUCCESS"),
    ("x-client-cert", "forged"),
    ("X-CLIENT-CERT", "forged"),
    ("X-Client-Cert", ""),
    ("X_Client_Cert", "forged"),
    ("X_Client-Cert", "forged"),
    ("x_client_verify", "forged"),
    ("X-Client-Cert-", "forged by a neighbour"),
    ("X-Client.Cert", "forged"),
]
ELSEWHERE = [
    "Client-Cert",
    "Forwarded",
    "Proxy",
    "Proxy-Authorization",
    "SSL-Client-Cert",
    "X-ARR-ClientCert",
    "X-Client-DN",
    "X-Client-IP",
    "X-Forwarded-Client-Cert",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-User",
    "X-HTTP-Method-Override",
    "X-Original-URL",
    "X-Real-IP",
    "X-Rewrite-URL",
    "X-SSL-Cert",
    "X-SSL-Client-Cert",
    "X-SSL-Client-Verify",
]


def is_told_who(upstream: Upstream, pki: Pki) -> None:
    """Assert that what came out says who the client is, exactly once, and nothing forged."""
    (seen,) = upstream.seen
    assert seen.all("x-client-verify") == ["SUCCESS"]
    (told,) = seen.all("x-client-cert")
    assert told.isascii()
    assert " " not in told
    certificate = x509.load_pem_x509_certificate(unquote(told).encode())
    assert certificate == pki.certificate("good")
    assert seen.all("host") == [DOMAIN]
    assert seen.all("x-forwarded-for") == ["127.0.0.1"]
    assert seen.all("x-forwarded-proto") == ["https"]
    assert not seen.all("connection")
    forged = [pair for pair in seen.headers if "forged" in pair[1]]
    # Another field, and not ours to take away: it is neither name in any spelling.
    assert forged in ([], [("x-client-cert-", "forged by a neighbour")])
    names = [name for name, _ in seen.headers]
    assert not [name for name in names if "_" in name or "." in name]


async def test_forged_identity_does_not_survive(
    client: Client, upstream: Upstream, pki: Pki
) -> None:
    elsewhere = [(name, "forged") for name in [*ELSEWHERE, "X-Forwarded-For", "X-Forwarded-Proto"]]
    answer = await client.ask("/mcp/x", headers=[*SPELLINGS, *elsewhere])
    assert answer.status == 200
    is_told_who(upstream, pki)


async def test_forged_identity_does_not_survive_over_http2(
    client: Client, upstream: Upstream, pki: Pki
) -> None:
    elsewhere = [(name, "forged") for name in [*ELSEWHERE, "X-Forwarded-For", "X-Forwarded-Proto"]]
    fields = [f"{name}: {value}" if value else f"{name};" for name, value in SPELLINGS + elsewhere]
    arguments = [part for line in fields for part in ("-H", line)]
    answer = await client.curl("/mcp/x", *arguments)
    assert answer.status == 200
    is_told_who(upstream, pki)


@pytest.mark.parametrize("cert", [None, "self_signed", "expired"])
async def test_forged_identity_instead_of_a_certificate(
    cert: str | None, client: Client, upstream: Upstream
) -> None:
    answer = await client.ask("/mcp", headers=SPELLINGS, cert=cert)
    assert answer.status in {400, 403}
    assert answer.get("proxy-status") == UNPROVED
    assert upstream.seen == []


async def test_connection_cannot_name_the_identity_away(
    client: Client, upstream: Upstream, pki: Pki
) -> None:
    named = [("Connection", "close, X-Client-Cert, X-Client-Verify"), ("TE", "trailers")]
    assert (await client.ask("/mcp", headers=named)).status == 200
    is_told_who(upstream, pki)


async def test_what_is_the_callers_own_passes(client: Client, upstream: Upstream) -> None:
    own = [
        ("Authorization", "Bearer a.b.c"),
        ("Mcp-Session-Id", "s"),
        ("Mcp-Param-Symbol", "p"),
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Last-Event-ID", "7"),
        ("Accept", "application/json, text/event-stream"),
        ("Accept-Encoding", "gzip"),
    ]
    await client.ask("/mcp", headers=own)
    for name, value in own:
        assert upstream.seen[0].all(name.lower()) == [value]


async def test_two_authorizations_arrive_as_two_or_not_at_all(
    client: Client, upstream: Upstream
) -> None:
    answer = await client.ask("/mcp", headers=[("Authorization", "a"), ("Authorization", "b")])
    if answer.status == 200:
        assert upstream.seen[0].all("authorization") == ["a", "b"]
    else:
        answer.is_from_nginx(400, "bad_request")
        assert upstream.seen == []


# Under which path


@pytest.mark.parametrize(
    ("asked", "arrives"),
    [
        ("/mcp", "/mcp"),
        ("/mcp?a=1&b=%2F..", "/mcp?a=1&b=%2F.."),
        ("/mcp/", "/"),
        ("/mcp/mcp", "/mcp"),
        ("/mcp/x", "/x"),
        ("/mcp/x?y=/../z", "/x?y=/../z"),
        ("/mcp/x/../y", "/y"),
        ("/mcp/.", "/"),
        ("/%6dcp/x", "/x"),
        ("/./mcp//x///y", "/x/y"),
        ("/mcp//evil.test/x", "/evil.test/x"),
        ("/mcp/%2F%2Fevil.test/x", "/evil.test/x"),
        ("/mcp/a%2Fb", "/a/b"),
        ("/mcp/%252e%252e/x", "/%252e%252e/x"),
        ("/mcp/a%3Fb%23c", "/a%3Fb%23c"),
        ("/mcp/x%0d%0aX-Client-Cert:%20forged", "/x%0D%0AX-Client-Cert:%20forged"),
        ("/other/../mcp/x", "/x"),
    ],
)
async def test_the_path_that_arrives(
    asked: str, arrives: str, client: Client, upstream: Upstream
) -> None:
    assert (await client.ask(asked)).status == 200
    assert (await client.curl(asked)).status == 200
    assert [seen.path for seen in upstream.seen] == [arrives, arrives]


@pytest.mark.parametrize(
    "asked",
    [
        "/",
        "/mcpevil",
        "/mcpevil/x",
        "/mcp;x",
        "/mcp%20",
        "/MCP",
        "/MCP/x",
        "/x",
        "/metrics",
        "/ready",
        "/mcp/..",
        "/mcp/../",
        "/mcp/..%2f",
        "/mcp/%2e%2e/x",
        "/mcp/%2e%2e%2fmetrics",
        "/mcp/x/../../metrics",
        "/health/",
        "/.catalyst/refusal",
        "/.catalyst/failure",
        "/.well-known/acme-challenge/x",
    ],
)
async def test_everything_else_is_404(asked: str, client: Client, upstream: Upstream) -> None:
    (await client.ask(asked)).is_from_nginx(404, "not_found")
    (await client.curl(asked)).is_from_nginx(404, "not_found")
    assert upstream.seen == []


# What is no request at all


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "bad_request"),
        (b"GET /mcp HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (
            b"GET /mcp HTTP/1.1\r\nHost: droplet.test\r\nHost: other.test\r\n\r\n",
            400,
            "bad_request",
        ),
        (head("GET", "/mcp/%00"), 400, "bad_request"),
        (head("GET", "/mcp/../../x"), 400, "bad_request"),
        (head("GET", "/mcp/a b"), 400, "bad_request"),
        (head("TRACE", "/mcp"), 405, "method_not_allowed"),
        (head("CONNECT", "droplet.test:443"), 400, "bad_request"),
        (head("POST", "/mcp", [("Transfer-Encoding", "gzip")]), 501, "refused"),
        (
            head("POST", "/mcp", [("Transfer-Encoding", "chunked")], length=3) + b"0\r\n\r\n",
            400,
            "bad_request",
        ),
        (head("POST", "/mcp", [("Content-Length", "3")], length=4), 400, "bad_request"),
        (head("GET", "/mcp/" + "x" * 9000), 414, "uri_too_long"),
        (head("GET", "/mcp", [("X", "x" * 9000)]), 431, "header_too_large"),
        (head("GET", "/mcp", [(f"X{n}", "x" * 5000) for n in range(8)]), 431, "header_too_large"),
        (b"GET /mcp HTTP/9.9\r\nHost: droplet.test\r\n\r\n", 505, "refused"),
    ],
)
async def test_what_is_no_request_is_refused_in_words(
    raw: bytes, status: int, code: str, client: Client, upstream: Upstream
) -> None:
    async with dial(client.nginx, client.pki.context("good")) as (reader, writer):
        writer.write(raw)
        (await read_answer(reader)).is_from_nginx(status, code)
    assert upstream.seen == []


async def test_another_host_than_the_handshake_asked_for(
    make_site: MakeSite, pki: Pki, tmp_path: Path
) -> None:
    """With another site on the same port, its name in TLS and ours in Host does not mix them."""
    site = make_site()
    nginx = Nginx(tmp_path / "nginx", site)
    other = tmp_path / "other.conf"
    files = f"ssl_certificate {site.tls_certificate}; ssl_certificate_key {site.tls_key};"
    listen = f"listen {site.https_port} ssl default_server;"
    other.write_text(f"server {{ {listen} server_name other.test; {files} return 204; }}\n")
    config = tmp_path / "nginx" / "nginx.conf"
    config.write_text(config.read_text().replace("gzip on;", f"gzip on; include {other};"))
    context = pki.context("good")
    context.check_hostname = False
    with nginx:
        async with Upstream(nginx.socket) as upstream:
            assert (await Client(nginx, pki).ask()).status == 200
            async with dial(nginx, context, "other.test") as (reader, writer):
                writer.write(head("POST", "/mcp", SPELLINGS, 0))
                assert (await read_answer(reader)).status == 421  # the other site says it
            assert len(upstream.seen) == 1


# How it arrives, and how the answer comes back


async def test_a_stream_arrives_event_by_event(client: Client, upstream: Upstream) -> None:
    async with dial(client.nginx, client.pki.context("good")) as (reader, writer):
        writer.write(head("GET", "/mcp/stream", [("Accept-Encoding", "gzip")]))
        async with asyncio.timeout(5):
            start = await reader.readuntil(b"data: 1\n\n")
            assert b"Content-Encoding" not in start
            assert not upstream.release.is_set()
            upstream.release.set()
            await reader.readuntil(b"data: 2\n\n")
            await reader.readuntil(b"0\r\n\r\n")


async def test_a_client_that_leaves_is_told_upstream(client: Client, upstream: Upstream) -> None:
    async with dial(client.nginx, client.pki.context("good")) as (reader, writer):
        writer.write(head("GET", "/mcp/stream"))
        await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), 5)
    await asyncio.wait_for(upstream.left.wait(), 5)


async def test_a_body_is_awaited_before_the_gateway_hears_of_it(
    client: Client, upstream: Upstream
) -> None:
    async with dial(client.nginx, client.pki.context("good")) as (reader, writer):
        writer.write(head("POST", "/mcp", [("Transfer-Encoding", "chunked")]) + b"3\r\nabc\r\n")
        assert (await client.ask("/mcp/meanwhile", cert="second")).status == 200
        assert [seen.path for seen in upstream.seen] == ["/meanwhile"]
        writer.write(b"2\r\nde\r\n0\r\n\r\n")
        assert (await read_answer(reader)).status == 200
    arrived = upstream.seen[1]
    assert arrived.body == b"abcde"
    assert arrived.all("content-length") == ["5"]
    assert not arrived.all("transfer-encoding")


async def test_four_mebibytes_and_no_more(client: Client, upstream: Upstream) -> None:
    limit = 4 << 20
    answer = await client.ask("/mcp", method="POST", body=b"x" * limit)
    assert answer.status == 200
    assert json.loads(answer.body)["length"] == limit
    async with dial(client.nginx, client.pki.context("good")) as (reader, writer):
        writer.write(head("POST", "/mcp", length=limit + 1))  # the length alone decides
        (await read_answer(reader)).is_from_nginx(413, "too_large")
    async with dial(client.nginx, client.pki.context("good")) as (reader, writer):
        writer.write(head("POST", "/mcp", [("Transfer-Encoding", "chunked")]))
        writer.write(b"400001\r\n" + b"x" * (limit + 1))
        (await read_answer(reader)).is_from_nginx(413, "too_large")
    assert len(upstream.seen) == 1


async def test_connections_to_the_gateway_are_kept(client: Client, upstream: Upstream) -> None:
    for _ in range(5):
        assert (await client.ask("/mcp", method="POST", body=b"{}")).status == 200
    assert (len(upstream.seen), upstream.connections) == (5, 1)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 502, 503, 504])
async def test_an_answer_of_the_gateway_passes_untouched(
    status: int, client: Client, upstream: Upstream
) -> None:
    answer = await client.ask(f"/mcp/answer/{status}")
    assert answer.status == status
    assert answer.error["code"] == "of_the_gateway"
    assert answer.get("proxy-status") == "catalyst-gateway; error=http_request_denied"
    assert answer.get("date") == "Thu, 01 Jan 2026 00:00:00 GMT"
    assert answer.get("location") == "http://catalyst_gateway/x"
    assert len(upstream.seen) == 1


# When the gateway gives no answer


async def test_no_gateway_at_all_and_nothing_delivered(client: Client) -> None:
    assert not client.nginx.socket.exists()
    answer = await client.ask("/mcp", method="POST", body=b"{}")
    answer.is_from_nginx(502, "gateway_unreachable", REFUSED)
    (await client.curl("/mcp/x", "-d", "{}")).is_from_nginx(502, "gateway_unreachable", REFUSED)


@pytest.mark.parametrize("listening", [False, True])
async def test_a_socket_that_nobody_answers_on(listening: bool, client: Client) -> None:
    """Left behind by a gateway that was killed; or of one that hangs, with its queue full."""
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(str(client.nginx.socket))
        if listening:
            server.listen(0)
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.connect(str(client.nginx.socket))
        else:
            server.close()
        answer = await client.ask("/mcp", method="POST", body=b"{}")
        answer.is_from_nginx(502, "gateway_unreachable", REFUSED)


async def test_a_gateway_that_dies_with_the_request(client: Client, upstream: Upstream) -> None:
    for body in (b"{}", b"x" * (1 << 20)):
        answer = await client.ask("/mcp/die", method="POST", body=body)
        answer.is_from_nginx(502, "gateway_lost", TERMINATED)
    assert len(upstream.seen) == 2  # one each: NGINX did not try again


async def test_a_kept_connection_that_dies_with_the_request(
    client: Client, upstream: Upstream
) -> None:
    assert (await client.ask("/mcp")).status == 200
    answer = await client.ask("/mcp/die", method="POST", body=b"{}")
    answer.is_from_nginx(502, "gateway_lost", TERMINATED)
    assert [seen.path for seen in upstream.seen] == ["/mcp", "/die"]
    assert upstream.connections == 1


async def test_an_answer_that_breaks_off_is_seen_to(client: Client, upstream: Upstream) -> None:
    async with dial(client.nginx, client.pki.context("good")) as (reader, writer):
        writer.write(head("GET", "/mcp/cut"))
        await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), 5)
        upstream.release.set()
        assert b"0\r\n\r\n" not in await asyncio.wait_for(reader.read(), 5)


async def test_a_gateway_that_comes_back_is_used_at_once(client: Client) -> None:
    for _ in range(3):
        async with Upstream(client.nginx.socket):
            assert (await client.ask()).status == 200
        (await client.ask()).is_from_nginx(502, "gateway_unreachable", REFUSED)


# Limits


@pytest.fixture
def slow_lane(make_site: MakeSite, pki: Pki, tmp_path: Path) -> Iterator[Client]:
    with Nginx(tmp_path / "nginx", make_site(rate=2, connections=3)) as nginx:
        yield Client(nginx, pki)


async def test_a_flood_is_429_and_stop_trading_has_its_own_lane(slow_lane: Client) -> None:
    async with Upstream(slow_lane.nginx.socket):
        answers = [await slow_lane.ask() for _ in range(9)]
        assert [answer.status for answer in answers[:5]] == [200] * 5
        answers[-1].is_from_nginx(429, "too_many_requests")
        stop = [("Mcp-Name", "stop_trading"), ("Mcp-Method", "tools/call")]
        for _ in range(5):
            assert (await slow_lane.ask(headers=stop)).status == 200
        start = [("Mcp-Name", "start_trading_cycle")]
        (await slow_lane.ask(headers=start)).is_from_nginx(429, "too_many_requests")
        # Another client is not held back, nor can it be by somebody without a certificate.
        assert (await slow_lane.ask(cert="second")).status == 200
        for _ in range(9):
            assert (await slow_lane.ask(cert=None)).status == 403
        assert (await slow_lane.ask("/health", cert=None)).status == 200


async def test_the_stop_lane_has_an_end_too(slow_lane: Client) -> None:
    async with Upstream(slow_lane.nginx.socket) as upstream:
        requests = head("POST", "/mcp", [("Mcp-Name", "stop_trading")], 0) * 80
        async with dial(slow_lane.nginx, slow_lane.pki.context("good")) as (reader, writer):
            writer.write(requests)
            said = b""
            async with asyncio.timeout(10):
                while said.count(b"HTTP/1.1 ") < 80:
                    said += await reader.read(1 << 16)
        assert said.count(b"HTTP/1.1 429 ") >= 20
        assert 41 <= len(upstream.seen) <= 60


async def test_streams_at_a_time(slow_lane: Client) -> None:
    async with Upstream(slow_lane.nginx.socket), contextlib.AsyncExitStack() as stack:
        for _ in range(3):
            context = slow_lane.pki.context("good")
            reader, writer = await stack.enter_async_context(dial(slow_lane.nginx, context))
            writer.write(head("GET", "/mcp/stream"))
            await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), 5)
        (await slow_lane.ask()).is_from_nginx(429, "too_many_requests")


async def test_slow_clients_are_cut_off_and_never_reach_the_gateway(
    client: Client, upstream: Upstream
) -> None:
    async def drip(cert: str | None, start: bytes, drop: bytes) -> float:
        """Send a drop every half second; returns the seconds until the other end hung up."""
        begin = time.monotonic()
        async with dial(client.nginx, client.pki.context(cert)) as (reader, writer):
            writer.write(start)
            gone = asyncio.ensure_future(reader.read())
            while not (await asyncio.wait({gone}, timeout=0.5))[0]:
                writer.write(drop)
            with contextlib.suppress(ConnectionError):
                assert gone.result() == b""
        return time.monotonic() - begin

    header, body = head("GET", "/mcp")[:-2], head("POST", "/mcp", length=100)
    cut = await asyncio.gather(
        drip("good", header, b"X: x\r\n"),
        drip(None, header, b"X: x\r\n"),
        drip("good", b"", b""),
        drip("good", body + b"{", b""),
    )
    assert all(9 < seconds < 13 for seconds in cut), cut
    assert upstream.seen == []


# What is public


async def test_health_says_ok_and_nothing_else(client: Client, nginx: Nginx) -> None:
    for answer in (await client.ask("/health", cert=None), await client.curl("/health", cert=None)):
        assert (answer.status, answer.body) == (200, b"ok\n")
        assert answer.get("content-type") == "text/plain"
        names = {name.lower() for name, _ in answer.headers} - {"connection"}
        assert names == {
            "server",
            "date",
            "content-type",
            "content-length",
            "strict-transport-security",
        }
        assert answer.get("server") == "nginx"
    assert "/health" not in Path(nginx.site.access_log).read_text()


async def plain(nginx: Nginx, method: str, path: str) -> Answer:
    async with dial(nginx, None) as (reader, writer):
        writer.write(head(method, path, [("Authorization", "Bearer t")]))
        return await read_answer(reader, method)


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "path", ["/", "/mcp", "/mcp/x?y=%20z", "/.well-known/other", "//evil.test"]
)
async def test_plain_http_is_sent_to_https(
    method: str, path: str, nginx: Nginx, upstream: Upstream
) -> None:
    answer = await plain(nginx, method, path)
    assert answer.status == 308
    assert answer.get("location") == f"https://{DOMAIN}:{nginx.https_port}{path}"
    assert upstream.seen == []


async def test_certbots_challenge_is_served(nginx: Nginx) -> None:
    challenges = Path(nginx.site.webroot) / ".well-known" / "acme-challenge"
    challenges.mkdir(parents=True)
    (challenges / "token").write_text("token.thumbprint")
    answer = await plain(nginx, "GET", "/.well-known/acme-challenge/token")
    assert (answer.status, answer.body) == (200, b"token.thumbprint")
    assert (await plain(nginx, "GET", "/.well-known/acme-challenge/")).status in {403, 404}
    assert (await plain(nginx, "GET", "/.well-known/acme-challenge/../../x")).status == 308


async def test_plain_http_on_the_https_port(nginx: Nginx) -> None:
    reader, writer = await asyncio.open_connection(nginx.host, nginx.https_port)
    writer.write(head("GET", "/mcp"))
    answer = await read_answer(reader)
    writer.transport.abort()
    answer.is_from_nginx(400, "bad_request")


async def test_the_log_names_no_query_and_no_token(
    client: Client, nginx: Nginx, upstream: Upstream
) -> None:
    secret = [("Authorization", "Bearer s3cret")]
    await client.ask("/mcp/x?session=s3cret", headers=secret)
    await client.ask("/mcp?session=s3cret", headers=secret, cert=None)
    await client.ask("/nowhere?session=s3cret", headers=secret)
    log = Path(nginx.site.access_log)
    async with asyncio.timeout(5):  # a line is written when its request is over, after the answer
        while log.read_text().count("\n") < 3:
            await asyncio.sleep(0.01)
    first, second, third = log.read_text().splitlines()
    assert '"GET /mcp/x" 200 ' in first
    assert first.split()[-2] == "SUCCESS"
    assert '"GET /mcp" 403 ' in second
    assert second.endswith(" NONE -")
    assert '"GET /nowhere" 404 ' in third
    assert "s3cret" not in first + second + third + nginx.log()


# The configuration itself


async def test_nginx_has_nothing_to_say_about_it(make_site: MakeSite, tmp_path: Path) -> None:
    assert Nginx(tmp_path / "nginx", make_site()).check() == ""


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_it_listens_on_ipv6_too(nginx: Nginx, pki: Pki) -> None:
    nginx.host = "::1"
    answer = await Client(nginx, pki).ask("/health", cert=None)
    assert answer.status == 200


async def test_a_reload_cuts_no_stream(client: Client, nginx: Nginx, upstream: Upstream) -> None:
    async with dial(nginx, client.pki.context("good")) as (reader, writer):
        writer.write(head("GET", "/mcp/stream"))
        await asyncio.wait_for(reader.readuntil(b"data: 1\n\n"), 5)
        await asyncio.to_thread(nginx.reload)
        assert (await client.ask()).status == 200
        upstream.release.set()
        await asyncio.wait_for(reader.readuntil(b"data: 2\n\n"), 5)
