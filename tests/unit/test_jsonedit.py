"""A member is put and taken, and no byte besides changes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunnel.jsonedit import JsonTextError, put, read, table_of, take

ENTRY = {"command": "/opt/run", "args": ["stdio", "--config", "/home/me/ü.toml"]}
NAMES = st.text(max_size=6)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
STYLES = st.sampled_from([None, 0, 1, 2, 4, "\t"])


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Files as other programs and people write them."""
    content = draw(st.dictionaries(NAMES, VALUES, max_size=4))
    content.pop("servers", None)
    if draw(st.booleans()):
        before = list(content.items())
        at = draw(st.integers(0, len(before)))
        before.insert(at, ("servers", draw(st.dictionaries(NAMES, VALUES, max_size=3))))
        content = dict(before)
    indent = draw(STYLES)
    tight = draw(st.booleans())
    text = json.dumps(
        content,
        indent=indent,
        ensure_ascii=draw(st.booleans()),
        separators=(",", ":") if tight else None,
    )
    if draw(st.booleans()):
        text = text.replace("\n", "\r\n")
    return draw(st.sampled_from(["", "\n", " "])) + text + draw(st.sampled_from(["", "\n", "\r\n"]))


def common(one: str, other: str) -> int:
    """How many characters they share, at the beginning and the end together."""
    short = min(len(one), len(other))
    head = next((at for at in range(short) if one[at] != other[at]), short)
    rest = short - head
    tail = next((at for at in range(rest) if one[-1 - at] != other[-1 - at]), rest)
    return head + tail


@settings(max_examples=300, deadline=None)
@given(texts(), NAMES)
def test_what_is_put_is_there_and_the_rest_as_it_was(text: str, name: str) -> None:
    content = read(text)
    content.setdefault("servers", {})[name] = ENTRY
    after = put(text, "servers", name, ENTRY)
    got = read(after)
    assert got == content
    assert list(got) == list(content)
    assert list(got["servers"]) == list(content["servers"])
    assert ("\r" in after) == ("\r" in text) or "\n" not in text


@settings(max_examples=300, deadline=None)
@given(texts(), st.text("xyz", min_size=7, max_size=7))
def test_to_add_cuts_nothing_away_but_white_space_between_empty_braces(
    text: str, name: str
) -> None:
    after = put(text, "servers", name, ENTRY)
    lost = len(text) - common(text, after)
    if table_of(text, "servers"):
        assert lost == 0
    else:
        blank = text.replace(" ", "").replace("\r", "").replace("\n", "").replace("\t", "")
        assert lost == 0 or "{}" in blank


@settings(max_examples=300, deadline=None)
@given(texts(), st.text("xyz", min_size=7, max_size=7))
def test_what_was_added_to_others_is_taken_away_to_the_byte(text: str, name: str) -> None:
    added = put(text, "servers", name, ENTRY)
    if table_of(text, "servers"):
        assert take(added, "servers", name) == text
    else:
        assert read(take(added, "servers", name)) == {**read(text), "servers": {}}


@settings(max_examples=300, deadline=None)
@given(texts(), st.data())
def test_of_several_the_one_is_taken(text: str, data: st.DataObject) -> None:
    table = table_of(text, "servers")
    if not table:
        assert take(text, "servers", "none") == text
        return
    name = data.draw(st.sampled_from(list(table)))
    expected = read(text)
    del expected["servers"][name]
    after = take(text, "servers", name)
    assert read(after) == expected
    assert list(read(after)["servers"]) == list(expected["servers"])


@settings(max_examples=200, deadline=None)
@given(texts())
def test_twice_is_as_once(text: str) -> None:
    once = put(text, "servers", "ours", ENTRY)
    assert put(once, "servers", "ours", ENTRY) == once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", '{\n  "s": {\n    "n": {\n      "a": 1\n    }\n  }\n}\n'),
        ("{}", '{\n  "s": {\n    "n": {\n      "a": 1\n    }\n  }\n}'),
        ('{"b":1}', '{"b":1,"s":{"n":{"a":1}}}'),
        ('{"b": 1}', '{"b": 1, "s": {"n": {"a": 1}}}'),
        ('{"s": {}}', '{"s": {"n": {"a": 1}}}'),
        (
            '{\n\t"s": {},\n\t"b": [1, 2.50, 1e9]\n}\n',
            '{\n\t"s": {\n\t\t"n": {\n\t\t\t"a": 1\n\t\t}\n\t},\n\t"b": [1, 2.50, 1e9]\n}\n',
        ),
        (
            '{\r\n    "s": {\r\n        "o": {}\r\n    }\r\n}',
            '{\r\n    "s": {\r\n        "o": {},\r\n        "n": {\r\n            "a": 1\r\n'
            "        }\r\n    }\r\n}",
        ),
        ('{"s": {"n": {"a": 2},"o":0}}', '{"s": {"n": {"a": 1},"o":0}}'),
        (
            '{\n  "s": {\n    "n": {\n      "b": 2\n    }\n  }\n}',
            '{\n  "s": {\n    "n": {\n      "a": 1\n    }\n  }\n}',
        ),
    ],
)
def test_in_the_style_of_the_file(text: str, expected: str) -> None:
    assert put(text, "s", "n", {"a": 1}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{\n  "a": 1\n  "b": 2\n}', "line 3, column 3"),
        ('{"a": 1,}', "line 1"),
        ('{"a": 1} // mine', "line 1, column 10"),
        ("[]", "does not hold a JSON object"),
        ("null", "does not hold a JSON object"),
        ('{"s": {}, "s": {}}', 'the member "s" is there twice'),
        ('{"s": {"x": {"deep": 1, "deep": 2}}}', 'the member "deep" is there twice'),
        ('{"a": NaN}', "NaN"),
        ('{"s": []}', 'something else than an object under "s"'),
        ('{"s": null}', 'something else than an object under "s"'),
        ('{"a":' + "[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_what_cannot_be_understood_is_not_changed(text: str, expected: str) -> None:
    value: dict[str, Any] = {}
    for change in (lambda: put(text, "s", "n", value), lambda: take(text, "s", "n")):
        with pytest.raises(JsonTextError, match=expected.replace("{", r"\{")):
            change()


def test_half_surrogates_of_other_programs_stay() -> None:
    text = '{"history": "\\ud83d", "s": {"n": {}}}'
    assert put(text, "s", "n", {"a": 1}) == '{"history": "\\ud83d", "s": {"n": {"a": 1}}}'
    assert take(text, "s", "n") == '{"history": "\\ud83d", "s": {}}'
