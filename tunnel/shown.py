"""What a service says of its tools and resources, in words for people. Pure.

All of it is somebody else's text: before it goes to a terminal, `printable` takes out what would
steer one.
"""

import json
from collections.abc import Iterator
from typing import Any

from .arguments import Json, properties, wanted

_MARKS = {
    "readOnlyHint": "read only",
    "destructiveHint": "destructive",
    "idempotentHint": "idempotent",
}


def printable(text: str) -> str:
    """Return text in which nothing steers a terminal: only line ends and tabs are left."""
    return "".join(
        one if one.isprintable() or one in "\n\t" else repr(one)[1:-1]
        for one in text.replace("\r\n", "\n")
    )


def line(text: object) -> str:
    """Return the first line of a text, for a place where there is room for one."""
    lines = str(text or "").strip().splitlines()
    return printable(lines[0]).replace("\t", " ") if lines else ""


def summary(one: Json) -> str:
    """Return what a tool or resource is, in a line: its description, else its title."""
    return line(one.get("description")) or line(one.get("title"))


def members(result: Json, name: str) -> list[Json]:
    """Return the objects in a list of a result; none where there is no such list."""
    found = result.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def schema(tool: Json) -> Json:
    """Return a tool's input schema; an empty one where there is none."""
    found = tool.get("inputSchema")
    return found if isinstance(found, dict) else {}


def marks(tool: Json) -> list[str]:
    """Return what a tool says of its effects; a tool that says nothing may do anything."""
    said = tool.get("annotations")
    hints = said if isinstance(said, dict) else {}
    found = [words for hint, words in _MARKS.items() if hints.get(hint) is True]
    return ["read only"] if "read only" in found else found  # the others would mean nothing


def usage(tool: Json) -> str:
    """Return a tool's arguments in a line: `mode=conservative | normal [note=text]`."""
    return "  ".join(shown if required else f"[{shown}]" for shown, required, _ in _arguments(tool))


def _arguments(tool: Json) -> Iterator[tuple[str, bool, Json]]:
    """Yield each argument: NAME=what it wants, whether it is required, its schema."""
    whole = schema(tool)
    required = whole.get("required")
    names = required if isinstance(required, list) else []
    for name, part in properties(whole).items():
        yield line(f"{name}={wanted(part, whole)}"), name in names, part


def page(tool: Json) -> list[tuple[str, str]]:
    """Return all that is to be said of a tool: (heading, text) for each paragraph."""
    found = [("", printable(str(tool.get("description") or tool.get("title") or "")).strip())]
    arguments = []
    for shown, required, part in _arguments(tool):
        words = shown + ("" if required else "   (optional)")
        if isinstance(part, dict):
            if part.get("default") is not None:
                words += f"   (default {printable(json.dumps(part['default']))})"
            if part.get("description"):
                words += f"\n    {line(part['description'])}"
        arguments.append(words)
    found.append(("Arguments", "\n".join(arguments) or "none"))
    if told := marks(tool):
        found.append(("Marks", ", ".join(told)))
    return [one for one in found if one[1]]


def size(count: int) -> str:
    """Return a number of bytes as people say it."""
    return f"{count} bytes" if count < 2048 else f"{count / 1024:.0f} KiB"


def block(content: Json) -> tuple[str | None, str]:
    """Return one block of a tool's answer: its text, or None and what it is instead."""
    match content.get("type"):
        case "text":
            return str(content.get("text", "")), ""
        case "resource_link":
            return str(content.get("uri", "")), ""
        case "resource" if isinstance(held := content.get("resource"), dict):
            if isinstance(held.get("text"), str):
                return held["text"], ""
            return None, f"{line(held.get('mimeType'))} at {line(held.get('uri'))}"
        case kind:
            encoded = content.get("data")
            count = len(encoded) * 3 // 4 if isinstance(encoded, str) else 0
            return None, f"{line(kind)} ({line(content.get('mimeType'))}, about {size(count)})"


def repeats(text: str, structured: Any) -> bool:
    """Return whether a text only says in JSON what is there as structured content as well."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return False
    wrapped = structured.get("result") if isinstance(structured, dict) else None
    return bool(content == structured or (wrapped is not None and content == wrapped))
