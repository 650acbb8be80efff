"""Which header fields pass the gateway, in both directions (RFC 9110 section 7.6)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.proxy import _inbound, _outbound

Pairs = tuple[tuple[bytes, bytes], ...]
HOST = "127.0.0.1:5000"
VIA = "1.1 catalyst-gateway"

HOP_BY_HOP = [
    *("Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection"),
    *("TE", "Trailer", "Transfer-Encoding", "Upgrade"),
]
SECRET = ["Authorization", "Cookie", "Proxy-Authorization"]
IDENTITY = [
    *("X-Client-Verify", "X-Client-Cert", "X-Client-Name", "X-Forwarded-For", "X-Forwarded-Host"),
    *("X-Forwarded-Client-Cert", "X-Real-IP", "X-SSL-Client-Cert", "Forwarded"),
]
FRAMING = ["Content-Length", "Expect"]
CASES = (str, str.lower, str.upper, str.swapcase)
PASS = [
    *("Accept", "Content-Type", "Mcp-Session-Id", "MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"),
    *("Last-Event-ID", "Origin", "User-Agent", "X-Request-Id", "Traceparent", "Accept-Encoding"),
]

names = st.from_regex(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20}", fullmatch=True)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30).map(str.strip)


def raw(*pairs: tuple[str, str]) -> Pairs:
    return tuple((name.encode(), value.encode()) for name, value in pairs)


def inward(*pairs: tuple[str, str]) -> CIMultiDict[str]:
    return _inbound(raw(*pairs), HOST)


def outward(*pairs: tuple[str, str]) -> CIMultiDict[str]:
    return _outbound(raw(*pairs))


# To the service.


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", sorted({*HOP_BY_HOP, *SECRET, *IDENTITY, *FRAMING}))
def test_what_ends_here(name: str, case: type[str]) -> None:
    headers = inward((case(name), "secret"), (case(name), "secret"), ("Accept", "*/*"))
    assert name not in headers
    assert "secret" not in str(headers)
    assert headers["Accept"] == "*/*"


@pytest.mark.parametrize("name", PASS)
def test_what_passes(name: str) -> None:
    assert inward((name, "one")).getall(name) == ["one"]
    assert inward((name, "one"), (name, "two")).getall(name) == ["one", "two"]


@pytest.mark.parametrize(
    "connection",
    ["X-Hop", "x-hop", "close, X-Hop", "keep-alive ,  X-HOP  ,upgrade", "X-Hop,", ",,X-Hop"],
)
def test_what_connection_names_ends_here(connection: str) -> None:
    headers = inward(("x-hop", "1"), ("Connection", connection), ("X-Other", "2"))
    assert "X-Hop" not in headers
    assert headers["X-Other"] == "2"
    headers = inward(("Connection", "close"), ("X-Hop", "1"), ("Connection", connection))
    assert "X-Hop" not in headers


@pytest.mark.parametrize(
    "name", ["Mcp-Session-Id", "Mcp-Method", "MCP-Protocol-Version", "Content-Type"]
)
def test_connection_cannot_take_away_what_was_judged_by(name: str) -> None:
    assert inward((name, "1"), ("Connection", name))[name] == "1"


def test_connection_cannot_bring_anything_back() -> None:
    headers = inward(("Connection", "Host, Via, Authorization"), ("Authorization", "Bearer x"))
    assert "Authorization" not in headers
    assert headers.getall("Host") == [HOST]
    assert headers.getall("Via") == [VIA]


def test_the_service_is_called_by_its_own_name() -> None:
    for pairs in ((), (("Host", "evil.example"),), (("host", "a"), ("HOST", "b"))):
        assert inward(*pairs).getall("Host") == [HOST]


def test_via_grows() -> None:
    assert inward().getall("Via") == [VIA]
    assert inward(("Via", "1.1 nginx")).getall("Via") == [f"1.1 nginx, {VIA}"]


@given(st.lists(st.tuples(names, values), max_size=8))
def test_whatever_comes_in(pairs: list[tuple[str, str]]) -> None:
    headers = inward(*pairs)
    named = {
        token.strip().lower()
        for name, value in pairs
        if name.lower() == "connection"
        for token in value.split(",")
    }
    gone = {name.lower() for name in (*HOP_BY_HOP, *SECRET, *IDENTITY, *FRAMING)}
    assert not gone & {name.lower() for name in headers}
    for name in {name.lower() for name, _ in pairs} - gone - named - {"host", "via"}:
        prefixes = ("x-client-", "x-forwarded-", "x-real-ip", "x-ssl-")
        sent = [] if name.startswith(prefixes) else [v for n, v in pairs if n.lower() == name]
        assert headers.getall(name, []) == sent


hostile = st.sampled_from([*HOP_BY_HOP, *SECRET, *IDENTITY, *FRAMING, "Host", "X-Hop", "Accept"])
spelled = st.builds(lambda name, case: case(name), hostile, st.sampled_from(CASES))


@given(st.lists(st.tuples(spelled, st.sampled_from(["x-hop", "close", "authorization", "s3cret"]))))
def test_whatever_is_tried_with_fields_of_ours(pairs: list[tuple[str, str]]) -> None:
    headers = inward(*pairs)
    assert {name.lower() for name in headers} <= {"host", "via", "accept", "x-hop"}
    assert headers.getall("Host") == [HOST]
    if any(n.lower() == "connection" and v == "x-hop" for n, v in pairs):
        assert "X-Hop" not in headers


@given(st.binary(max_size=20))
def test_bytes_that_are_no_text(value: bytes) -> None:
    headers = _inbound(((b"X-Odd", value),), HOST)
    assert headers["X-Odd"].encode("utf-8", "surrogateescape") == value
    headers = _outbound(((b"X-Odd", value),))
    assert headers["X-Odd"].encode("utf-8", "surrogateescape") == value
    assert _inbound(((b"Connection", value),), HOST).getall("Via") == [VIA]


# To the client.


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [*HOP_BY_HOP, "Content-Length", "Proxy-Status", "Set-Cookie"])
def test_what_the_service_cannot_say(name: str, case: type[str]) -> None:
    headers = outward((case(name), "forged"), (case(name), "forged"), ("X-Other", "1"))
    assert name not in headers
    assert headers["X-Other"] == "1"


def test_nobody_else_speaks_in_our_name() -> None:
    for forged in ("1.1 nginx", VIA, f"1.1 a, {VIA}"):
        assert outward(("Via", forged), ("via", forged)).getall("Via") == [VIA]
    assert "Proxy-Status" not in outward(("proxy-STATUS", "catalyst-gateway; error=x"))


@pytest.mark.parametrize(
    "name",
    [
        *("Content-Type", "Content-Encoding", "Mcp-Session-Id", "Cache-Control", "Date", "ETag"),
        *("Retry-After", "WWW-Authenticate", "Vary", "Location"),
    ],
)
def test_what_passes_back(name: str) -> None:
    assert outward((name, "one"), (name, "two")).getall(name) == ["one", "two"]


def test_what_connection_names_in_an_answer() -> None:
    headers = outward(
        ("Connection", "X-Hop, Content-Type"), ("X-Hop", "1"), ("Content-Type", "a/b")
    )
    assert "X-Hop" not in headers
    assert headers["Content-Type"] == "a/b"


def test_the_server_says_who_it_is_where_the_service_does_not() -> None:
    assert outward().getall("Server") == ["catalyst-gateway"]
    assert outward(("server", "uvicorn")).getall("Server") == ["uvicorn"]


@given(st.lists(st.tuples(names, values), max_size=8))
def test_whatever_comes_back(pairs: list[tuple[str, str]]) -> None:
    headers = outward(*pairs)
    gone = {name.lower() for name in (*HOP_BY_HOP, "Content-Length", "Proxy-Status", "Set-Cookie")}
    assert not gone & {name.lower() for name in headers}
    assert headers.getall("Via") == [VIA]
