"""What hostile requests are made of, and the gateway that must refuse them.

`open_world` runs a gateway, a service behind it and people who may or might come in; `write` makes
requests by hand, good ones unless told otherwise; `World.refuse` sends one and looks at everything
that may be seen of it: the answer, the audit log, the service.
"""

import asyncio
import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from cryptography.hazmat.primitives.asymmetric import ec

from keys import certs
from keys.token import JTI, Minter
from tests.droplet import Target
from tests.gatewayserver import AUDIENCE, Enrolled, GatewayServer, call

MIB: Final = 1 << 20
DAY: Final = 86400
BODY: Final = call()

# What the outside is told, from docs/protocol.md; every code that is not here is 401.
STATUS: Final = {
    "request_invalid": 400,
    "message_invalid": 400,
    "batch_refused": 400,
    "header_mismatch": 400,
    "path_denied": 403,
    "http_method_denied": 403,
    "method_denied": 403,
    "tool_denied": 403,
    "body_slow": 408,
    "body_too_large": 413,
    "content_type_refused": 415,
    "encoding_refused": 415,
}
SAYING_NOTHING: Final = (
    b'{"error":{"code":"unauthorized","message":"Not authorised. It was not passed on."}}'
)
UNIFORM: Final = (
    b"HTTP/1.1 401 Unauthorized\r\n"
    b"Proxy-Status: catalyst-gateway; error=http_request_denied\r\n"
    b"Cache-Control: no-store\r\n"
    b"Server: catalyst-gateway\r\n"
    b'WWW-Authenticate: Bearer realm="catalyst-gateway"\r\n'
    b"Content-Type: application/json\r\n"
    b"Content-Length: %d\r\n"
    b"Date: *\r\n"
)
# The framing of the request decides, and not what was wrong with it: a body that was left unread
# ends the connection.
UNIFORM_401: Final = {
    True: UNIFORM % len(SAYING_NOTHING) + b"Connection: close\r\n\r\n" + SAYING_NOTHING,
    False: UNIFORM % len(SAYING_NOTHING) + b"\r\n" + SAYING_NOTHING,
}

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(frozen=True)
class Answer:
    """What came back, as it came."""

    raw: bytes

    @property
    def status(self) -> int:
        match = re.match(rb"HTTP/[0-9]\.[0-9] ([0-9]{3}) ", self.raw)
        assert match is not None, self.raw
        return int(match[1])

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def dateless(self) -> bytes:
        dated = re.compile(rb"\r\nDate: [A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [0-9: ]{13} GMT\r\n")
        bare, count = dated.subn(b"\r\nDate: *\r\n", self.raw)
        assert count == 1, self.raw
        return bare


class Wire:
    """A client's end of a connection: it says exactly what it is told to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(10)
        self._held = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            # It may be refused before it is said.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.sock.sendall(piece)

    def hear(self, *, head: bool = False) -> Answer:
        """Read one answer; one to HEAD has no body, whatever length it tells."""
        while b"\r\n\r\n" not in self._held:
            self._more()
        fields, _, rest = self._held.partition(b"\r\n\r\n")
        found = re.search(rb"(?i)\r\ncontent-length: ([0-9]+)", fields)
        assert found is not None, fields
        length = 0 if head else int(found[1])
        while len(rest) < length:
            self._more()
            rest = self._held.partition(b"\r\n\r\n")[2]
        self._held = rest[length:]
        return Answer(fields + b"\r\n\r\n" + rest[:length])

    def hear_continue(self) -> None:
        """Wait until the gateway has looked at a head that says Expect, and asks for the body."""
        while len(self._held) < len(CONTINUE):
            self._more()
        assert self._held == CONTINUE
        self._held = b""

    def hear_end(self) -> None:
        """Assert that nothing more comes, and that the other side hangs up."""
        assert self._held == b""
        with contextlib.suppress(ConnectionResetError):
            assert self.sock.recv(1) == b""

    def _more(self) -> None:
        piece = self.sock.recv(1 << 16)
        assert piece, f"hung up after {self._held!r}"
        self._held += piece


@dataclass
class World:
    """The gateway, the service behind it, and who may or might come in."""

    directory: Path
    gateway: GatewayServer
    target: Target
    authority: certs.Authority
    people: dict[str, Enrolled]

    @property
    def operator(self) -> Enrolled:
        return self.people["operator"]

    @property
    def observer(self) -> Enrolled:
        return self.people["observer"]

    @property
    def neighbour(self) -> Enrolled:
        return self.people["neighbour"]

    def dial(self, way: str) -> Wire:
        if way == "https":
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(self.gateway.socket))
            return Wire(sock)
        return Wire(socket.create_connection(("127.0.0.1", self.gateway.port)))

    def decided(self, after: int) -> list[dict[str, Any]]:
        """Return the decisions on record after that many lines."""
        return [line for line in self.gateway.audit()[after:] if "decision" in line]

    def refuse(
        self,
        way: str,
        code: str,
        *pieces: bytes,
        closing: bool | None = None,
        whole: bool = True,
    ) -> Answer:
        """Send a request of which nothing may come but that refusal; return the answer.

        Args:
            way: "https", as NGINX would, or "ssh".
            code: the reason that must be on record, alone.
            pieces: the bytes, in one send each.
            closing: whether the gateway must end the connection; None: as the answer says.
            whole: False where a body stays unfinished: the gateway gives it 2 s more to come before
                it hangs up, and that is not waited for.
        """
        before, delivered = len(self.gateway.audit()), self.target.requests
        head = pieces[0].startswith(b"HEAD ")
        with self.dial(way) as wire:
            wire.say(*pieces)
            answer = wire.hear(head=head)
            start, _, fields = answer.raw.partition(b"\r\n")
            closes = b"\r\nConnection: close\r\n" in fields or start.startswith(b"HTTP/1.0")
            if closes and whole:
                wire.hear_end()
        assert closing is None or closes == closing, answer
        lines = self.decided(before)
        assert [(line["decision"], line.get("code")) for line in lines] == [("deny", code)], lines
        assert (lines[0]["way"], lines[0]["status"]) == (way, answer.status)
        assert answer.status == STATUS.get(code, 401), answer
        if answer.status == 401:
            assert answer.dateless == UNIFORM_401[closes][: -len(SAYING_NOTHING) if head else None]
        elif not head:
            told = json.loads(answer.body)["error"]
            assert told.get("data", told)["code"] == code
        assert self.target.requests == delivered, "it reached the service"
        return answer

    def accept(self, way: str, *pieces: bytes) -> Answer:
        """Send a request that must get through: what the cases change one thing of."""
        delivered = self.target.requests
        with self.dial(way) as wire:
            wire.say(*pieces)
            answer = wire.hear()
        assert answer.status == 200, answer
        assert self.target.requests == delivered + 1
        return answer

    def certificate(
        self, *, authority: certs.Authority | None = None, start: float = 0.0, days: int = 1
    ) -> str:
        """Return a certificate (PEM) in the operator's name; `start` is in seconds from now."""
        request = certs.make_request(ec.generate_private_key(ec.SECP256R1()))
        issuer = authority or self.authority
        return certs.issue(issuer, request, "operator", time.time() + start, days).decode()

    def silent(self) -> None:
        """Assert that no case made the gateway say anything, or stop."""
        assert self.gateway.running
        said = [
            line
            for line in self.gateway.log.read_text().splitlines()
            if not re.fullmatch(r"INFO (stopping|loaded \S+)", line)
        ]
        assert said == []


