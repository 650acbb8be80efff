"""Hostile tokens, certificates and requests against a gateway that runs: all of them are refused.

One gateway process serves the whole module. A case is bytes for a socket and the reason code that
must stand in the audit log. The outside is told one and the same 401 whatever is wrong with an
identity, a 400, 403, 408, 413 or 415 for the rest, and never a 5xx. Nothing of the list reaches the
service, and the gateway's log stays empty: `World.silent` looks after every test.
"""

import gzip
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.site import Site, find_nginx, installed_version
from keys import certs
from tests.droplet import free_port
from tests.forge import Forger, hostile_tokens
from tests.gatewayserver import AUDIENCE, Enrolled, call
from tests.hostile import (
    BODY,
    DAY,
    MIB,
    SAYING_NOTHING,
    STATUS,
    UNIFORM_401,
    Answer,
    Lines,
    Wire,
    World,
    bearer,
    https,
    mint,
    open_world,
    proved,
    ssh,
    write,
)
from tests.nginxserver import Nginx
from tunnel.demo.nginx import make_certificate


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("hostile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _silent(world: World) -> Iterator[None]:
    yield
    world.silent()


# What must get through, or the refusals would prove nothing


def test_the_good_requests_that_the_cases_are_made_of(world: World) -> None:
    operator, observer = world.operator, world.observer
    world.accept("https", write(https(operator)))
    world.accept("ssh", write(ssh(operator)))
    world.accept("https", write(https(operator), "GET /mcp HTTP/1.1", body=None))
    world.accept("https", write(https(operator), "GET /health HTTP/1.1", body=None))
    world.accept("https", write(https(operator), "POST /mcp HTTP/1.0", host=False))
    chunked = ["Transfer-Encoding: chunked", "Content-Type: application/json"]
    head = write(https(operator), more=chunked, body=None)
    world.accept("https", head, b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY))
    world.accept("https", write(https(observer), body=call("tools/list", None)))
    # An observer may end its own session.
    world.accept("https", write(https(observer), "DELETE /mcp HTTP/1.1", body=None))


def test_what_is_said_about_identities_is_neither_believed_nor_passed_on(world: World) -> None:
    """On the loopback port a good token is enough, and the fields that NGINX sets are nothing."""
    spoofed = proved(world.neighbour.certificate, "FAILED:revoked")
    world.accept("ssh", write([*spoofed, *ssh(world.operator)]))
    names = {name.lower() for name, _ in world.target.seen[-1].headers}
    assert not names & {"authorization", "x-client-verify", "x-client-cert"}


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_an_upgrade_is_not_heard(world: World, protocol: str) -> None:
    """RFC 9110 section 7.8 lets a server ignore it; the service must not hear of it either."""
    more = ["Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}", "HTTP2-Settings: AAMA"]
    answer = world.accept(
        "https", write(https(world.operator), "GET /mcp HTTP/1.1", more, body=None)
    )
    assert b" 101 " not in answer.raw
    names = {name.lower() for name, _ in world.target.seen[-1].headers}
    assert not names & {"upgrade", "http2-settings"}


# Tokens


@pytest.mark.parametrize("way", ["https", "ssh"])
def test_every_token_of_the_forger(world: World, way: str) -> None:
    """The list of tests/forge.py, live: each code, one answer."""
    client, other = world.operator, world.neighbour
    bound = way == "https"
    forger = Forger(client.key, client.name, AUDIENCE, client.thumbprint if bound else None)
    neighbour = Forger(other.key, other.name, AUDIENCE, other.thumbprint if bound else None)
    tokens = {
        one.name: one
        for one in hostile_tokens(forger, time.time(), neighbour)
        # Blanks at the end are not part of a field's value: those tokens arrive as good ones.
        if one.token == one.token.rstrip(" \t\r\n") and len(one.token) < 8000
    }
    assert len(tokens) > 300
    identity = proved(client.certificate) if bound else []
    before, delivered = len(world.gateway.audit()), world.target.requests
    answers: dict[str, Answer] = {}
    for name, one in tokens.items():
        field = bearer(one.token).encode("utf-8", "surrogateescape").decode("latin-1")
        with world.dial(way) as wire:
            wire.say(write([*identity, field]))
            answers[name] = wire.hear()
    codes = [line["code"] for line in world.decided(before)]
    assert dict(zip(tokens, codes, strict=True)) == {
        name: _code_on_the_wire(one.token, one.code) for name, one in tokens.items()
    }
    assert {
        answer.dateless
        for (name, answer), code in zip(answers.items(), codes, strict=True)
        if code != "request_invalid"
    } == {UNIFORM_401[True]}
    assert {answer.status for answer in answers.values()} == {400, 401}
    assert world.target.requests == delivered


def _code_on_the_wire(token: str, code: str) -> str:
    """Return what a server says of a token that may not even fit into a header field."""
    if not token:
        return "scheme_refused"  # the blank behind "Bearer" is not part of the value
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in token):
        return "request_invalid"
    return code


# Identities on the Unix socket: what NGINX would send, and what it never would

Identity = Callable[[World], Lines]


def _with(*lines: str) -> Identity:
    """A good token without these lines of NGINX."""
    return lambda world: [*lines, bearer(world.operator.token(bound=True))]


def _cert_field(change: Callable[[str], str]) -> Identity:
    """A good request, its certificate field changed."""

    def build(world: World) -> Lines:
        verify, certificate = proved(world.operator.certificate)
        name, _, value = certificate.partition(": ")
        return [verify, f"{name}: {change(value)}", bearer(world.operator.token(bound=True))]

    return build


def _verify_field(value: str) -> Identity:
    return lambda world: [
        *proved(world.operator.certificate, value),
        bearer(world.operator.token(bound=True)),
    ]


def _authorization(*values: str) -> Identity:
    """A good certificate, and these values with TOKEN in them."""

    def build(world: World) -> Lines:
        token = world.operator.token(bound=True)
        fields = [f"Authorization: {value.replace('TOKEN', token)}" for value in values]
        return [*proved(world.operator.certificate), *fields]

    return build


def _shown(certificate: Callable[[World], str]) -> Identity:
    """The operator, with a token bound to this certificate and showing it."""

    def build(world: World) -> Lines:
        pem = certificate(world)
        return [*proved(pem), bearer(mint(world.operator, certificate=pem))]

    return build


def _own(name: str) -> Identity:
    """A client of the registry with everything that it holds."""
    return lambda world: https(world.people[name])


def _stranger(world: World) -> Enrolled:
    return replace(world.operator, key=Ed25519PrivateKey.generate())


