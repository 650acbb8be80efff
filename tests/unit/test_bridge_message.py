"""What a line of the client says, and whose wait is ended where it says nothing."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.bridge.message import (
    ID_LENGTH,
    INVALID_REQUEST,
    PARSE_ERROR,
    Message,
    MessageError,
    outer_id,
    read,
    refusal,
    request,
)
from tunnel.mcp import Id

IDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
    st.integers(-(2**63), 2**63),
    st.floats(allow_nan=False, allow_infinity=False),
)


def line(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


def refused(text: bytes) -> list[tuple[Any, int]]:
    """Return the id and the code of each answer that a line is owed."""
    with pytest.raises(MessageError) as caught:
        read(text)
    answers = [one.content for one in caught.value.answers]
    assert all(one["error"]["message"].endswith(".") for one in answers)
    return [(one["id"], one["error"]["code"]) for one in answers]


@given(IDS)
def test_an_unchanged_message_is_passed_on_to_the_byte(caller: Id) -> None:
    text = line(id=caller, method="a", params={"x": 1.50, "y": "ü"})
    message = read(text)
    assert message.is_request
    assert not message.is_response
    assert message.id == caller
    assert message.to_bytes() == text


@given(IDS)
def test_a_changed_one_is_one_line(caller: Id) -> None:
    content = {"jsonrpc": "2.0", "id": 1, "result": {"text": "two\nlines"}}
    answer = Message(content, b'{"jsonrpc": "2.0",\n "id": 1, "result": {}}').with_id(caller)
    assert b"\n" not in answer.to_bytes()
    assert json.loads(answer.to_bytes())["id"] == caller


def test_what_came_in_several_lines_leaves_in_one() -> None:
    message = Message({"jsonrpc": "2.0", "id": 1, "result": {}}, b'{"id": 1,\n"result": {}}')
    assert b"\n" not in message.to_bytes()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (line(id=1, method="a"), (True, False)),
        (line(method="a", params={}), (False, False)),
        (line(id=1, result={}), (False, True)),
        (line(id=None, error={"code": 1, "message": "x"}), (False, True)),
    ],
)
def test_the_kinds(text: bytes, kind: tuple[bool, bool]) -> None:
    message = read(text)
    assert (message.is_request, message.is_response) == kind
    assert message.params == {}


@pytest.mark.parametrize(
    ("text", "owed"),
    [
        (b"hello", (None, PARSE_ERROR)),
        (b"\xff\xfe\x00", (None, PARSE_ERROR)),
        (b'{"jsonrpc": "2.0", "id": 5, "method": "a"', (5, PARSE_ERROR)),
        (b"[" * 100_000, (None, PARSE_ERROR)),
        (line(id=1e9, method="a").replace(b"1000000000.0", b"9" * 5000), (None, PARSE_ERROR)),
        (b"3", (None, INVALID_REQUEST)),
        (b"null", (None, INVALID_REQUEST)),
        (b"[]", (None, INVALID_REQUEST)),
        (line(id=None, method="a"), (None, INVALID_REQUEST)),
        (line(id=True, method="a"), (None, INVALID_REQUEST)),
        (line(id=[1], method="a"), (None, INVALID_REQUEST)),
        (line(id=1, method=5), (1, INVALID_REQUEST)),
        (line(id=1, method="a", params=[1]), (1, INVALID_REQUEST)),
        (line(method="a", params=None), (None, INVALID_REQUEST)),
        (b'{"id": 1, "method": "a"}', (1, INVALID_REQUEST)),
        (line(id="x" * (ID_LENGTH + 1), method="a"), ("x" * (ID_LENGTH + 1), INVALID_REQUEST)),
        (line(), (None, INVALID_REQUEST)),
    ],
)
def test_what_is_no_message_is_answered(text: bytes, owed: tuple[Any, int]) -> None:
    assert refused(text) == [owed]


@pytest.mark.parametrize(
    "params",
    [b'{"x": NaN}', b'{"x": -Infinity}', b'{"x": "\\ud800"}', b'{"x": 1, "x": 2}', b'{"x": 1e999}'],
)
@pytest.mark.parametrize("last", [True, False], ids=["id last", "id first"])
def test_what_others_would_read_is_refused_to_whoever_waits(params: bytes, last: bool) -> None:
    body = b'"jsonrpc": "2.0", "method": "tools/call", "params": ' + params
    text = b"{" + body + b', "id": 7}' if last else b'{"id": 7, ' + body + b"}"
    assert refused(text) == [(7, PARSE_ERROR)]


@pytest.mark.parametrize(
    "text",
    [
        b'{"jsonrpc": "2.0", "id": 7, "result": {"x": NaN}}',
        b'{"jsonrpc": "2.0", "id": 7, "result": {}, "error": {}}',
        b'{"id": 7, "result": {}}',
        b'{"jsonrpc": "2.0", "id": 7, "error": {"code": ',
    ],
)
def test_a_broken_response_ends_no_wait_for_another(text: bytes) -> None:
    """The service's ids and the client's are counted apart, so 7 may be waiting for its answer."""
    assert refused(text)[0][0] is None


def test_everyone_in_a_batch_is_told() -> None:
    batch = [{"id": 1, "method": "a"}, {"id": "b", "method": "c"}, {"method": "d"}, 5, {"id": 3}]
    assert refused(json.dumps(batch).encode()) == [(1, INVALID_REQUEST), ("b", INVALID_REQUEST)]


SHORT_IDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300), st.integers()
)


@given(SHORT_IDS, st.permutations(["jsonrpc", "id", "method", "params"]), st.booleans())
def test_the_id_of_a_line_that_is_too_long(caller: Id, order: list[str], compact: bool) -> None:
    text = "x" * 4000 + '"id": 97, ' + "x" * 4000
    nested = {"id": 99, "deep": [{"id": 98}], "text": text, "tail": {"id": 96}}
    content = {"jsonrpc": "2.0", "id": caller, "method": "a", "params": nested}
    separators = (",", ":") if compact else None
    whole = json.dumps({key: content[key] for key in order}, separators=separators).encode()
    assert outer_id(whole[:4096], whole[-4096:]) == caller


@given(SHORT_IDS)
def test_the_id_of_a_response_that_is_too_long_is_nobodys(caller: Id) -> None:
    for order in (("id", "result"), ("result", "id")):
        content = {"jsonrpc": "2.0", "id": caller, "result": {"text": "x" * 10_000}}
        text = json.dumps({key: content[key] for key in order}).encode()
        assert outer_id(text[:4096], text[-4096:]) is None


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_nothing_that_is_sent_breaks_the_reader(head: bytes, tail: bytes) -> None:
    outer_id(head, tail)
    try:
        message = read(head + tail)
    except MessageError as exc:
        for answer in exc.answers:
            json.loads(answer.to_bytes())
    else:
        json.loads(message.to_bytes())


def test_what_we_say_ourselves() -> None:
    assert request(1, "a").content == {"jsonrpc": "2.0", "id": 1, "method": "a"}
    error = refusal(1, -1, "No.", {"code": "x"}).error
    assert error == {"code": -1, "message": "No.", "data": {"code": "x"}}
