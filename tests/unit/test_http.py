import h11
import pytest

from tunnel.http import end_to_end, header

Fields = list[tuple[bytes, bytes]]


def test_hop_by_hop_fields_stay_on_their_hop() -> None:
    fields = [
        (b"Connection", b"close, X-Private"),
        (b"x-private", b"1"),
        (b"Keep-Alive", b"5"),
        (b"TE", b"trailers"),
        (b"Trailer", b"x"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Proxy-Authenticate", b"Basic"),
        (b"Proxy-Authorization", b"secret"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"X-Kept", b"1"),
    ]
    assert end_to_end(fields) == [(b"X-Kept", b"1")]


def test_the_rest_stays_as_it_is() -> None:
    fields = [
        (b"Host", b"localhost:5000"),
        (b"Authorization", b"Bearer x"),
        (b"Mcp-Session-Id", b"1"),
        (b"MCP-Protocol-Version", b"2026-07-28"),
        (b"mcp-name", b"=?base64?4pyT?="),
        (b"Last-Event-ID", b"\xff"),
        (b"X-Twice", b"1"),
        (b"x-twice", b"2"),
        (b"X-Twice", b"1"),
        (b"X-Empty", b""),
        (b"Content-Length", b"0"),
        (b"Cookie", b"a=1"),
    ]
    assert end_to_end(fields) == fields
    assert end_to_end(iter(fields)) == fields
    assert end_to_end([]) == []


@pytest.mark.parametrize(
    "connection",
    [
        [b"x-private"],
        [b"X-PRIVATE"],
        [b"close,x-private"],
        [b"close , X-Private ,"],
        [b"\tx-private\t"],
        [b"close", b"X-Private"],
    ],
)
def test_what_connection_names_stays_too(connection: list[bytes]) -> None:
    fields = [(b"X-Private", b"1"), *((b"connection", value) for value in connection)]
    assert end_to_end([*fields, (b"X-Private-Not", b"1")]) == [(b"X-Private-Not", b"1")]
    assert end_to_end([(b"X-Private-Not", b"1"), *reversed(fields)]) == [(b"X-Private-Not", b"1")]


@pytest.mark.parametrize("value", [b"", b",", b" , ", b"keep-alive"])
def test_an_empty_name_is_nobodys(value: bytes) -> None:
    assert end_to_end([(b"Connection", value), (b"X", b"1")]) == [(b"X", b"1")]


@pytest.mark.parametrize("named", [b"Host", b"Content-Length", b"host, content-length"])
def test_connection_cannot_name_away_what_makes_the_message(named: bytes) -> None:
    """RFC 9110 section 7.6.1: such fields are for all who receive the message.

    Without them the request would be another one: of no host, or of no length.
    """
    fields = [(b"Host", b"localhost"), (b"Content-Length", b"3"), (b"Connection", named)]
    kept = end_to_end(fields)
    assert kept == fields[:2]
    sender = h11.Connection(h11.CLIENT)
    sent = b""
    for event in (
        h11.Request(method=b"POST", target=b"/", headers=kept),
        h11.Data(data=b"abc"),
        h11.EndOfMessage(),
    ):
        sent += sender.send(event) or b""
    assert sent.endswith(b"\r\n\r\nabc")


@pytest.mark.parametrize("name", [b"Content-Type", b"Mcp-Session-Id", b"MCP-Protocol-Version"])
def test_nor_what_the_service_reads_it_by(name: bytes) -> None:
    fields = [(name, b"x"), (b"Connection", b"close, " + name.lower())]
    assert end_to_end(fields) == [(name, b"x")]


def test_a_length_beside_a_chunked_body_is_dropped() -> None:
    """RFC 9112 section 6.3: whoever believed the length would read another message."""
    fields = [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked"), (b"X", b"1")]
    assert end_to_end(fields) == [(b"X", b"1")]


def test_header() -> None:
    fields = [(b"Content-Type", b"a"), (b"content-type", b"b"), (b"X-Content-Type", b"c")]
    assert header(fields, b"content-type") == b"a"
    assert header(iter(fields), b"x-content-type") == b"c"
    assert header(fields, b"content") == b""
    assert header([], b"content-type") == b""