OVER_HTTPS: dict[str, tuple[str, Identity]] = {
    # Authorization.
    "no token": ("token_missing", lambda world: proved(world.operator.certificate)),
    "token twice, the same": ("token_repeated", _authorization("Bearer TOKEN", "Bearer TOKEN")),
    "token twice, the first Basic": (
        "token_repeated",
        _authorization("Basic YTpi", "Bearer TOKEN"),
    ),
    "token twice, the last empty": ("token_repeated", _authorization("Bearer TOKEN", "")),
    "two tokens with a comma": ("token_malformed", _authorization("Bearer TOKEN, Bearer TOKEN")),
    "a parameter behind the token": ("token_malformed", _authorization('Bearer TOKEN, realm="x"')),
    "Basic": ("scheme_refused", _authorization("Basic b3BlcmF0b3I6eA==")),
    "Basic with the token": ("scheme_refused", _authorization("Basic TOKEN")),
    "DPoP": ("scheme_refused", _authorization("DPoP TOKEN")),
    "Negotiate": ("scheme_refused", _authorization("Negotiate TOKEN")),
    "the token alone": ("scheme_refused", _authorization("TOKEN")),
    "empty": ("scheme_refused", _authorization("")),
    "the scheme alone": ("scheme_refused", _authorization("Bearer")),
    "the scheme and blanks": ("scheme_refused", _authorization("Bearer    ")),
    "two blanks": ("token_malformed", _authorization("Bearer  TOKEN")),
    "a tab": ("scheme_refused", _authorization("Bearer\tTOKEN")),
    "a blank and a tab": ("token_malformed", _authorization("Bearer \tTOKEN")),
    "a colon": ("scheme_refused", _authorization("Bearer: TOKEN")),
    "an equals sign": ("scheme_refused", _authorization("Bearer=TOKEN")),
    "the scheme twice": ("token_malformed", _authorization("Bearer Bearer TOKEN")),
    "quoted": ("token_malformed", _authorization('Bearer "TOKEN"')),
    "a no-break blank": ("scheme_refused", _authorization("Bearer\xc2\xa0TOKEN")),
    "a scheme with a letter of another script": (
        "scheme_refused",
        _authorization("B\xd0\xb5arer TOKEN"),
    ),
    "a byte that is no UTF-8": ("token_not_ascii", _authorization("Bearer TOKEN\xff")),
    "7 KiB": ("token_too_large", _authorization("Bearer " + "A" * 7168)),
    "in Proxy-Authorization": (
        "token_missing",
        lambda world: [
            *proved(world.operator.certificate),
            f"Proxy-Authorization: Bearer {world.operator.token(bound=True)}",
        ],
    ),
    "in a cookie": (
        "token_missing",
        lambda world: [
            *proved(world.operator.certificate),
            f"Cookie: Authorization=Bearer {world.operator.token(bound=True)}",
        ],
    ),
    "with an underscore for a name": (
        "token_missing",
        lambda world: [
            *proved(world.operator.certificate),
            f"HTTP_Authorization: Bearer {world.operator.token(bound=True)}",
        ],
    ),
    # What NGINX says of the certificate.
    "nothing about a certificate": ("certificate_missing", _with()),
    "no verdict": (
        "certificate_missing",
        lambda world: [
            proved(world.operator.certificate)[1],
            bearer(world.operator.token(bound=True)),
        ],
    ),
    "a verdict without a certificate": ("certificate_missing", _with("X-Client-Verify: SUCCESS")),
    "NONE": ("certificate_missing", _with("X-Client-Verify: NONE")),
    "NONE and a certificate": ("certificate_missing", _verify_field("NONE")),
    "FAILED": ("certificate_refused", _verify_field("FAILED:certificate has expired")),
    "FAILED:SUCCESS": ("certificate_refused", _verify_field("FAILED:SUCCESS")),
    "an empty verdict": ("certificate_refused", _verify_field("")),
    "success": ("certificate_refused", _verify_field("success")),
    "SUCCESS, SUCCESS": ("certificate_refused", _verify_field("SUCCESS, SUCCESS")),
    "SUCCESS, NONE": ("certificate_refused", _verify_field("SUCCESS, NONE")),
    "SUCCESS and more": ("certificate_refused", _verify_field("SUCCESSFUL")),
    "SUCCESS and a no-break blank": ("certificate_refused", _verify_field("SUCCESS\xc2\xa0")),
    "true": ("certificate_refused", _verify_field("true")),
    "0": ("certificate_refused", _verify_field("0")),
    "verdict twice": (
        "identity_repeated",
        lambda world: ["X-Client-Verify: SUCCESS", *https(world.operator)],
    ),
    "verdict twice, the first NONE": (
        "identity_repeated",
        lambda world: ["X-Client-Verify: NONE", *https(world.operator)],
    ),
    "verdict twice, the last NONE": (
        "identity_repeated",
        lambda world: [*https(world.operator), "x-client-verify: NONE"],
    ),
    "certificate twice, the same": (
        "identity_repeated",
        lambda world: [*https(world.operator), proved(world.operator.certificate)[1]],
    ),
    "certificate twice, another's first": (
        "identity_repeated",
        lambda world: [proved(world.neighbour.certificate)[1], *https(world.operator)],
    ),
    "certificate twice, the last empty": (
        "identity_repeated",
        lambda world: [*https(world.operator), "X-CLIENT-CERT:"],
    ),
    # The certificate as text.
    "certificate empty": ("certificate_invalid", _cert_field(lambda _: "")),
    "certificate garbage": ("certificate_invalid", _cert_field(lambda _: "garbage")),
    "certificate of percent signs": ("certificate_invalid", _cert_field(lambda _: "%" * 1000)),
    "certificate with %zz": ("certificate_invalid", _cert_field(lambda _: "%zz%0")),
    "certificate cut short": ("certificate_invalid", _cert_field(lambda text: text[:400])),
    "certificate without its end": ("certificate_invalid", _cert_field(lambda text: text[:-60])),
    "certificate encoded twice": (
        "certificate_invalid",
        _cert_field(lambda text: quote(text, safe="")),
    ),
    "certificate of zeros": ("certificate_invalid", _cert_field(lambda _: "%00" * 500)),
    "certificate not ASCII": ("certificate_invalid", _cert_field(lambda text: text + "\xe4")),
    "certificate with a letter changed to another alphabet": (
        "certificate_invalid",
        _cert_field(lambda text: text.replace("MII", "M\xd0\x86I", 1)),
    ),
    "certificate in base64 alone": (
        "certificate_invalid",
        _cert_field(lambda text: text.split("-----")[2]),
    ),
    "certificate in a comma list": ("certificate_invalid", _cert_field(lambda _: "a, b")),
    "certificate twice in one field": ("certificate_invalid", _cert_field(lambda text: text * 2)),
    "another's certificate behind it": (
        "certificate_invalid",
        lambda world: [
            *proved(world.operator.certificate + world.neighbour.certificate),
            bearer(world.operator.token(bound=True)),
        ],
    ),
    "another's certificate before it": (
        "certificate_invalid",
        lambda world: [
            *proved(world.neighbour.certificate + world.operator.certificate),
            bearer(world.operator.token(bound=True)),
        ],
    ),
    "a certificate request": (
        "certificate_invalid",
        _cert_field(
            lambda _: quote(certs.make_request(ec.generate_private_key(ec.SECP256R1())), safe="")
        ),
    ),
    "a private key": (
        "certificate_invalid",
        _cert_field(
            lambda _: quote(certs.private_pem(ec.generate_private_key(ec.SECP256R1())), safe="")
        ),
    ),
    "certificate labelled as something else": (
        "certificate_invalid",
        _cert_field(lambda text: text.replace("CERTIFICATE", "X509%20CRL")),
    ),
    # The certificate and its dates.
    "expired": ("certificate_expired", _shown(lambda world: world.certificate(start=-2 * DAY))),
    "expired a minute ago": (
        "certificate_expired",
        _shown(lambda world: world.certificate(start=-DAY - 60)),
    ),
    "not yet valid": ("certificate_early", _shown(lambda world: world.certificate(start=DAY))),
    "expired, and the token too": (
        "certificate_expired",
        lambda world: [
            *proved(world.certificate(start=-2 * DAY)),
            bearer(world.operator.token(bound=True, now=time.time() - DAY)),
        ],
    ),
    # The certificate and who it belongs to.
    "of our CA, never registered": (
        "certificate_unknown",
        _shown(lambda world: world.certificate()),
    ),
    "of a CA made at home": (
        "certificate_unknown",
        _shown(
            lambda world: world.certificate(authority=certs.make_authority("Home", time.time()))
        ),
    ),
    "the CA's own": (
        "certificate_unknown",
        _shown(lambda world: world.authority.certificate_pem().decode()),
    ),
    "another's certificate, named in our token": (
        "certificate_unknown",
        _shown(lambda world: world.neighbour.certificate),
    ),
    "another's certificate, our token": (
        "binding_mismatch",
        lambda world: [
            *proved(world.neighbour.certificate),
            bearer(world.operator.token(bound=True)),
        ],
    ),
    "our certificate, another's token": (
        "binding_mismatch",
        lambda world: [
            *proved(world.operator.certificate),
            bearer(world.neighbour.token(bound=True)),
        ],
    ),
    "our certificate, another's named in our token": (
        "binding_mismatch",
        lambda world: [
            *proved(world.operator.certificate),
            bearer(mint(world.operator, certificate=world.neighbour.certificate)),
        ],
    ),
    "a token for ssh": (
        "binding_missing",
        lambda world: [*proved(world.operator.certificate), *ssh(world.operator)],
    ),
    "a client whose certificate was taken off the registry": ("certificate_unknown", _own("bare")),
    "a client with another's certificate on record": ("certificate_unknown", _own("swapped")),
    # The client.
    "a revoked client": ("client_revoked", _own("revoked")),
    "a revoked key": ("client_revoked", _own("key_revoked")),
    "a client that was renamed": ("client_mismatch", _own("renamed")),
    "a key that was given to another client": ("client_mismatch", _own("moved")),
    "a client that was removed": ("key_unknown", _own("removed")),
    "a key that was never registered": (
        "key_unknown",
        lambda world: https(_stranger(world)),
    ),
    "in the name of another": (
        "client_mismatch",
        lambda world: [
            *proved(world.operator.certificate),
            bearer(
                mint(
                    world.operator,
                    name=world.neighbour.name,
                    certificate=world.operator.certificate,
                )
            ),
        ],
    ),
    "in the name of nobody": (
        "client_mismatch",
        lambda world: [
            *proved(world.operator.certificate),
            bearer(mint(world.operator, name="nobody", certificate=world.operator.certificate)),
        ],
    ),
}


