import json
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keys import strictjson

TEXT = st.text(max_size=20)  # without surrogates, which no JSON text can hold
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
@example({"a": "\U0001f600", "\U0001f600": ["\ud7ff\ue000"]})
def test_what_is_written_is_read_back(content: Any) -> None:
    assert strictjson.loads(strictjson.dumps(content)) == content
    assert strictjson.loads(json.dumps(content, indent=2, ensure_ascii=False).encode()) == content


@given(st.binary(max_size=100) | TEXT.map(str.encode))
@example(b"\xff\xfe{\x00}\x00")
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'"\\ud800"')
@example(b"1" * 5_000_000)
def test_any_bytes_are_read_as_json_reads_them_or_refused(text: bytes) -> None:
    """Nothing is raised but ValueError."""
    try:
        content = strictjson.loads(text)
    except ValueError:
        return
    assert content == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1,"a":2}',
        '{"a":1,"a":1}',
        '{"a":1,"\\u0061":2}',
        '{"\\u0061":1,"\\u0061":2}',
        '{"":1,"":2}',
        '{"a/b":1,"a\\/b":2}',
        '{"\\ud83d\\ude00":1,"\U0001f600":2}',
        '[{"b":{"c":[{"a":1,"a":2}]}}]',
        '{"a":{"b":1,"b":1},"a2":1}',
    ],
)
def test_a_member_named_twice(text: str) -> None:
    json.loads(text)
    with pytest.raises(ValueError, match="named twice"):
        strictjson.loads(text.encode())


def test_names_that_only_look_alike_are_two_names() -> None:
    text = '{"a":1,"A":2,"\u0430":3,"a ":4,"e\u0301":5,"\u00e9":6}'
    assert len(strictjson.loads(text.encode())) == 6


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", '{"a":[NaN]}'])
def test_what_is_no_number(text: str) -> None:
    json.loads(text)
    with pytest.raises(ValueError, match="not JSON"):
        strictjson.loads(text.encode())


@pytest.mark.parametrize("text", ["1e999", "-1e999", "1E+400", "9" * 400 + ".0", '[{"a":1e309}]'])
def test_a_number_that_would_be_infinite(text: str) -> None:
    json.loads(text)
    with pytest.raises(ValueError, match="out of range"):
        strictjson.loads(text.encode())


def test_large_numbers_that_are_whole_stay_exact() -> None:
    assert strictjson.loads(b"9007199254740993") == 9007199254740993
    assert type(strictjson.loads(b"1" * 4300)) is int
    assert type(strictjson.loads(b"1.0")) is float


@pytest.mark.parametrize("digits", [4301, 100_000, 5_000_000])
def test_a_number_of_too_many_digits_costs_nothing(digits: int) -> None:
    """Reading digits takes time that grows with their square: seconds, at this length."""
    for text in (b"9" * digits, b"-" + b"9" * digits, b'{"exp":' + b"9" * digits + b"}"):
        with pytest.raises(ValueError, match="limit"):
            strictjson.loads(text)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_another_encoding(encoding: str) -> None:
    text = '{"a":1}'.encode(encoding)
    assert json.loads(text) == {"a": 1}
    with pytest.raises(ValueError):
        strictjson.loads(text)


def test_a_byte_order_mark() -> None:
    text = '{"a":1}'.encode("utf-8-sig")
    assert json.loads(text) == {"a": 1}
    with pytest.raises(ValueError, match="Expecting value"):
        strictjson.loads(text)


@pytest.mark.parametrize(
    "text", [b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', b'"\xf5\x80\x80\x80"']
)
def test_what_is_not_utf_8(text: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        strictjson.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        '"\\ud800"',
        '"\\uDFFF"',
        '"\\ud83d"',
        '"\\ude00\\ud83d"',
        '"\\ud83d \\ude00"',
        '"\\ud83d\\ud83d\\ude00"',
        '"\\\\\\ud800"',
        '{"\\udc00":1}',
        '{"a":[{"b":"x\\udabcx"}]}',
    ],
)
def test_half_of_a_surrogate_pair(text: str) -> None:
    """One parser keeps it, the next replaces it, the third refuses it; UTF-8 cannot hold it."""
    json.loads(text)
    with pytest.raises(ValueError, match="surrogate"):
        strictjson.loads(text.encode())


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ('"\\ud83d\\ude00"', "\U0001f600"),
        ('"\\uD83D\\uDE00"', "\U0001f600"),
        ('"\\\\ud800"', "\\ud800"),
        ('"\\ud7ff\\ue000"', "\ud7ff\ue000"),
    ],
)
def test_whole_pairs_and_what_only_looks_like_half_of_one(text: str, means: str) -> None:
    assert strictjson.loads(text.encode()) == means


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "[" * 50_000 + "]" * 50_000, '["\\ud83d\\ude00",' * 100_000],
)
def test_nested_too_deeply(text: str) -> None:
    with pytest.raises(ValueError, match="deep"):
        strictjson.loads(text.encode())


def test_nested_as_deeply_as_json_can_read_with_an_escape_inside() -> None:
    """The second look at what was read goes as deep as the first."""
    for depth in range(sys.getrecursionlimit() - 100, sys.getrecursionlimit()):
        text = "[" * depth + '"\\ud83d\\ude00"' + "]" * depth
        try:
            content = strictjson.loads(text.encode())
        except ValueError:
            continue
        assert isinstance(content, list)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{",
        "{}x",
        "{} {}",
        "{},",
        '{"a":1,}',
        "[1,]",
        "{'a':1}",
        "{a:1}",
        "/**/{}",
        "{}//",
        "01",
        "+1",
        ".5",
        "1.",
        "0x10",
        "1_000",
        "\u0661",
        "True",
        "undefined",
        '"\t"',
        '"\n"',
        '"\0"',
        '"\\x41"',
        '"\\u00"',
        '"\\u 041"',
        '"\\U00000041"',
        "\xa0{}",
        "\x0c{}",
        "{}\0",
    ],
)
def test_what_is_not_json(text: str) -> None:
    with pytest.raises(ValueError):
        strictjson.loads(text.encode())


def test_writing_is_compact_and_ascii() -> None:
    assert strictjson.dumps({"a": [1, None, "\u00e4"]}) == b'{"a":[1,null,"\\u00e4"]}'


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_written(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        strictjson.dumps({"a": number})
