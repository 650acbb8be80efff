"""How the terminal's commands ask the service, and how they print what it says.

Progress, patience and reasons go to stderr; stdout has what was asked for and nothing else.
"""

import asyncio
import contextlib
import io
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from .cli_base import fail, file_of

if TYPE_CHECKING:
    from .terminal import Conversation, NoAnswerError, OnProgress

PATIENCE = 1.0  # seconds after which it is said what is being waited for

T = TypeVar("T")
Waiting = Callable[[str], contextlib.AbstractAsyncContextManager[None]]


def ask(
    config: Path | None,
    as_json: bool,
    verbose: bool,
    work: "Callable[[Conversation], Coroutine[Any, Any, T]]",
) -> T:
    """Return what `work` asked; the command ends where it was not answered."""

    async def whole(talk: "Conversation", waiting: Waiting) -> T:
        async with waiting("Asking the service..."):
            return await work(talk)

    return converse(config, as_json, verbose, whole)


def converse(
    config: Path | None,
    as_json: bool,
    verbose: bool,
    work: "Callable[[Conversation, Waiting], Coroutine[Any, Any, T]]",
) -> T:
    """Have a conversation with the service; the command ends where it says no or nothing."""
    from . import log
    from .terminal import NoAnswerError, conversation

    file = file_of(config)
    handler = logging.StreamHandler(sys.stderr) if verbose else logging.NullHandler()
    log.configure([handler], "text", verbose=verbose)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="backslashreplace")
            else:
                stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")

    async def talk() -> T:
        async with conversation(file) as speaking:
            return await work(speaking, lambda words: patience(words, speaking))

    try:
        return asyncio.run(talk())
    except NoAnswerError as exc:
        _refused(exc, as_json)


def _refused(exc: "NoAnswerError", as_json: bool) -> NoReturn:
    from .shown import printable

    if as_json:
        write_json({"error": exc.error})
    fail(printable(str(exc)), exc.exit_code)


@contextlib.asynccontextmanager
async def patience(words: str, talk: "Conversation") -> AsyncIterator[None]:
    """Say what is being done where it takes longer than a second, and what is in its way."""

    async def tell() -> None:
        await asyncio.sleep(PATIENCE)
        say(words)
        why, told = await talk.tunnel_obstacle() or talk.obstacle, None
        while True:
            if why is not None and why != told:
                say(f"No path is up yet. {why}")
                told = why
            await asyncio.sleep(PATIENCE)
            why = talk.obstacle

    telling = asyncio.ensure_future(tell())
    try:
        yield
    finally:
        telling.cancel()


def show(renderable: Any) -> None:
    """Print one of `tables` on the terminal."""
    from rich.console import Console

    Console(highlight=False).print(renderable)


def write(text: str) -> None:
    """Write to stdout as it is, but nothing that would steer a terminal."""
    from .shown import printable

    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)


def write_json(content: Any) -> None:
    """Write what the service said to stdout."""
    sys.stdout.write(json.dumps(content, indent=2) + "\n")


def say(words: str) -> None:
    """Say what is being done, on stderr."""
    from .shown import printable

    click.secho(printable(words), dim=True, err=True)


@contextlib.contextmanager
def meter(tool: str) -> "Iterator[OnProgress]":
    """Show how far a call is: by a bar on a terminal, else a line a second at most."""
    if sys.stderr.isatty():
        from .tables import Bar

        with Bar(tool) as bar:
            yield bar
        return
    last = 0.0

    def on_progress(done: float, total: float | None, words: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PATIENCE or done == total:
            last = now
            of = "" if total is None else f" of {total:g}"
            say(f"{tool}: {done:g}{of} {words}".rstrip())

    yield on_progress