@pytest.mark.parametrize("name", OVER_HTTPS)
def test_an_identity_on_the_unix_socket(world: World, name: str) -> None:
    code, identity = OVER_HTTPS[name]
    world.refuse("https", code, write(identity(world)), closing=True)


@pytest.mark.parametrize("name", ["no token", "NONE", "expired", "a revoked client"])
def test_without_a_body_the_answer_is_the_same(world: World, name: str) -> None:
    code, identity = OVER_HTTPS[name]
    world.refuse(
        "https", code, write(identity(world), "GET /mcp HTTP/1.1", body=None), closing=False
    )


# Identities on the loopback port

OVER_SSH: dict[str, tuple[str, Identity]] = {
    "no token": ("token_missing", lambda _: []),
    "a token for https": ("binding_unproved", lambda world: https(world.operator)[2:]),
    "a token for https and the fields of NGINX": (
        "binding_unproved",
        lambda world: https(world.operator),
    ),
    "the fields of NGINX and no token": (
        "token_missing",
        lambda world: proved(world.operator.certificate),
    ),
    "a token bound to another's certificate, and that certificate": (
        "binding_unproved",
        lambda world: [
            *proved(world.neighbour.certificate),
            bearer(mint(world.operator, certificate=world.neighbour.certificate)),
        ],
    ),
    "two tokens": ("token_repeated", lambda world: [*ssh(world.operator), *ssh(world.operator)]),
    "a revoked client": ("client_revoked", lambda world: ssh(world.people["revoked"])),
    "a revoked key": ("client_revoked", lambda world: ssh(world.people["key_revoked"])),
    "a client that was renamed": ("client_mismatch", lambda world: ssh(world.people["renamed"])),
    "a key that was given to another client": (
        "client_mismatch",
        lambda world: ssh(world.people["moved"]),
    ),
    "a client that was removed": ("key_unknown", lambda world: ssh(world.people["removed"])),
    "a key that was never registered": ("key_unknown", lambda world: ssh(_stranger(world))),
    "in the name of another": (
        "client_mismatch",
        lambda world: [bearer(mint(world.operator, name=world.neighbour.name))],
    ),
    "a token of a minute ago": (
        "token_expired",
        lambda world: [bearer(world.operator.token(bound=False, now=time.time() - 70))],
    ),
    "a token of the minute to come": (
        "token_early",
        lambda world: [bearer(world.operator.token(bound=False, now=time.time() + 30))],
    ),
}


@pytest.mark.parametrize("name", OVER_SSH)
def test_an_identity_on_the_loopback_port(world: World, name: str) -> None:
    code, identity = OVER_SSH[name]
    world.refuse("ssh", code, write(identity(world)), closing=True)


@pytest.mark.parametrize(
    "line",
    [
        "POST /health HTTP/1.1",
        "HEAD /metrics HTTP/1.1",
        "GET /metrics/ HTTP/1.1",
        "GET /metrics? HTTP/1.1",
        "GET //metrics HTTP/1.1",
        "GET /%6detrics HTTP/1.1",
        "GET /health/../mcp HTTP/1.1",
        "GET http://localhost/metrics HTTP/1.1",
    ],
)
def test_without_a_token_three_paths_are_open_and_no_other_spelling(
    world: World, line: str
) -> None:
    world.refuse("ssh", "token_missing", write([], line, body=None), closing=False)


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_what_is_open_to_the_droplet_is_not_open_to_nginx(world: World, path: str) -> None:
    world.refuse("https", "certificate_missing", write([], f"GET {path} HTTP/1.1", body=None))


# Replay


def test_a_token_that_was_used(world: World) -> None:
    identity = ssh(world.operator)
    world.accept("ssh", write(identity))
    world.refuse("ssh", "token_replayed", write(identity))
    world.refuse("ssh", "token_replayed", write(identity, body=call("tools/list", None)))
    world.refuse("ssh", "token_replayed", write(identity, "GET /health HTTP/1.1", body=None))
    world.refuse(
        "https", "binding_missing", write([*proved(world.operator.certificate), *identity])
    )


def test_a_refused_call_does_not_use_its_token_up(world: World) -> None:
    identity = ssh(world.observer)
    world.refuse("ssh", "tool_denied", write(identity))
    world.accept("ssh", write(identity, body=call("tools/list", None)))
    world.refuse("ssh", "token_replayed", write(identity, body=call("tools/list", None)))


def test_a_token_that_twenty_use_at_once(world: World) -> None:
    before, delivered = len(world.gateway.audit()), world.target.requests
    raw, gate = write(ssh(world.operator)), threading.Barrier(20)

    def use(_: int) -> Answer:
        with world.dial("ssh") as wire:
            wire.say(raw[:-1])
            gate.wait(10)
            wire.say(raw[-1:])
            return wire.hear()

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(use, range(20)))
    assert sorted(answer.status for answer in answers) == [200] + [401] * 19
    assert len({answer.dateless for answer in answers if answer.status == 401}) == 1
    refused = [line["code"] for line in world.decided(before) if line["decision"] == "deny"]
    assert refused == ["token_replayed"] * 19
    assert world.target.requests == delivered + 1


def test_a_token_that_was_used_before_a_restart(world: World) -> None:
    identity = ssh(world.operator)
    world.accept("ssh", write(identity))
    assert world.gateway.stop() == 0
    world.gateway.start()
    world.refuse("ssh", "token_replayed", write(identity))
    world.accept("ssh", write(ssh(world.operator)))


