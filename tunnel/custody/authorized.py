"""Changes to the text of an authorized_keys file: one key's lines, and not a byte elsewhere.

The format is that of sshd(8): options, type, base64, comment. Options may hold quoted blanks.
"""

import re

from keys.errors import KeyFileError

_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')


def has(text: bytes, public: str) -> bool:
    """Return whether a line lets `public` ("type base64") in."""
    return any(_is(line, public) for line in text.splitlines())


def beside(text: bytes, old: str, new: str, otherwise: str) -> bytes:
    """Return `text` with a line for `new` after that of `old`, with the same options and comment.

    Args:
        text: the file.
        old: "type base64" of the key that is let in now.
        new: "type base64" of the one that is to be let in as well.
        otherwise: the whole line for `new` where there is none for `old`.
    """
    if has(text, new):
        return text
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if _is(line, old):
            ended = line if line.endswith((b"\n", b"\r")) else line + b"\n"
            fresh = ended.replace(_blob(old), _blob(new))
            return b"".join([*lines[:number], ended, fresh, *lines[number + 1 :]])
    if text and not text.endswith(b"\n"):
        text += b"\n"
    return text + otherwise.encode() + b"\n"


def without(text: bytes, public: str) -> bytes:
    """Return `text` without the lines of `public`."""
    return b"".join(line for line in text.splitlines(keepends=True) if not _is(line, public))


def _blob(public: str) -> bytes:
    parts = public.split()
    if len(parts) < 2:
        raise KeyFileError("That is not a public key line.")
    return parts[1].encode()


def _is(line: bytes, public: str) -> bool:
    bare = _QUOTED.sub(b'""', line).strip()
    return not bare.startswith(b"#") and _blob(public) in bare.split()
