"""Logs: one line an event, as text or JSON; fields are named, and none of them is a secret."""

import json
import logging
import time
from collections.abc import Sequence
from typing import Any, Literal

from .problems import Problem
from .status import told

Format = Literal["text", "json"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and value is not None
    }


def _stamp(record: logging.LogRecord) -> str:
    """Return the time as RFC 3339 has it, in UTC, to the millisecond."""
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """`time level event key=value ...`; a problem is told in words, at the end."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = _fields(record)
        problem = fields.pop("problem", None)
        parts = [_stamp(record), record.levelname.lower(), record.getMessage()]
        parts += [f"{key}={value}" for key, value in fields.items()]
        if isinstance(problem, Problem):
            parts.append(f"[{problem.code}] {problem}")
        line = "".join(one if one.isprintable() else repr(one)[1:-1] for one in " ".join(parts))
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, then the fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = _fields(record)
        if isinstance(problem := fields.get("problem"), Problem):
            fields["problem"] = told(problem)
        line = {
            "time": _stamp(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(handlers: Sequence[logging.Handler], style: Format, *, verbose: bool) -> None:
    """Send our events to `handlers`, and of the libraries' only what is an error."""
    for handler in handlers:
        handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(handlers=handlers, level=logging.ERROR, force=True)
    logging.getLogger("tunnel").setLevel(logging.DEBUG if verbose else logging.INFO)
    logging.getLogger("asyncssh").setLevel(logging.CRITICAL)  # its causes are in our events
