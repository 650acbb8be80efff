"""Changing one member of a JSON file that belongs to somebody else, and not a byte besides.

Parsing and writing such a file anew would change numbers, escapes, line breaks and inline lists
that are none of our business. So the text is parsed to be judged, and then cut and joined.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class JsonTextError(Exception):
    """The text is not what may be changed; says why, and where."""


def read(text: str) -> dict[str, Any]:
    """Return the object that `text` holds; blank text is an empty one.

    Raises:
        JsonTextError: it is not JSON, a member is named twice, or it is no object.
    """
    try:
        content = _STRICT.decode(text) if text.strip() else {}
    except json.JSONDecodeError as exc:
        where = f"line {exc.lineno}, column {exc.colno}"
        raise JsonTextError(f"is not JSON: {where}: {exc.msg}") from exc
    except RecursionError:
        raise JsonTextError("is nested too deeply") from None
    except ValueError as exc:
        raise JsonTextError(f"is not JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise JsonTextError("does not hold a JSON object")
    return content


def put(text: str, table: str, name: str, value: dict[str, Any]) -> str:
    """Return `text` with the member `name` of the object `table` set to `value`.

    A table or member that is missing is added behind the others, in the style of its neighbours.

    Raises:
        JsonTextError: see `read`; or the table is no object.
    """
    table_of(text, table)
    if not text.strip():
        text = "{}\n"
    root = _object(text, _space(text, 0))
    outer = root.member(table)
    if outer is None:
        return _add(text, root, None, table, {name: value})
    inner = _object(text, outer.value)
    old = inner.member(name)
    if old is None:
        return _add(text, inner, root, name, value)
    indent = _indent(text, old.start) if "\n" in text[old.value : old.end] else None
    shown = _shown(text, value, indent, _tight(text, inner))
    return text[: old.value] + shown + text[old.end :]


def take(text: str, table: str, name: str) -> str:
    """Return `text` without the member `name` of the object `table`; as it was if there is none.

    Raises:
        JsonTextError: see `read`; or the table is no object.
    """
    if name not in table_of(text, table):
        return text
    outer = _object(text, _space(text, 0)).member(table)
    assert outer is not None  # noqa: S101 - the parser has just seen it
    inner = _object(text, outer.value)
    names = [member.name for member in inner.members]
    at = names.index(name)
    if len(names) == 1:
        return text[: inner.start] + "{}" + text[inner.end + 1 :]
    if at + 1 < len(names):
        return text[: inner.members[at].start] + text[inner.members[at + 1].start :]
    return text[: inner.members[at - 1].end] + text[inner.members[at].end :]


def table_of(text: str, table: str) -> dict[str, Any]:
    """Return the object `table` in `text`, empty if there is none.

    Raises:
        JsonTextError: see `read`; or the table is no object.
    """
    found = read(text).get(table, {})
    if not isinstance(found, dict):
        raise JsonTextError(f'has something else than an object under "{table}"')
    return found


@dataclass(frozen=True, slots=True)
class _Member:
    """Where a member stands: its name's first quote, its value, and behind its value."""

    name: str
    start: int
    value: int
    end: int


@dataclass(frozen=True, slots=True)
class _Object:
    """Where an object stands: its braces, and its members in order."""

    start: int
    members: list[_Member]
    end: int

    def member(self, name: str) -> _Member | None:
        return next((one for one in self.members if one.name == name), None)


def _object(text: str, start: int) -> _Object:
    """Return the object whose brace is at `start`, in a text that `read` has approved of."""
    members = []
    at = _space(text, start + 1)
    while text[at] != "}":
        name, colon = _DECODER.raw_decode(text, at)
        value = _space(text, _space(text, colon) + 1)
        _, end = _DECODER.raw_decode(text, value)
        members.append(_Member(name, at, value, end))
        at = _space(text, end)
        if text[at] == ",":
            at = _space(text, at + 1)
    return _Object(start, members, at)


def _add(text: str, place: _Object, above: _Object | None, name: str, value: object) -> str:
    """Return `text` with a member added to `place`, which lies in `above` if it is not the root."""
    newline = _newline(text)
    tight = _tight(text, place if place.members or above is None else above)
    if place.members:
        last = place.members[-1]
        broken = "\n" in text[place.start : last.start]
        indent = _indent(text, last.start) if broken else None
        gap = newline + indent if indent is not None else "" if tight else " "
        return (
            text[: last.end] + f",{gap}{_pair(text, name, value, indent, tight)}" + text[last.end :]
        )
    if above is not None and "\n" not in text[above.start : above.end]:
        inside = _pair(text, name, value, None, tight)
        return text[: place.start] + "{" + inside + "}" + text[place.end + 1 :]
    around = _indent(text, place.start)
    indent = around + _unit(text)
    inside = newline + indent + _pair(text, name, value, indent, tight=False) + newline + around
    return text[: place.start] + "{" + inside + "}" + text[place.end + 1 :]


def _pair(text: str, name: str, value: object, indent: str | None, tight: bool) -> str:
    colon = ":" if tight and indent is None else ": "
    return json.dumps(name, ensure_ascii=False) + colon + _shown(text, value, indent, tight)


def _shown(text: str, value: object, indent: str | None, tight: bool) -> str:
    """Return `value` as JSON: on one line, or on lines of their own that begin with `indent`."""
    if indent is None:
        separators = (",", ":") if tight else (", ", ": ")
        return json.dumps(value, ensure_ascii=False, separators=separators)
    lines = json.dumps(value, ensure_ascii=False, indent=_unit(text)).split("\n")
    return (_newline(text) + indent).join(lines)


def _tight(text: str, place: _Object) -> bool:
    """Return whether the object is written without spaces behind its colons."""
    first = next(iter(place.members), None)
    return first is not None and text[first.value - 1] == ":"


def _newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _unit(text: str) -> str:
    """Return the step of indentation: that of the outermost member, or two spaces."""
    found = re.match(r"\s*?([ \t]*)\{[ \t]*\r?\n\1([ \t]+)\"", text)
    return found[2] if found else "  "


def _indent(text: str, at: int) -> str:
    """Return the white space with which the line of `at` begins."""
    line = text[text.rfind("\n", 0, at) + 1 : at]
    return line[: len(line) - len(line.lstrip(" \t"))]


def _space(text: str, at: int) -> int:
    """Return where the white space at `at` ends."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"the member {json.dumps(name)} is there twice")
        members[name] = value
    return members


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


_STRICT = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_refuse)