# Messages

DEEP: Final = 100_000


def _message(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/list"} | members).encode()


def _tool_call(text: str) -> bytes:
    """A call with `text` for its parameters."""
    return b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":%s}' % text.encode()


MESSAGES: dict[str, tuple[str, bytes]] = {
    "a batch": ("batch_refused", b"[%s]" % BODY),
    "a batch of two": ("batch_refused", b"[%s,%s]" % (BODY, BODY)),
    "an empty batch": ("batch_refused", b"[]"),
    "nothing": ("message_invalid", b""),
    "blanks": ("message_invalid", b" \r\n "),
    "a string": ("message_invalid", b'"tools/call"'),
    "a number": ("message_invalid", b"7"),
    "null": ("message_invalid", b"null"),
    "an empty object": ("message_invalid", b"{}"),
    "a form": ("message_invalid", b"method=tools/call&name=stop_trading"),
    "method twice": (
        "message_invalid",
        b'{"jsonrpc":"2.0","id":7,"method":"tools/list","method":"tools/call"}',
    ),
    "method twice, once escaped": (
        "message_invalid",
        b'{"jsonrpc":"2.0","id":7,"method":"tools/list","meth\\u006fd":"tools/call"}',
    ),
    "name twice": ("message_invalid", _tool_call('{"name":"get_cycle","name":"stop_trading"}')),
    "name twice, once escaped": (
        "message_invalid",
        _tool_call('{"name":"get_cycle","\\u006eame":"stop_trading"}'),
    ),
    "params twice": (
        "message_invalid",
        b'{"params":{"name":"stop_trading"},' + _tool_call('{"name":"get_cycle"}')[1:],
    ),
    "an argument twice": (
        "message_invalid",
        _tool_call('{"name":"get_cycle","arguments":{"a":[{"b":1,"b":2}]}}'),
    ),
    "id twice": ("message_invalid", b'{"id":8,' + BODY[1:]),
    "NaN": ("message_invalid", _tool_call('{"name":"get_cycle","arguments":{"a":NaN}}')),
    "Infinity": ("message_invalid", _tool_call('{"name":"get_cycle","arguments":{"a":-Infinity}}')),
    "1e999": ("message_invalid", _tool_call('{"name":"get_cycle","arguments":{"a":1e999}}')),
    "half a surrogate pair": (
        "message_invalid",
        _tool_call('{"name":"get_cycle","arguments":{"a":"\\ud800"}}'),
    ),
    "an integer of 5,000 digits": (
        "message_invalid",
        _tool_call('{"name":"get_cycle","arguments":{"a":%s}}' % ("9" * 5000)),
    ),
    "an id of 5,000 digits": ("message_invalid", BODY.replace(b"7", b"7" * 5000, 1)),
    "UTF-16": ("message_invalid", BODY.decode().encode("utf-16")),
    "UTF-16 without a mark": ("message_invalid", BODY.decode().encode("utf-16-be")),
    "UTF-32": ("message_invalid", BODY.decode().encode("utf-32")),
    "a byte order mark": ("message_invalid", b"\xef\xbb\xbf" + BODY),
    "a byte that is no UTF-8": ("message_invalid", BODY.replace(b"get_cycle", b"get\xffcycle")),
    "UTF-8 in too many bytes": ("message_invalid", BODY.replace(b"get_cycle", b"get\xc0\xafcycle")),
    "compressed": ("message_invalid", gzip.compress(BODY)),
    "lists, 100,000 deep": ("message_invalid", b"[" * DEEP + b"]" * DEEP),
    "lists, never closed": ("message_invalid", b"[" * MIB),
    "objects, 100,000 deep": ("message_invalid", b'{"a":' * DEEP + b"1" + b"}" * DEEP),
    "deep in the arguments": (
        "message_invalid",
        _tool_call('{"name":"get_cycle","arguments":{"a":' + "[" * DEEP + "]" * DEEP + "}}"),
    ),
    "something behind": ("message_invalid", BODY + b"x"),
    "NUL behind": ("message_invalid", BODY + b"\0"),
    "two documents": ("message_invalid", BODY + BODY),
    "two documents, a line each": ("message_invalid", BODY + b"\n" + BODY),
    "cut short": ("message_invalid", BODY[:-1]),
    "a comment": ("message_invalid", b"/**/" + BODY),
    "a comma too many": ("message_invalid", BODY[:-1] + b",}"),
    "single quotes": ("message_invalid", BODY.replace(b'"', b"'")),
    "jsonrpc missing": ("message_invalid", b'{"id":7,"method":"tools/list"}'),
    "jsonrpc 1.0": ("message_invalid", _message(jsonrpc="1.0")),
    "jsonrpc a number": ("message_invalid", _message(jsonrpc=2.0)),
    "id null": ("message_invalid", _message(id=None)),
    "id true": ("message_invalid", _message(id=True)),
    "id a float": ("message_invalid", _message(id=7.5)),
    "id a list": ("message_invalid", _message(id=[7])),
    "id an object": ("message_invalid", _message(id={"id": 7})),
    "method null": ("message_invalid", _message(method=None)),
    "method a number": ("message_invalid", _message(method=1)),
    "method a list": ("message_invalid", _message(method=["tools/list"])),
    "method empty": ("message_invalid", _message(method="")),
    "method with a blank": ("message_invalid", _message(method="tools/list ")),
    "method with NUL": ("message_invalid", _message(method="tools/list\0")),
    "method with a line break": ("message_invalid", _message(method="tools/list\n")),
    "method in another script": ("message_invalid", _message(method="tools/\u217cist")),
    "method of 65 letters": ("message_invalid", _message(method="a" * 65)),
    "neither method nor result": ("message_invalid", b'{"jsonrpc":"2.0","id":7}'),
    "a result without an id": ("message_invalid", b'{"jsonrpc":"2.0","result":{}}'),
    "a result and an error": ("message_invalid", b'{"jsonrpc":"2.0","id":7,"result":1,"error":1}'),
    "a method and a result": ("message_invalid", _message(method="tools/list", result={})),
    "params a list": ("message_invalid", _tool_call('["get_cycle"]')),
    "params a string": ("message_invalid", _tool_call('"get_cycle"')),
    "params null": ("message_invalid", _tool_call("null")),
    "a call without a name": ("message_invalid", _tool_call('{"arguments":{}}')),
    "a call without params": ("message_invalid", _message(method="tools/call")),
    "a name that is a list": ("message_invalid", _tool_call('{"name":["get_cycle"]}')),
    "a name that is null": ("message_invalid", _tool_call('{"name":null}')),
    "a name that is a number": ("message_invalid", _tool_call('{"name":1}')),
    "a read without a uri": ("message_invalid", _message(method="resources/read", params={})),
    "an unknown method": ("method_denied", _message(method="tools/delete")),
    "a method in capitals": ("method_denied", _message(method="TOOLS/CALL")),
    "a method below tools/call": ("method_denied", _message(method="tools/call/x")),
    "a method that clients answer": ("method_denied", _message(method="sampling/createMessage")),
    "a method of JSON-RPC itself": ("method_denied", _message(method="rpc.discover")),
    "an unknown notification": ("method_denied", b'{"jsonrpc":"2.0","method":"notifications/x"}'),
    "a body of 4 MiB and a byte": ("body_too_large", BODY + b" " * (4 * MIB + 1 - len(BODY))),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message(world: World, name: str) -> None:
    code, body = MESSAGES[name]
    world.refuse("https", code, write(https(world.operator), body=body))


TOOLS = ("start_trading_cycle", "stop_trading", "get_cycle", "run_backtest", "*", "", "nothing")


@pytest.mark.parametrize("tool", TOOLS)
def test_an_observer_that_calls_a_tool(world: World, tool: str) -> None:
    body = call(name=tool, arguments={})
    world.refuse("https", "tool_denied", write(https(world.observer), body=body))
    world.refuse("ssh", "tool_denied", write(ssh(world.observer), body=body))


def test_an_observer_that_cancels_a_task(world: World) -> None:
    body = call("tasks/cancel", None, taskId="1")
    world.refuse("https", "method_denied", write(https(world.observer), body=body))
    world.accept("https", write(https(world.operator), body=body))


def test_an_observer_that_says_it_is_an_operator(world: World) -> None:
    more = ["X-Role: operator", "X-Client: operator", "X-Client-Role: operator"]
    world.refuse("https", "tool_denied", write(https(world.observer), more=more))


# Fields that contradict the message, or say another thing than what it is

FIELDS: dict[str, tuple[str, Lines]] = {
    "Mcp-Method another": ("header_mismatch", ["Mcp-Method: tools/list"]),
    "Mcp-Method in capitals": ("header_mismatch", ["Mcp-Method: TOOLS/CALL"]),
    "Mcp-Method empty": ("header_mismatch", ["Mcp-Method:"]),
    "Mcp-Method twice": ("header_mismatch", ["Mcp-Method: tools/call", "Mcp-Method: tools/call"]),
    "Mcp-Method with a comma": ("header_mismatch", ["Mcp-Method: tools/call, tools/list"]),
    "Mcp-Name another": ("header_mismatch", ["Mcp-Name: stop_trading"]),
    "Mcp-Name empty": ("header_mismatch", ["Mcp-Name:"]),
    "Mcp-Name twice": ("header_mismatch", ["Mcp-Name: get_cycle", "Mcp-Name: stop_trading"]),
    "Mcp-Name with a comma": ("header_mismatch", ["Mcp-Name: get_cycle, stop_trading"]),
    "Mcp-Name another in base64": ("header_mismatch", ["Mcp-Name: =?base64?c3RvcF90cmFkaW5n?="]),
    "Mcp-Name not base64": ("header_mismatch", ["Mcp-Name: =?base64?!!!!?="]),
    "Mcp-Name base64 cut short": ("header_mismatch", ["Mcp-Name: =?base64?Z2V0X2N5Y2x?="]),
    "Mcp-Name base64 that is no UTF-8": ("header_mismatch", ["Mcp-Name: =?base64?/////w==?="]),
    "Mcp-Name in other encoding": ("header_mismatch", ["Mcp-Name: =?utf-8?Q?get=5Fcycle?="]),
    "Mcp-Name percent-encoded": ("header_mismatch", ["Mcp-Name: get%5Fcycle"]),
    "Mcp-Name not ASCII": ("header_mismatch", ["Mcp-Name: get_cycl\xe9"]),
    "MCP-Protocol-Version twice": (
        "header_mismatch",
        ["MCP-Protocol-Version: 2025-11-25", "MCP-Protocol-Version: 2026-07-28"],
    ),
    "Content-Encoding gzip": ("encoding_refused", ["Content-Encoding: gzip"]),
    "Content-Encoding br": ("encoding_refused", ["Content-Encoding: br"]),
    "Content-Encoding unknown": ("encoding_refused", ["Content-Encoding: x"]),
    "Content-Encoding two in one": ("encoding_refused", ["Content-Encoding: identity, gzip"]),
    "Content-Type twice": ("request_invalid", ["Content-Type: application/json"]),
    "Content-Type twice, another": ("request_invalid", ["Content-Type: text/plain"]),
    "Content-Length twice, the same": ("request_invalid", [f"Content-Length: {len(BODY)}"]),
    "Content-Length twice, another": ("request_invalid", ["Content-Length: 3"]),
    "Host twice": ("request_invalid", ["Host: elsewhere"]),
    "a field folded": ("request_invalid", ["X-Folded: a\r\n b"]),
    "a field folded with a tab": ("request_invalid", ["X-Folded: a\r\n\tb"]),
    "a field with NUL": ("request_invalid", ["X-Odd: a\0b"]),
    "a field with CR": ("request_invalid", ["X-Odd: a\rb"]),
    "a field with LF": ("request_invalid", ["X-Odd: a\nAuthorization: Bearer b"]),
    "a field with DEL": ("request_invalid", ["X-Odd: a\x7f"]),
    "a blank before the colon": ("request_invalid", ["X-Odd : a"]),
    "a blank in a name": ("request_invalid", ["X Odd: a"]),
    "no name": ("request_invalid", [": a"]),
    "no colon": ("request_invalid", ["X-Odd"]),
    "a name that is not ASCII": ("request_invalid", ["X-\xe4: a"]),
    "a name in brackets": ("request_invalid", ["(X): a"]),
    "a field of 9 KiB": ("request_invalid", ["X-Long: " + "a" * 9216]),
    "a name of 9 KiB": ("request_invalid", ["X" * 9216 + ": a"]),
    "200 fields": ("request_invalid", [f"X-{number}: a" for number in range(200)]),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_field(world: World, name: str) -> None:
    code, more = FIELDS[name]
    world.refuse("https", code, write(https(world.operator), more=more))


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "text/plain",
        "application/json-rpc",
        "application/jsonp",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json, text/plain",
        "application/json; charset=utf-7",
        "application/json; charset=utf-16",
        "text/plain; application/json",
    ],
)
def test_a_content_type(world: World, kind: str | None) -> None:
    head = write(https(world.operator), kind=kind, body=BODY)
    world.refuse("https", "content_type_refused", head)


def test_a_name_in_base64_that_does_agree_is_let_through(world: World) -> None:
    more = ["Mcp-Method: tools/call", "Mcp-Name: =?base64?Z2V0X2N5Y2xl?="]
    world.accept("https", write(https(world.operator), more=more))


# Request lines

LINES: dict[str, tuple[str, str]] = {
    "two slashes": ("path_denied", "POST //mcp HTTP/1.1"),
    "a host for a path": ("path_denied", "POST //localhost/mcp HTTP/1.1"),
    "a slash behind": ("path_denied", "POST /mcp/ HTTP/1.1"),
    "a slash behind, encoded": ("path_denied", "POST /mcp%2f HTTP/1.1"),
    "a letter encoded": ("path_denied", "POST /%6dcp HTTP/1.1"),
    "a dot": ("path_denied", "POST /./mcp HTTP/1.1"),
    "a dot behind": ("path_denied", "POST /mcp/. HTTP/1.1"),
    "dots": ("path_denied", "POST /../mcp HTTP/1.1"),
    "dots behind": ("path_denied", "POST /mcp/.. HTTP/1.1"),
    "dots out of what is open": ("path_denied", "GET /system/../admin HTTP/1.1"),
    "dots, encoded": ("path_denied", "GET /system/%2e%2e/admin HTTP/1.1"),
    "dots, half encoded": ("path_denied", "GET /system/.%2e/admin HTTP/1.1"),
    "dots, encoded twice": ("path_denied", "GET /system/%252e%252e/admin HTTP/1.1"),
    "dots and a parameter": ("path_denied", "GET /system/..;/admin HTTP/1.1"),
    "backslashes": ("path_denied", "GET /system\\..\\admin HTTP/1.1"),
    "a backslash, encoded": ("path_denied", "GET /system/..%5cadmin HTTP/1.1"),
    "a slash too many in what is open": ("path_denied", "GET /system//health HTTP/1.1"),
    "a parameter": ("path_denied", "POST /mcp;x HTTP/1.1"),
    "capitals": ("path_denied", "POST /MCP HTTP/1.1"),
    "more letters": ("path_denied", "POST /mcpevil HTTP/1.1"),
    "NUL, encoded": ("path_denied", "POST /mcp%00 HTTP/1.1"),
    "a line break, encoded": ("path_denied", "POST /mcp%0d%0aX:%20y HTTP/1.1"),
    "a blank, encoded": ("path_denied", "POST /mcp%20 HTTP/1.1"),
    "a question mark, encoded": ("path_denied", "POST /mcp%3f HTTP/1.1"),
    "a fragment": ("path_denied", "POST /mcp#x HTTP/1.1"),
    "an at sign": ("path_denied", "POST /@localhost/mcp HTTP/1.1"),
    "UTF-8 in too many bytes": ("path_denied", "GET /system/%c0%ae%c0%ae/admin HTTP/1.1"),
    "the root": ("path_denied", "GET / HTTP/1.1"),
    "another path": ("path_denied", "GET /admin HTTP/1.1"),
    "what is open, without its slash": ("path_denied", "GET /system HTTP/1.1"),
    "a suffix of what is open": ("path_denied", "GET /x/system/health HTTP/1.1"),
    "the gateway's metrics": ("path_denied", "GET /metrics HTTP/1.1"),
    "a path in the query": ("path_denied", "POST /?/mcp HTTP/1.1"),
    "absolute form": ("path_denied", "POST http://localhost/mcp HTTP/1.1"),
    "absolute form, elsewhere": ("path_denied", "GET http://example.com/health HTTP/1.1"),
    "absolute form, another scheme": ("path_denied", "GET ftp://localhost/health HTTP/1.1"),
    "asterisk form": ("path_denied", "OPTIONS * HTTP/1.1"),
    "authority form": ("path_denied", "CONNECT localhost:5000 HTTP/1.1"),
    "CONNECT": ("http_method_denied", "CONNECT /mcp HTTP/1.1"),
    "OPTIONS": ("http_method_denied", "OPTIONS /mcp HTTP/1.1"),
    "HEAD": ("http_method_denied", "HEAD /mcp HTTP/1.1"),
    "TRACE": ("http_method_denied", "TRACE /mcp HTTP/1.1"),
    "PUT": ("http_method_denied", "PUT /mcp HTTP/1.1"),
    "PATCH": ("http_method_denied", "PATCH /mcp HTTP/1.1"),
    "PURGE": ("http_method_denied", "PURGE /mcp HTTP/1.1"),
    "PROPFIND": ("http_method_denied", "PROPFIND /mcp HTTP/1.1"),
    "POST to what is for reading": ("http_method_denied", "POST /health HTTP/1.1"),
    "DELETE of what is for reading": ("http_method_denied", "DELETE /system/health HTTP/1.1"),
    "GET with a body": ("request_invalid", "GET /mcp HTTP/1.1"),
    "DELETE with a body": ("request_invalid", "DELETE /mcp HTTP/1.1"),
    "a read with a body": ("request_invalid", "GET /health HTTP/1.1"),
    "a method that is none": ("request_invalid", "STEAL /mcp HTTP/1.1"),
    "a method in small letters": ("request_invalid", "post /mcp HTTP/1.1"),
    "a method with more": ("request_invalid", "POSTX /mcp HTTP/1.1"),
    "tabs": ("request_invalid", "POST\t/mcp\tHTTP/1.1"),
    "a blank in the path": ("request_invalid", "POST /mcp /x HTTP/1.1"),
    "no path": ("request_invalid", "POST HTTP/1.1"),
    "a path without its slash": ("request_invalid", "POST mcp HTTP/1.1"),
    "authority form without CONNECT": ("request_invalid", "GET localhost:5000 HTTP/1.1"),
    "asterisk form of a POST": ("request_invalid", "POST * HTTP/1.1"),
    "a query alone": ("request_invalid", "POST ?/mcp HTTP/1.1"),
    "NUL": ("request_invalid", "POST /mcp\0 HTTP/1.1"),
    "a byte that is not ASCII": ("request_invalid", "POST /mcp\xff HTTP/1.1"),
    "UTF-8": ("request_invalid", "POST /mc\xd1\x80 HTTP/1.1"),
    "a control in the query": ("request_invalid", "POST /mcp?\x01 HTTP/1.1"),
    "a query that is not ASCII": ("request_invalid", "POST /mcp?\xff HTTP/1.1"),
    "CR in the path": ("request_invalid", "POST /mcp\r/x HTTP/1.1"),
    "9 KiB": ("request_invalid", f"POST /mcp?{'a' * 9216} HTTP/1.1"),
    "no version": ("request_invalid", "POST /mcp"),
    "half a version": ("request_invalid", "POST /mcp HTTP/"),
    "HTTP/0.9 with fields": ("request_invalid", "POST /mcp HTTP/0.9"),
    "HTTP/1.2": ("request_invalid", "POST /mcp HTTP/1.2"),
    "HTTP/2.0": ("request_invalid", "POST /mcp HTTP/2.0"),
    "HTTP/3": ("request_invalid", "POST /mcp HTTP/3"),
    "HTTP/11": ("request_invalid", "POST /mcp HTTP/11"),
    "another protocol": ("request_invalid", "POST /mcp FTP/1.0"),
    "more behind the version": ("request_invalid", "POST /mcp HTTP/1.1 x"),
    "a blank line's worth of field": ("request_invalid", "POST /mcp HTTP/1.1\r\n X: y"),
}
_BODYLESS = {"GET", "OPTIONS", "CONNECT", "HEAD", "TRACE", "DELETE"}


@pytest.mark.parametrize("name", LINES)
def test_a_request_line(world: World, name: str) -> None:
    code, line = LINES[name]
    body = None if line.split(" ")[0] in _BODYLESS and "with a body" not in name else BODY
    raw = write(https(world.operator), line, body=body)
    world.refuse("https", code, raw)


NOT_HTTP: dict[str, bytes] = {
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    "an SSH banner": b"SSH-2.0-OpenSSH_9.2p1\r\n",
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "zeros": bytes(64),
    "the PROXY protocol": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\nGET /health HTTP/1.1\r\n\r\n",
    "an answer": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    "JSON": BODY + b"\r\n\r\n",
    "letters without an end": b"A" * 20000,
}


@pytest.mark.parametrize("name", NOT_HTTP)
@pytest.mark.parametrize("way", ["https", "ssh"])
def test_what_is_no_http(world: World, name: str, way: str) -> None:
    world.refuse(way, "request_invalid", NOT_HTTP[name], closing=True)


def test_http_0_9(world: World) -> None:
    """Its whole request is a line, so nobody can be behind it."""
    before = len(world.gateway.audit())
    with world.dial("https") as wire:
        wire.say(b"GET /mcp\r\n\r\n")
        answer = wire.hear()
        wire.hear_end()
    assert (answer.status, answer.body) == (401, SAYING_NOTHING)
    assert [line["code"] for line in world.decided(before)] == ["certificate_missing"]


def test_http_1_1_without_a_host(world: World) -> None:
    world.refuse("https", "request_invalid", write(https(world.operator), host=False))


# Where a request ends

CHUNKED: Final = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
INSIDE: Final = b"POST /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""What a smuggler would like to be taken for a request of its own."""

FRAMING: dict[str, tuple[Lines, bytes]] = {
    "CL.TE": ([f"Content-Length: {len(CHUNKED)}", "Transfer-Encoding: chunked"], CHUNKED),
    "TE.CL": (["Transfer-Encoding: chunked", "Content-Length: 4"], CHUNKED),
    "CL.TE with a request inside": (
        ["Content-Length: 50", "Transfer-Encoding: chunked"],
        b"0\r\n\r\n" + INSIDE,
    ),
    "CL 0 and TE": (["Content-Length: 0", "Transfer-Encoding: chunked"], CHUNKED),
    "TE xchunked": (["Transfer-Encoding: xchunked"], CHUNKED),
    "TE xchunked and CL": (["Transfer-Encoding: xchunked", f"Content-Length: {len(BODY)}"], BODY),
    "TE identity": (["Transfer-Encoding: identity"], BODY),
    "TE identity and CL": (["Transfer-Encoding: identity", f"Content-Length: {len(BODY)}"], BODY),
    "TE empty": (["Transfer-Encoding:"], CHUNKED),
    "TE empty and CL": (["Transfer-Encoding:", f"Content-Length: {len(BODY)}"], BODY),
    "TE chunked, chunked": (["Transfer-Encoding: chunked, chunked"], CHUNKED),
    "TE chunked twice": (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], CHUNKED),
    "TE chunked and identity": (
        ["Transfer-Encoding: chunked", "Transfer-Encoding: identity"],
        CHUNKED,
    ),
    "TE gzip, chunked": (["Transfer-Encoding: gzip, chunked"], CHUNKED),
    "TE chunked, gzip": (["Transfer-Encoding: chunked, gzip"], CHUNKED),
    "TE chunked with a parameter": (["Transfer-Encoding: chunked;a=b"], CHUNKED),
    "TE quoted": (['Transfer-Encoding: "chunked"'], CHUNKED),
    "TE with a vertical tab": (["Transfer-Encoding: \x0bchunked"], CHUNKED),
    "TE with a no-break blank": (["Transfer-Encoding: chunked\xa0"], CHUNKED),
    "TE folded": (["Transfer-Encoding:\r\n chunked"], CHUNKED),
    "TE with a blank before the colon": (["Transfer-Encoding : chunked"], CHUNKED),
    "TE behind a bare LF": (["X-Odd: a\nTransfer-Encoding: chunked"], CHUNKED),
    "CL negative": (["Content-Length: -1"], BODY),
    "CL with a plus": ([f"Content-Length: +{len(BODY)}"], BODY),
    "CL hexadecimal": ([f"Content-Length: {len(BODY):#x}"], BODY),
    "CL with an underscore": (["Content-Length: 1_0"], BODY),
    "CL with a point": ([f"Content-Length: {len(BODY)}.0"], BODY),
    "CL with a blank inside": (["Content-Length: 1 0"], BODY),
    "CL with a comma": ([f"Content-Length: {len(BODY)}, {len(BODY)}"], BODY),
    "CL empty": (["Content-Length:"], BODY),
    "CL of 30 digits": (["Content-Length: " + "9" * 30], BODY),
    "CL in Arabic digits": (["Content-Length: \xd9\xa1\xd9\xa0"], BODY),
}
CHUNKS: dict[str, bytes] = {
    "a size below 0": b"-1\r\n" + CHUNKED,
    "a size with 0x": b"0x" + CHUNKED,
    "a size with a plus": b"+" + CHUNKED,
    "a size with an underscore": b"0_" + CHUNKED,
    "a size of 17 digits": b"f" * 17 + b"\r\n" + BODY,
    "a size with a blank before": b" " + CHUNKED,
    "a size with a blank behind": b"%x \r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "no size": b"\r\n" + BODY + b"\r\n0\r\n\r\n",
    "a size that is none": b"zz\r\n" + BODY,
    "bare LFs": b"%x\n%s\n0\n\n" % (len(BODY), BODY),
    "an extension that ends in LF": b"%x;a=b\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a size too small": b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY) - 2, BODY),
    "a size too large": b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY) + 3, BODY),
    "no CRLF behind a chunk": b"%x\r\n%s0\r\n\r\n" % (len(BODY), BODY),
    "a trailer with a length": CHUNKED[:-2] + b"Content-Length: 5\r\n\r\n",
    "a trailer that is none": CHUNKED[:-2] + b"\0\r\n\r\n",
    "a trailer of 9 KiB": CHUNKED[:-2] + b"X: " + b"a" * 9216 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", FRAMING)
