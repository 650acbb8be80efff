import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from tunnel.log import JsonFormatter, TextFormatter, configure
from tunnel.problems import Problem

PROBLEM = Problem("dns_failed", "The name droplet does not resolve.")


def record(msg: str = "link down", **fields: object) -> logging.LogRecord:
    made = {
        "name": "tunnel",
        "msg": msg,
        "levelno": 30,
        "levelname": "WARNING",
        "created": 1_700_000_000.25,
        "msecs": 250.0,
    }
    return logging.makeLogRecord({**made, **fields})


def as_json(**fields: object) -> dict[str, object]:
    line = JsonFormatter().format(record(**fields))
    assert len(line.splitlines()) == 1
    told: dict[str, object] = json.loads(line)
    return told


def test_text() -> None:
    assert TextFormatter().format(record()) == "2023-11-14T22:13:20.250Z warning link down"
    line = TextFormatter().format(record(connects=3, what="ping", nothing=None))
    assert line == "2023-11-14T22:13:20.250Z warning link down connects=3 what=ping"


def test_text_tells_a_problem_in_words_at_the_end() -> None:
    line = TextFormatter().format(record(problem=PROBLEM, status=503))
    assert line.endswith(f"link down status=503 [dns_failed] {PROBLEM.message} {PROBLEM.remedy}")


@pytest.mark.parametrize(
    "end", ["\n", "\r", "\r\n", "\v", "\f", "\x1b[2K\r", "\x85", "\u2028", "\u2029", "\x1c", "\0"]
)
def test_nobody_outside_writes_lines_or_moves_the_cursor(end: str) -> None:
    """The name of a JSON-RPC method, which any client chooses, is logged."""
    fake = f"ping{end}2023-11-14T22:13:20.250Z info link up"
    for line in (
        TextFormatter().format(record(what=fake)),
        TextFormatter().format(record(fake)),
        TextFormatter().format(record(problem=Problem("dns_failed", fake))),
        JsonFormatter().format(record(what=fake)),
        JsonFormatter().format(record(problem=Problem("dns_failed", fake))),
    ):
        assert len(line.splitlines()) == 1
        assert line.isprintable()


def test_what_is_not_ascii_stays_readable_in_text() -> None:
    assert "what=Grüße" in TextFormatter().format(record(what="Grüße"))


def test_json() -> None:
    assert as_json(connects=3, nothing=None) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "event": "link down",
        "connects": 3,
    }


def test_json_has_the_problem_in_parts() -> None:
    assert as_json(problem=PROBLEM)["problem"] == {
        "code": "dns_failed",
        "message": PROBLEM.message,
        "remedy": PROBLEM.remedy,
    }


def test_json_takes_any_value() -> None:
    assert as_json(what=b"bytes", where={"a": object})["what"] == "b'bytes'"


def test_arguments_are_filled_in() -> None:
    assert as_json(msg="%s of %s", args=(1, 2))["event"] == "1 of 2"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged, with the levels and handlers of everybody put back afterwards."""
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in ("tunnel", "asyncssh"))]
    levels = [logger.level for logger in loggers]
    handlers, root.handlers = root.handlers, []
    try:
        yield io.StringIO()
    finally:
        root.handlers = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def lines(stream: io.StringIO) -> list[str]:
    return [line.split(" ", 1)[1] for line in stream.getvalue().splitlines()]


def test_our_events_are_told_and_of_the_libraries_only_errors(stream: io.StringIO) -> None:
    configure([logging.StreamHandler(stream)], "text", verbose=False)
    for name in ("tunnel.link", "asyncio", "asyncssh", "aiohttp.access"):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            logging.getLogger(name).log(level, name)
    assert lines(stream) == [
        "info tunnel.link",
        "warning tunnel.link",
        "error tunnel.link",
        "error asyncio",
        "error aiohttp.access",
    ]


def test_verbose_tells_our_details_and_nobody_elses(stream: io.StringIO) -> None:
    configure([logging.StreamHandler(stream)], "text", verbose=True)
    for name in ("tunnel.link", "asyncio", "asyncssh"):
        logging.getLogger(name).debug(name)
    assert lines(stream) == ["debug tunnel.link"]


@pytest.mark.parametrize("verbose", [False, True])
def test_a_failed_try_is_no_traceback_unless_it_is_asked_for(
    stream: io.StringIO, verbose: bool
) -> None:
    configure([logging.StreamHandler(stream)], "text", verbose=verbose)
    log = logging.getLogger("tunnel.link")
    try:
        raise ConnectionRefusedError("no")
    except ConnectionRefusedError as exc:
        log.debug("connect failed", exc_info=exc)
    log.warning("link down", extra={"problem": PROBLEM})
    assert ("Traceback" in stream.getvalue()) is verbose
    assert f"[dns_failed] {PROBLEM}" in stream.getvalue()


def test_a_defect_comes_with_its_traceback(stream: io.StringIO) -> None:
    configure([logging.StreamHandler(stream)], "json", verbose=False)
    try:
        raise ZeroDivisionError("oops")
    except ZeroDivisionError:
        logging.getLogger("tunnel").exception("defect")
    [line] = stream.getvalue().splitlines()
    told = json.loads(line)
    assert told["event"] == "defect"
    assert "ZeroDivisionError: oops" in told["exception"]


def test_a_traceback_is_told_below_the_line() -> None:
    try:
        raise ZeroDivisionError("oops")
    except ZeroDivisionError:
        text = TextFormatter().format(record("defect", exc_info=sys.exc_info()))
    first, *rest = text.splitlines()
    assert first.endswith("warning defect")
    assert rest[0].startswith("Traceback")
    assert rest[-1] == "ZeroDivisionError: oops"
