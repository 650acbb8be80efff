"""Somebody else's text on its way to a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.shown import block, line, marks, page, printable, repeats, summary, usage


@given(st.text())
def test_nothing_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert all(one.isprintable() or one in "\n\t" for one in shown)
    assert "\n" not in line(text)


@pytest.mark.parametrize("spell", ["\x1b[2J", "\x9b2J", "\x07", "\r", "\u202e", "\u2028", "\x00"])
def test_what_steers_is_shown_instead(spell: str) -> None:
    assert printable(f"a{spell}b").startswith("a\\")


def test_other_writing_stays() -> None:
    assert printable("Zürich\t日本\r\n🚀") == "Zürich\t日本\n🚀"


@pytest.mark.parametrize(
    ("hints", "told"),
    [
        (None, []),
        ({}, []),
        ({"readOnlyHint": True, "destructiveHint": True}, ["read only"]),
        ({"readOnlyHint": False, "destructiveHint": True}, ["destructive"]),
        ({"readOnlyHint": "yes"}, []),
        ({"idempotentHint": True, "destructiveHint": True}, ["destructive", "idempotent"]),
    ],
)
def test_marks(hints: object, told: list[str]) -> None:
    assert marks({"annotations": hints}) == told


def test_a_tool_in_a_line_and_on_a_page() -> None:
    tool = {
        "name": "stop",
        "description": "Stop it.\nAll of it.",
        "inputSchema": {
            "properties": {
                "reason": {"type": "string", "description": "Why."},
                "hard": {"type": "boolean", "default": False},
            },
            "required": ["reason"],
        },
    }
    assert summary(tool) == "Stop it."
    assert usage(tool) == "reason=text  [hard=true or false]"
    assert page(tool) == [
        ("", "Stop it.\nAll of it."),
        ("Arguments", "reason=text\n    Why.\nhard=true or false   (optional)   (default false)"),
    ]


@pytest.mark.parametrize("tool", [{}, {"inputSchema": 5, "annotations": 5, "description": 5}])
def test_a_tool_that_says_nonsense(tool: dict[str, object]) -> None:
    assert usage(tool) == ""
    assert page(tool)[-1] == ("Arguments", "none")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"type": "text", "text": "x"}, ("x", "")),
        ({"type": "resource", "resource": {"uri": "a:b", "text": "x"}}, ("x", "")),
        ({"type": "resource_link", "uri": "a:b"}, ("a:b", "")),
        (
            {"type": "image", "mimeType": "image/png", "data": "AAAA"},
            (None, "image (image/png, about 3 bytes)"),
        ),
        (
            {"type": "resource", "resource": {"uri": "a:b", "mimeType": "x/y", "blob": "AA=="}},
            (None, "x/y at a:b"),
        ),
        ({"type": "\x1b[2J"}, (None, "\\x1b[2J (, about 0 bytes)")),
    ],
)
def test_blocks(content: dict[str, object], told: tuple[str | None, str]) -> None:
    assert block(content) == told


def test_text_that_repeats_what_is_structured() -> None:
    assert repeats('{"a": 1}', {"a": 1})
    assert repeats("[1]", {"result": [1]})
    assert not repeats("done", {"a": 1})
    assert not repeats("null", {"a": 1})