def _change_registry(gateway: GatewayServer, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the clients in registry.json, by name."""
    file = gateway.directory / "registry.json"
    content = json.loads(file.read_text())
    clients = {client["name"]: client for client in content["clients"]}
    change(clients)
    content["clients"] = list(clients.values())
    file.write_text(json.dumps(content))


def _spoil(clients: dict[str, Any]) -> None:
    clients["renamed"]["name"] = "renamed-since"
    clients["heir"]["keys"] += clients["moved"]["keys"]
    clients["moved"]["keys"] = []
    clients["key_revoked"]["keys"][0]["revoked"] = True
    clients["bare"]["keys"][0]["certificates"] = []
    clients["swapped"]["keys"][0]["certificates"] = clients["neighbour"]["keys"][0]["certificates"]
    del clients["removed"]


@contextlib.contextmanager
def _service() -> Iterator[Target]:
    """The service, in a thread with an event loop of its own: these tests have none."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    target = Target()
    try:
        asyncio.run_coroutine_threadsafe(target.start(), loop).result(5)
        yield target
        asyncio.run_coroutine_threadsafe(target.stop(), loop).result(5)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


@contextlib.contextmanager
def open_world(directory: Path) -> Iterator[World]:
    """Start service and gateway in `directory`; some of the people are in a bad way by then."""
    roles = {"observer": "observer"}
    names = ["operator", "observer", "neighbour", "revoked", "renamed", "moved", "heir"]
    names += ["key_revoked", "bare", "swapped", "removed"]
    with _service() as target:
        gateway = GatewayServer(
            directory / "gateway",
            f"http://127.0.0.1:{target.port}",
            settings={"limits.slow": "1.0"},
        )
        people = {
            name: gateway.enrol(directory / name, roles.get(name, "operator")) for name in names
        }
        gateway.run("client", "revoke", "revoked")
        _change_registry(gateway, _spoil)
        ca = gateway.directory / "ca"
        authority = certs.load_authority((ca / "ca.pem").read_bytes(), (ca / "ca.key").read_bytes())
        with gateway:
            yield World(directory, gateway, target, authority, people)


# Requests, written by hand

Lines = list[str]
"""Header fields as they stand on the wire; Latin-1, one byte a character."""


def write(
    identity: Lines,
    line: str = "POST /mcp HTTP/1.1",
    more: Lines | None = None,
    body: bytes | None = BODY,
    *,
    host: bool = True,
    kind: str | None = "application/json",
    length: bool = True,
) -> bytes:
    """Return a request; without `body` neither its type nor its length is told."""
    lines = [line, *(["Host: localhost"] if host else []), *identity, *(more or [])]
    if body is not None:
        lines += [f"Content-Type: {kind}"] if kind else []
        lines += [f"Content-Length: {len(body)}"] if length else []
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def proved(certificate: str, verify: str = "SUCCESS") -> Lines:
    """Return what NGINX says of a client that has shown `certificate`, PEM."""
    return [f"X-Client-Verify: {verify}", f"X-Client-Cert: {quote(certificate, safe='')}"]


def bearer(token: str) -> str:
    return f"Authorization: Bearer {token}"


def https(client: Enrolled) -> Lines:
    """A good identity on the Unix socket."""
    return [*proved(client.certificate), bearer(client.token(bound=True))]


def ssh(client: Enrolled) -> Lines:
    """A good identity on the loopback port; it serves once."""
    return [bearer(client.token(bound=False))]


def mint(client: Enrolled, *, name: str | None = None, certificate: str | None = None) -> str:
    """Return a token by `client`'s key, in any name, bound to any certificate (PEM)."""
    bound = certs.facts(certificate.encode()).thumbprint if certificate else None
    return Minter(client.key, name or client.name, AUDIENCE).mint(
        time.time(), os.urandom(JTI), bound
    )