def test_where_a_request_ends(world: World, name: str) -> None:
    more, body = FRAMING[name]
    head = write(https(world.operator), more=more, body=body, length=False)
    world.refuse("https", "request_invalid", head, closing=True)


@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk(world: World, name: str) -> None:
    more = ["Transfer-Encoding: chunked"]
    raw = write(https(world.operator), more=more, body=CHUNKS[name], length=False)
    world.refuse("https", "request_invalid", raw, closing=True)


def test_a_chunk_that_is_none_after_one_that_is(world: World) -> None:
    """aiohttp's parser does not tell a handler that waits for more; its time for the body ends."""
    more = ["Transfer-Encoding: chunked", "Expect: 100-continue"]
    head = write(https(world.operator), more=more, body=b"", length=False)
    before, delivered = len(world.gateway.audit()), world.target.requests
    with world.dial("https") as wire:
        wire.say(head)
        wire.hear_continue()
        wire.say(b"1\r\n{\r\n", b"-1\r\n" + CHUNKED)
        assert wire.hear().status == 408
    assert [line["code"] for line in world.decided(before)] == ["body_slow"]
    assert world.target.requests == delivered


def test_a_transfer_coding_in_http_1_0(world: World) -> None:
    """RFC 9112 section 6.1: its framing is faulty."""
    more = ["Transfer-Encoding: chunked"]
    raw = write(https(world.operator), "POST /mcp HTTP/1.0", more, body=CHUNKED, length=False)
    world.refuse("https", "request_invalid", raw, closing=True)


