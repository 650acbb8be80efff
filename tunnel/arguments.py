"""The arguments of a tool, from the words of a command line, by the tool's own input schema. Pure.

A word is NAME=VALUE, and what VALUE means follows from the type that the schema gives to NAME (JSON
Schema 2020-12, which is what MCP takes where a schema names no dialect). What does not fit is told
before anything is sent; where the schema itself makes no sense, the service has the last word.
"""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from keys import strictjson

Json = dict[str, Any]

DEPTH = 8  # references that lead to each other
SHOWN = 300  # characters of what is wrong with one value

_ARTICLES = {
    "string": "text",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list, as JSON",
    "object": "an object, as JSON",
    "null": "null",
}


class ArgumentsError(Exception):
    """The arguments do not fit the tool; `faults` says in words why."""

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


def from_words(words: Sequence[str], schema: Json) -> Json:
    """Return the arguments that `words` give: NAME=VALUE each.

    Raises:
        ArgumentsError: some of them cannot be read, with every fault.
    """
    found: Json = {}
    faults = []
    for word in words:
        name, equals, text = word.partition("=")
        if not word.isascii() and word.encode(errors="replace").decode() != word:
            faults.append(f"{word!r} is not UTF-8.")
        elif not equals or not name:
            faults.append(f"{word!r} is not NAME=VALUE; quote a value that has spaces.")
        elif name in found:
            faults.append(f"{name}: is given twice.")
        else:
            part = properties(schema).get(name, {})
            try:
                found[name] = _value(text, kinds(part, schema))
            except ValueError:
                faults.append(f"{name}: wants {wanted(part, schema)}, not {text!r}.")
    if faults:
        raise ArgumentsError(faults)
    return found


def from_text(text: bytes) -> Json:
    """Return the arguments in the JSON object that `text` is.

    Raises:
        ArgumentsError: it is none.
    """
    try:
        content = strictjson.loads(text)
    except ValueError as exc:
        raise ArgumentsError([f"The arguments are not JSON: {exc}."]) from None
    if not isinstance(content, dict):
        raise ArgumentsError(["The arguments must be a JSON object."])
    return content


def check(arguments: Json, schema: Json) -> None:
    """Return where the arguments fit the schema.

    Raises:
        ArgumentsError: they do not, with every fault.
    """
    known = properties(schema)
    required = schema.get("required")
    faults = []
    others = schema.get("additionalProperties", not known)  # where it names some, those are all
    if others is False and not schema.get("patternProperties"):
        faults += [
            f"{name}: there is no such argument. {instead(name, known)}"
            for name in arguments
            if name not in known
        ]
    faults += [
        f"{name}: is missing; it wants {wanted(known.get(name, {}), schema)}."
        for name in (required if isinstance(required, list) else ())
        if name not in arguments
    ]
    faults += _unfit(arguments, schema)
    if faults:
        raise ArgumentsError(faults)


def _unfit(arguments: Json, schema: Json) -> list[str]:
    """Return what else is wrong with the values, inner ones too."""
    from jsonschema import Draft202012Validator  # late: it takes 0.1 s
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    faults = []
    try:
        dialect = validator_for(schema, default=Draft202012Validator)
        dialect.check_schema(schema)
        # An empty registry: what a schema refers to is never fetched from anywhere.
        for error in dialect(schema, registry=Registry()).iter_errors(arguments):
            if error.path or error.validator not in ("required", "additionalProperties"):
                where = ".".join(str(step) for step in error.path) or "arguments"
                faults.append(f"{where}: {error.message[:SHOWN]}.")
    except (SchemaError, Unresolvable, re.error, RecursionError):
        return []
    return faults


def instead(name: str, known: Iterable[str]) -> str:
    """Return in words what may have been meant by a name that is not known."""
    known = list(known)
    if not known:
        return "There are none."
    near = difflib.get_close_matches(name, known, 1)
    return f"Is {near[0]} meant?" if near else f"There are: {', '.join(known)}."


def properties(schema: Json) -> Json:
    """Return the schemas of the arguments, by name."""
    found = schema.get("properties")
    return found if isinstance(found, dict) else {}


def kinds(part: object, schema: Json, depth: int = DEPTH) -> list[str]:
    """Return the JSON types that `part` of a schema takes; none where it takes any.

    Args:
        part: the schema of one argument.
        schema: the whole, which it may refer to.
        depth: how many more references are followed.
    """
    if not isinstance(part, dict) or depth == 0:
        return []
    if isinstance(reference := part.get("$ref"), str):
        return kinds(_referred(reference, schema), schema, depth - 1)
    if isinstance(given := part.get("type"), str | list):
        return [given] if isinstance(given, str) else [str(one) for one in given]
    if isinstance(values := part.get("enum"), list):
        return sorted({_kind(one) for one in values})
    if "const" in part:
        return [_kind(part["const"])]
    for name in ("anyOf", "oneOf"):
        if isinstance(choices := part.get(name), list):
            found = [kinds(one, schema, depth - 1) for one in choices]
            return [] if [] in found else list(dict.fromkeys(kind for one in found for kind in one))
    for one in part.get("allOf") or ():
        if found_all := kinds(one, schema, depth - 1):
            return found_all
    return []


def wanted(part: object, schema: Json, depth: int = DEPTH) -> str:
    """Return in words what `part` of a schema takes; arguments as for `kinds`."""
    if not isinstance(part, dict) or depth == 0:
        return "any value"
    if isinstance(reference := part.get("$ref"), str):
        return wanted(_referred(reference, schema), schema, depth - 1)
    if isinstance(values := part.get("enum"), list) and values:
        return " | ".join(one if isinstance(one, str) else json.dumps(one) for one in values)
    if "const" in part:
        return json.dumps(part["const"])
    for name in ("anyOf", "oneOf"):
        if isinstance(choices := part.get(name), list) and choices:
            return " or ".join(dict.fromkeys(wanted(one, schema, depth - 1) for one in choices))
    found = kinds(part, schema)
    if not found:
        return "any value"
    return " or ".join(_ARTICLES.get(kind, kind) for kind in found) + _bounds(part)


def _bounds(part: Json) -> str:
    for least, most, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", " items"),
    ):
        low, high = part.get(least), part.get(most)
        if low is not None and high is not None:
            return f", {low} to {high}{unit}"
        if low is not None:
            return f", at least {low}{unit}"
        if high is not None:
            return f", at most {high}{unit}"
    return ""


def _referred(reference: str, schema: Json) -> object:
    """Return what a reference inside the schema leads to (RFC 6901); None where to nothing."""
    node: object = schema
    for step in reference.removeprefix("#/").split("/"):
        key = step.replace("~1", "/").replace("~0", "~")
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _value(text: str, types: list[str]) -> Any:
    """Return what `text` means as one of the types; any type where there are none.

    Raises:
        ValueError: it is none of them.
    """
    plain = text.encode()
    if types != ["string"]:
        low = plain.lower()
        try:  # PowerShell writes $true as True
            value = strictjson.loads(low if low in (b"true", b"false", b"null") else plain)
        except ValueError:
            pass
        else:
            kind = _kind(value)
            wide = kind == "integer" and "number" in types
            whole = kind == "number" and "integer" in types and value.is_integer()
            if not types or (kind in types and kind != "string") or wide or whole:
                return int(value) if whole and "number" not in types else value
    if types and "string" not in types:
        raise ValueError
    return text


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"
