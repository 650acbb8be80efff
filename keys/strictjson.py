"""JSON without its ambiguities, for text that decides who may do what.

Where two parsers could read two different things (a member named twice, NaN, UTF-16, a lone
surrogate), this one refuses: what was checked here must be what is acted on elsewhere (RFC 8259
sections 4 and 8; RFC 8725 section 3.7).
"""

import json
import math
import re
from typing import Any, NoReturn

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def loads(text: bytes) -> Any:
    """Return what `text` says.

    Raises:
        ValueError: it is not JSON, or more than one thing could be read in it.
    """
    try:
        # json.loads would guess the encoding, take UTF-16 too, and make a decoder for each text.
        content = _DECODER.decode(text.decode("utf-8"))
        if _SURROGATE.search(text):  # seldom; a pair is fine, a half of one cannot be encoded
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair") from None
    return content


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is named twice")
    return members


def _refuse(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite)


def dumps(content: object) -> bytes:
    """Return `content` as compact JSON."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
