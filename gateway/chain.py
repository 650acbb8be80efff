"""The chain of the audit log: what a line is, and how it follows from the one before.

    {"seq":7,"time":"2026-11-23T18:19:11.123456Z",...facts...,"prev":"<64 hex>","hash":"<64 hex>"}

`hash` is the SHA-256 of the line's bytes up to its last `,"hash":"`, `prev` is the hash of the line
before (64 zeros for the first): checking needs no canonical form, only the bytes.
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

LONGEST_LINE = 1 << 20  # bytes; bounds what a reader holds in memory
SEAL = len(',"hash":""}\n') + 64  # bytes of a line that its hash does not cover
_LINE = re.compile(
    rb'\{"seq":([1-9][0-9]{0,17}),"time":"[^"]*"(?:,"event":"([a-z]+)")?(?:,.*)?'
    rb',"prev":"([0-9a-f]{64})","hash":"([0-9a-f]{64})"\}\n'
)
_ANCHOR = re.compile(rb'\{"seq":(0|[1-9][0-9]{0,17}),"hash":"([0-9a-f]{64})"\}\n')


class Head(NamedTuple):
    """What is known of a log's end by its last line."""

    seq: int
    hash: str


GENESIS = Head(0, "0" * 64)


class Line(NamedTuple):
    """A line of a log, as far as the chain is concerned."""

    head: Head
    prev: str
    event: str
    sound: bool  # whether the hash fits

    @classmethod
    def read(cls, raw: bytes) -> "Line | None":
        """Return the line in `raw`, or None where it is none."""
        match = _LINE.fullmatch(raw)
        if match is None:
            return None
        seq, event, prev, digest = int(match[1]), match[2] or b"", match[3], match[4].decode()
        sound = hashlib.sha256(raw[:-SEAL]).hexdigest() == digest
        return cls(Head(seq, digest), prev.decode(), event.decode(), sound)


def beside(path: Path, ending: str) -> Path:
    """Return the path of a file that belongs to the log in `path`."""
    return path.with_name(f"{path.name}.{ending}")


def read_anchor(path: Path) -> Head | None:
    """Return the anchor of the log in `path`; None where it is missing or broken.

    Raises:
        OSError: it cannot be read.
    """
    try:
        match = _ANCHOR.fullmatch(beside(path, "head").read_bytes())
    except FileNotFoundError:
        return None
    return Head(int(match[1]), match[2].decode()) if match else None