def test_bodies_that_are_too_large(world: World) -> None:
    told = write(https(world.operator), more=["Content-Length: 4194305"], body=b"", length=False)
    world.refuse("https", "body_too_large", told, closing=True, whole=False)
    more = ["Transfer-Encoding: chunked"]
    head = write(https(world.operator), more=more, body=b"", length=False)
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    world.refuse("https", "body_too_large", head, *[chunk] * 5, closing=True, whole=False)


def test_a_body_that_does_not_come(world: World) -> None:
    raw = write(https(world.operator))
    world.refuse("https", "body_slow", raw[:-5], closing=True, whole=False)


def test_a_body_that_breaks_off(world: World) -> None:
    before, delivered = len(world.gateway.audit()), world.target.requests
    with world.dial("https") as wire:
        raw = write(https(world.operator), more=["Expect: 100-continue"])
        wire.say(raw[: -len(BODY)])
        wire.hear_continue()
        wire.say(BODY[:-5])
    deadline = time.monotonic() + 5
    while not (lines := world.decided(before)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [(line["code"], line["status"]) for line in lines] == [("broken_off", 0)]
    assert world.target.requests == delivered


def test_nobody_is_asked_for_a_body_before_he_is_known(world: World) -> None:
    raw = write(OVER_HTTPS["a revoked client"][1](world), more=["Expect: 100-continue"])
    answer = world.refuse("https", "client_revoked", raw[: -len(BODY)], closing=True, whole=False)
    assert b"100 Continue" not in answer.raw
    too_much = ["Expect: 100-continue", "Content-Length: 4194305"]
    raw = write(https(world.operator), more=too_much, body=b"", length=False)
    world.refuse("https", "body_too_large", raw, closing=True, whole=False)


# Several requests on a connection

SECOND: dict[str, tuple[str, Identity, str]] = {
    "without an identity": ("certificate_missing", lambda _: [], "GET /mcp HTTP/1.1"),
    "without a token": (
        "token_missing",
        lambda world: proved(world.operator.certificate),
        "GET /mcp HTTP/1.1",
    ),
    "a revoked client": (
        "client_revoked",
        lambda world: https(world.people["revoked"]),
        "GET /mcp HTTP/1.1",
    ),
    "another path": (
        "path_denied",
        lambda world: https(world.operator),
        "GET /system/../admin HTTP/1.1",
    ),
    "not HTTP": ("request_invalid", lambda world: https(world.operator), "STEAL /mcp HTTP/1.1"),
}


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_good_request_does_not_vouch_for_the_next(world: World, name: str, at_once: bool) -> None:
    code, identity, line = SECOND[name]
    good, bad = write(https(world.operator)), write(identity(world), line, body=None)
    before, delivered = len(world.gateway.audit()), world.target.requests
    with world.dial("https") as wire:
        wire.say(good + bad if at_once else good)
        first = None if at_once and code == "request_invalid" else wire.hear()
        wire.say(b"" if at_once else bad)
        second = wire.hear()
    assert second.status == STATUS.get(code, 401)
    if second.status == 401:
        assert second.dateless == UNIFORM_401[False]
    assert [one["code"] for one in world.decided(before) if one["decision"] == "deny"] == [code]
    assert first is None or first.status == 200
    assert world.target.requests == delivered + (first is not None)


def test_what_follows_a_refused_body_is_not_a_request(world: World) -> None:
    """The body of a refused request is a good request itself: it is never looked at."""
    inside = write(https(world.operator))
    raw = write(OVER_HTTPS["a revoked client"][1](world), body=inside)
    world.refuse("https", "client_revoked", raw + inside, closing=True)


# Through the real NGINX


@dataclass
class Front:
    """NGINX in front of the gateway, and its clients."""

    world: World
    nginx: Nginx
    ca: Path

    def connect(self, certificate: str | None, key: bytes = b"") -> Wire:
        """Connect as who holds that certificate (PEM) and its key."""
        context = ssl.create_default_context(cafile=self.ca)
        if certificate is not None:
            file = self.world.directory / "shown.pem"
            file.write_bytes(certificate.encode() + key)
            context.load_cert_chain(file)
        sock = socket.create_connection((self.nginx.host, self.nginx.https_port))
        return Wire(context.wrap_socket(sock, server_hostname="localhost"))

    def connect_as(self, client: Enrolled) -> Wire:
        return self.connect(client.certificate, (client.home / "keys" / "tls.key").read_bytes())


@pytest.fixture(scope="module")
def front(world: World) -> Iterator[Front]:
    if find_nginx() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no nginx on this machine, and CI must have one: apt install nginx-light")
        pytest.skip("no nginx on this machine: apt install nginx-light")
    version = installed_version()
    assert version is not None
    ca, key = make_certificate(world.directory)
    site = Site(
        "localhost",
        world.gateway.directory,
        https_port=free_port(),
        http_port=free_port(),
        tls_certificate=str(ca),
        tls_key=str(key),
        webroot=str(world.directory),
        access_log=str(world.directory / "access.log"),
        nginx=version,
        ipv6=False,
    )
    with Nginx(world.directory / "nginx", site) as nginx:
        yield Front(world, nginx, ca)


def test_a_good_request_through_nginx(world: World, front: Front) -> None:
    delivered = world.target.requests
    with front.connect_as(world.operator) as wire:
        wire.say(write([bearer(world.operator.token(bound=True))]))
        assert wire.hear().status == 200
    assert world.target.requests == delivered + 1


Strangers = Mapping[str, tuple[int, Callable[[World], certs.Authority | None], float]]
STRANGERS: Strangers = {
    "without a certificate": (403, lambda _: None, 0.0),
    "expired": (400, lambda world: world.authority, -2.0 * DAY),
    "not yet valid": (400, lambda world: world.authority, 1.0 * DAY),
    "of another CA": (400, lambda _: certs.make_authority("Catalyst", time.time()), 0.0),
}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("spoofing", [False, True])
def test_who_does_not_get_past_nginx(world: World, front: Front, name: str, spoofing: bool) -> None:
    """The gateway never hears of them, whatever they say about themselves."""
    status, authority, start = STRANGERS[name]
    before, delivered = len(world.gateway.audit()), world.target.requests
    identity = https(world.operator) if spoofing else [bearer(world.operator.token(bound=True))]
    signer = authority(world)
    if signer is None:
        wire = front.connect(None)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        made = certs.issue(signer, certs.make_request(key), "operator", time.time() + start, 1)
        wire = front.connect(made.decode(), certs.private_pem(key))
    with wire:
        wire.say(write(identity))
        answer = wire.hear()
    assert answer.status == status
    told = b'Proxy-Status: nginx; error=http_request_denied; details="certificate"\r\n'
    assert told in answer.raw
    assert world.decided(before) == []
    assert world.target.requests == delivered


BEHIND_NGINX: dict[str, tuple[str, Identity, str]] = {
    "no token": ("token_missing", lambda _: [], "POST /mcp HTTP/1.1"),
    "a token for ssh": (
        "binding_missing",
        lambda world: ssh(world.operator),
        "POST /mcp HTTP/1.1",
    ),
    "another's token": (
        "binding_mismatch",
        lambda world: [bearer(world.neighbour.token(bound=True))],
        "POST /mcp HTTP/1.1",
    ),
    "another's token and certificate field": (
        "binding_mismatch",
        lambda world: https(world.neighbour),
        "POST /mcp HTTP/1.1",
    ),
    "another's, with underscores": (
        "binding_mismatch",
        lambda world: [line.replace("X-Client-", "X_Client_") for line in https(world.neighbour)],
        "POST /mcp HTTP/1.1",
    ),
    "our token, another's named in it": (
        "binding_mismatch",
        lambda world: [bearer(mint(world.operator, certificate=world.neighbour.certificate))],
        "POST /mcp HTTP/1.1",
    ),
    "the gateway's metrics": (
        "path_denied",
        lambda world: https(world.operator),
        "GET /mcp/metrics HTTP/1.1",
    ),
    "dots within": (
        "path_denied",
        lambda world: https(world.operator),
        "GET /mcp/system/../admin HTTP/1.1",
    ),
    "dots, encoded": (
        "path_denied",
        lambda world: https(world.operator),
        "GET /mcp/system/%2e%2e/admin HTTP/1.1",
    ),
}


@pytest.mark.parametrize("name", BEHIND_NGINX)
def test_who_gets_past_nginx_and_no_further(world: World, front: Front, name: str) -> None:
    code, identity, line = BEHIND_NGINX[name]
    before, delivered = len(world.gateway.audit()), world.target.requests
    with front.connect_as(world.operator) as wire:
        wire.say(write(identity(world), line, body=BODY if line.startswith("POST") else None))
        answer = wire.hear()
    assert answer.status == STATUS.get(code, 401)
    assert b"\r\nProxy-Status: catalyst-gateway; error=http_request_denied\r\n" in answer.raw
    assert [one["code"] for one in world.decided(before)] == [code]
    assert world.target.requests == delivered


def test_a_revoked_client_through_nginx(world: World, front: Front) -> None:
    """Its certificate is as good as ever to NGINX."""
    before = len(world.gateway.audit())
    revoked = world.people["revoked"]
    with front.connect_as(revoked) as wire:
        wire.say(write([bearer(revoked.token(bound=True))]))
        assert wire.hear().status == 401
    assert [one["code"] for one in world.decided(before)] == ["client_revoked"]
