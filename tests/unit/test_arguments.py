"""Arguments from words, by a tool's schema."""

import http.server
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.arguments import ArgumentsError, check, from_text, from_words, kinds, wanted

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "ratio": {"type": "number"},
        "on": {"type": "boolean"},
        "list": {"type": "array", "items": {"type": "integer"}},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "either": {"type": ["integer", "string"]},
        "mode": {"$ref": "#/$defs/Mode"},
        "deep": {"$ref": "#/$defs/Deep"},
        "any": {},
    },
    "required": ["text"],
    "$defs": {
        "Mode": {"enum": ["slow", "fast"], "type": "string"},
        "Deep": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    },
}


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("text=emergency", "emergency"),
        ("text=5", "5"),
        ("text=true", "true"),
        ('text={"a": 1}', '{"a": 1}'),
        ("text=a=b", "a=b"),
        ("text=", ""),
        ("count=5", 5),
        ("count=5.0", 5),
        ("ratio=5", 5),
        ("ratio=0.5", 0.5),
        ("ratio=1e-3", 0.001),
        ("on=true", True),
        ("on=False", False),
        ("list=[1, 2]", [1, 2]),
        ("maybe=null", None),
        ("maybe=x", "x"),
        ("maybe=5", "5"),
        ("either=5", 5),
        ("either=five", "five"),
        ("mode=5", "5"),
        ('deep={"n": 1}', {"n": 1}),
        ("any=[1]", [1]),
        ("any=x", "x"),
        ("unknown=1", 1),
    ],
)
def test_values_have_the_types_of_the_schema(word: str, value: object) -> None:
    found = from_words([word], SCHEMA)
    assert found == {word.partition("=")[0]: value}
    assert type(next(iter(found.values()))) is type(value)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("count=five", "count: wants an integer, 1 to 9, not 'five'."),
        ("count=5.5", "count: wants an integer"),
        ("count=true", "count: wants an integer"),
        ("count=", "count: wants an integer"),
        ("ratio=NaN", "ratio: wants a number, not 'NaN'."),
        ("ratio=1e999", "ratio: wants a number"),
        ("on=yes", "on: wants true or false, not 'yes'."),
        ("on=1", "on: wants true or false"),
        ("list=1,2", "list: wants a list, as JSON, not '1,2'."),
        ('deep={"n": 1, "n": 2}', "deep: wants an object"),
        ("emergency", "'emergency' is not NAME=VALUE"),
        ("=x", "'=x' is not NAME=VALUE"),
        ("text=\udcff", "'text=\\udcff' is not UTF-8."),
    ],
)
def test_values_that_are_of_another_type(word: str, told: str) -> None:
    with pytest.raises(ArgumentsError) as caught:
        from_words([word], SCHEMA)
    assert caught.value.faults[0].startswith(told)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ArgumentsError) as caught:
        from_words(["count=x", "on=x", "text=a", "text=b"], SCHEMA)
    assert [fault.partition(":")[0] for fault in caught.value.faults] == ["count", "on", "text"]
    with pytest.raises(ArgumentsError) as caught:
        check({"txt": "", "count": 10, "deep": {}}, SCHEMA)
    assert caught.value.faults == [
        "txt: there is no such argument. Is text meant?",
        "text: is missing; it wants text.",
        "count: 10 is greater than the maximum of 9.",
        "deep: 'n' is a required property.",
    ]


def test_what_fits() -> None:
    check({"text": "x", "mode": "fast", "list": [1], "deep": {"n": 1}, "maybe": None}, SCHEMA)


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
        {"type": "object", "properties": {"a": {}}, "patternProperties": {"^b": {}}},
    ],
)
def test_a_tool_that_takes_more_than_it_names(schema: dict[str, Any]) -> None:
    check({"b": 1}, schema)


def test_a_tool_that_takes_nothing() -> None:
    with pytest.raises(ArgumentsError):
        check({"b": 1}, {"type": "object", "properties": {"a": {}}})
    with pytest.raises(ArgumentsError):
        check({"b": 1}, {"type": "object", "properties": {}, "additionalProperties": False})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "no such type"},
        {"properties": {"a": {"pattern": "("}}},
        {"properties": {"a": {"$ref": "#/nowhere"}}},
        {"properties": {"a": {"$ref": "#/properties/a"}}},
        {"properties": 5, "required": 5},
    ],
)
def test_a_schema_that_makes_no_sense_stops_nobody(schema: dict[str, Any]) -> None:
    check(from_words(["a=x"], schema), schema)


def test_nothing_is_fetched_for_a_schema() -> None:
    """A service must not be able to have its clients ask others."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/schema"
        schema = {"type": "object", "properties": {"a": {"$ref": url}}, "$schema": url}
        check(from_words(["a=1"], schema), schema)
        server.shutdown()
    assert asked == []


@pytest.mark.parametrize("text", [b"", b"[1]", b"5", b"{", b'{"a":1,"a":2}', b'{"a":NaN}', b"\xff"])
def test_text_that_is_no_object(text: bytes) -> None:
    with pytest.raises(ArgumentsError):
        from_text(text)


def test_text_that_is_one() -> None:
    assert from_text(b' {"a": [1]} ') == {"a": [1]}


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "string", "maxLength": 5}, "text, at most 5 characters"),
        ({"type": "string", "minLength": 1, "maxLength": 5}, "text, 1 to 5 characters"),
        ({"type": "number", "minimum": 0}, "a number, at least 0"),
        ({"enum": ["a", 1, None]}, "a | 1 | null"),
        ({"const": "a"}, '"a"'),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "an integer or null"),
        ({"$ref": "#/$defs/Mode"}, "slow | fast"),
        ({}, "any value"),
        (True, "any value"),
    ],
)
def test_what_is_wanted_in_words(part: object, words: str) -> None:
    assert wanted(part, SCHEMA) == words


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(["type", "$ref", "enum", "anyOf", "properties", "const", "allOf"]),
            inner,
        )
    ),
)


@given(_json, st.text())
def test_no_schema_breaks_it(part: Any, text: str) -> None:
    schema = {"properties": {"a": part}}
    kinds(part, schema)
    wanted(part, schema)
    try:
        check(from_words([f"a={text}"], schema), schema)
    except ArgumentsError as exc:
        assert exc.faults
