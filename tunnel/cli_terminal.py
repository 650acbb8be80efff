"""`tools`, `resources`, `read` and `call`: the service's tools without Claude."""

import base64
import binascii
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from .cli import EXIT_CODES
from .cli_asking import Waiting, ask, converse, meter, show, write, write_json
from .cli_base import config_option, fail, file_of

if TYPE_CHECKING:
    from .terminal import Conversation

STDIN = 64 << 20  # bytes of arguments

Json = dict[str, Any]


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-v", "--verbose", is_flag=True, help="Log to stderr."),
        click.option(
            "--json", "as_json", is_flag=True, help="Print what the service says as JSON."
        ),
        config_option,
    ):
        function = option(function)
    return function


def _known(method: str, member: str) -> list[Json]:
    """Return a list as the service last told it, for completion: nothing is asked."""
    from .bridge.memory import Memory, memory_file

    config = click.get_current_context().params.get("config")
    said = Memory(memory_file(file_of(config).parent)).recall(method) or {}
    return [one for one in said.get(member, ()) if isinstance(one, dict)]


def _complete_tool(ctx: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    from .shown import summary

    with ctx.scope(cleanup=False):
        found = _known("tools/list", "tools")
    return [
        CompletionItem(str(one.get("name")), help=summary(one))
        for one in found
        if str(one.get("name")).startswith(begun)
    ]


def _complete_argument(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
    from .arguments import properties
    from .shown import schema

    with ctx.scope(cleanup=False):
        found = _known("tools/list", "tools")
    words = []
    for tool in found:
        if tool.get("name") == ctx.params.get("tool"):
            for name, part in properties(schema(tool)).items():
                values = part.get("enum") if isinstance(part, dict) else None
                words += [f"{name}={value}" for value in values or ("",)]
    return [word for word in words if word.startswith(begun)]


def _complete_uri(ctx: click.Context, _: click.Parameter, begun: str) -> list[str]:
    with ctx.scope(cleanup=False):
        found = _known("resources/list", "resources")
    return [str(one.get("uri")) for one in found if str(one.get("uri")).startswith(begun)]


@click.command(
    epilog="\b\nExamples:\n  catalyst-tunnel tools\n  catalyst-tunnel tools stop_trading\n"
    "  catalyst-tunnel tools --json | jq '.[].name'\n\n" + EXIT_CODES
)
@click.argument("tool", required=False, metavar="[TOOL]", shell_complete=_complete_tool)
@_options
def tools(tool: str | None, config: Path | None, as_json: bool, verbose: bool) -> None:
    """List the service's tools, or tell all of one.

    Into a pipe, a line each: name, arguments, marks and what it does, with tabs between.
    """
    from .shown import line, marks, page, summary, usage

    listed = ask(config, as_json, verbose, lambda talk: talk.items("tools/list"))
    if tool is not None:
        one = _named(tool, listed)
        if as_json:
            write_json(one)
        elif sys.stdout.isatty():
            from . import tables

            show(tables.tool(one))
        else:
            write(f"{line(one['name'])}\n")
            for heading, text in page(one):
                write(f"\n{heading}\n{text}\n" if heading else f"{text}\n")
    elif as_json:
        write_json(listed)
    elif not listed:
        click.echo("The service has no tools.", err=True)
    elif sys.stdout.isatty():
        from . import tables

        show(tables.tools(listed))
    else:
        for one in listed:
            cells = (line(one.get("name")), usage(one), ", ".join(marks(one)), summary(one))
            write("\t".join(cells) + "\n")


@click.command(
    epilog="\b\nExamples:\n  catalyst-tunnel resources\n"
    "  catalyst-tunnel resources --json | jq '.resources[].uri'\n\n" + EXIT_CODES
)
@_options
def resources(config: Path | None, as_json: bool, verbose: bool) -> None:
    """List the service's resources, and templates of such.

    Into a pipe, a line each: URI, type and what it is, with tabs between.
    """
    from .shown import line, summary

    async def both(talk: "Conversation") -> tuple[list[Json], list[Json]]:
        return await talk.items("resources/list"), await talk.items("resources/templates/list")

    listed, templates = ask(config, as_json, verbose, both)
    if as_json:
        write_json({"resources": listed, "resourceTemplates": templates})
    elif not listed and not templates:
        click.echo("The service has no resources.", err=True)
    elif sys.stdout.isatty():
        from . import tables

        show(tables.resources([*listed, *templates]))
    else:
        for one in (*listed, *templates):
            uri = line(one.get("uri") or one.get("uriTemplate"))
            write("\t".join((uri, line(one.get("mimeType")), summary(one))) + "\n")


@click.command(
    epilog="\b\nExamples:\n  catalyst-tunnel read catalyst://system/health\n"
    "  catalyst-tunnel read catalyst://reports/today.pdf -o today.pdf\n\n" + EXIT_CODES
)
@click.argument("uri", shell_complete=_complete_uri)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write it to a file.",
)
@_options
def read(uri: str, output: Path | None, config: Path | None, as_json: bool, verbose: bool) -> None:
    """Print a resource as it is; what is not text goes to a file or a pipe only."""
    if as_json and output is not None:
        fail("--json prints; -o FILE writes the resource itself. Choose one.", 2)
    try:
        uri.encode()
    except UnicodeEncodeError:
        fail("The URI is not UTF-8.", 2)
    result = ask(config, as_json, verbose, lambda talk: talk.ask("resources/read", {"uri": uri}))
    if as_json:
        write_json(result)
        return
    from .shown import members

    pieces = [_piece(one) for one in members(result, "contents")]
    if output is not None:
        whole = b"".join(one if isinstance(one, bytes) else one.encode() for one in pieces)
        try:
            output.write_bytes(whole)
        except OSError as exc:
            fail(f"{output}: {exc.strerror}", 1)
    elif sys.stdout.isatty() and any(isinstance(one, bytes) for one in pieces):
        fail("That is not text, and would spoil the terminal. Write it to a file: -o FILE", 2)
    else:
        for one in pieces:
            if isinstance(one, bytes):
                sys.stdout.flush()
                sys.stdout.buffer.write(one)
            else:
                write(one)
        if sys.stdout.isatty() and pieces and not str(pieces[-1]).endswith("\n"):
            write("\n")


def _piece(content: Json) -> str | bytes:
    if "blob" not in content:
        return str(content.get("text", ""))
    try:
        return base64.b64decode(content["blob"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        fail("What the service sent is not the base64 that it says it is.", 1)


@click.command(
    epilog="\b\nExamples:\n"
    "  catalyst-tunnel call stop_trading reason=emergency\n"
    "  catalyst-tunnel call start_trading_cycle mode=conservative note='after the news'\n"
    """  catalyst-tunnel call stop_trading '{"reason": "emergency"}' --json\n"""
    "  catalyst-tunnel call stop_trading - < arguments.json\n\n" + EXIT_CODES
)
@click.argument("tool", shell_complete=_complete_tool)
@click.argument(
    "arguments", nargs=-1, metavar="[NAME=VALUE... | {JSON} | -]", shell_complete=_complete_argument
)
@_options
def call(
    tool: str, arguments: tuple[str, ...], config: Path | None, as_json: bool, verbose: bool
) -> None:
    """Call a tool, once: it is never called again by itself.

    Arguments are NAME=VALUE with lists and objects as JSON, or all of them as one JSON object, or
    "-" for such an object on stdin. They are checked before anything is sent. Ctrl-C cancels.
    """
    from .arguments import ArgumentsError, check, from_text, from_words
    from .shown import schema

    sent = False

    async def once(talk: "Conversation", waiting: Waiting) -> Json:
        nonlocal sent
        async with waiting("Asking the service for its tools..."):
            one = _named(tool, await talk.items("tools/list"))
        wanted = schema(one)
        given = whole if whole is not None else from_words(arguments, wanted)
        check(given, wanted)
        patience = waiting(f"{tool} was called; waiting for its answer. Ctrl-C cancels it.")
        if sys.stderr.isatty():  # where a bar says it
            patience = contextlib.nullcontext()
        async with patience:
            with meter(tool) as on_progress:
                sent = True
                return await talk.call(tool, given, on_progress)

    try:
        whole = from_text(text) if (text := _as_object(arguments)) is not None else None
        result = converse(config, as_json, verbose, once)
    except ArgumentsError as exc:
        fail(f"{exc}\nNothing was sent. See: catalyst-tunnel tools {tool}", 2)
    except KeyboardInterrupt:
        words = (
            f"Interrupted: {tool} was cancelled, but it may have run, or still run. Look at the "
            "service's state before you call again."
        )
        click.secho(words if sent else "Interrupted: nothing was called.", fg="yellow", err=True)
        raise
    if as_json:
        write_json(result)
    if result.get("isError") is True:
        fail(_told(result) or f"{tool} failed and gave no reason.", 1)
    if not as_json:
        _show_result(result)


def _as_object(arguments: tuple[str, ...]) -> bytes | None:
    """Return the JSON object that the arguments are, if they are one."""
    if len(arguments) != 1:
        return None
    if arguments[0] == "-":
        return sys.stdin.buffer.read(STDIN)
    return arguments[0].encode(errors="surrogateescape") if arguments[0][:1] == "{" else None


def _named(name: str, listed: list[Json]) -> Json:
    """Return the tool of that name; ends the command where there is none."""
    from .arguments import instead
    from .shown import printable

    known = {str(one.get("name")): one for one in listed}
    if name not in known:
        fail(printable(f"The service has no tool {name}. {instead(name, known)}"), 2)
    return known[name]


def _told(result: Json) -> str:
    """Return the text of a result."""
    from .shown import block, members, printable

    blocks = [block(one) for one in members(result, "content")]
    return printable("\n".join(text for text, _ in blocks if text is not None))


def _show_result(result: Json) -> None:
    """Print a result: its text as it is; on a terminal what is structured as a table."""
    from .shown import block, members, repeats

    structured = result.get("structuredContent")
    seated = sys.stdout.isatty()
    shown = False
    for one in members(result, "content"):
        text, instead = block(one)
        if text is None:
            click.secho(f"There is {instead} too: --json has it.", fg="yellow", err=True)
        elif not (seated and structured is not None and repeats(text, structured)):
            write(text if text.endswith("\n") else f"{text}\n")
            shown = True
    if structured is not None and seated:
        from . import tables

        show(tables.value(structured))
    elif structured is not None and not shown:
        write_json(structured)


COMMANDS: dict[str, click.Command] = {
    "tools": tools,
    "resources": resources,
    "read": read,
    "call": call,
}
