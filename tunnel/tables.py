"""Tables, pages and a progress bar for those who sit at a terminal."""

from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.json import JSON
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .arguments import Json
from .shown import line, marks, page, printable, summary, usage

_STYLES = {"read only": "green", "destructive": "red", "idempotent": "cyan"}


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _marks(tool: Json) -> Text:
    return Text(", ").join(Text(one, style=_STYLES[one]) for one in marks(tool))


def tools(listed: list[Json]) -> RenderableType:
    """Return a service's tools as a table."""
    table = _table("tool", "arguments", "what it does", "")
    for tool in listed:
        name = Text(line(tool.get("name")), style="bold")
        arguments = Text(usage(tool).replace("  ", "\n"))
        table.add_row(name, arguments, Text(summary(tool)), _marks(tool))
    return table


def tool(one: Json) -> RenderableType:
    """Return all of one tool."""
    parts = [Text(line(one.get("name")), style="bold")]
    for heading, text in page(one):
        shown = Text(text) if heading != "Marks" else _marks(one)
        parts.append(Text.assemble("\n", (heading, "dim"), "\n", shown) if heading else shown)
    return Group(*parts)


def resources(listed: list[Json]) -> RenderableType:
    """Return a service's resources, or templates of such, as a table."""
    table = _table("resource", "type", "what it is")
    for one in listed:
        uri = Text(line(one.get("uri") or one.get("uriTemplate")), style="bold")
        table.add_row(uri, Text(line(one.get("mimeType"))), Text(summary(one)))
    return table


def value(content: Any) -> RenderableType:
    """Return structured content: a table where it is flat enough for one, else as JSON."""
    if isinstance(content, dict) and content and all(map(_flat, content.values())):
        table = Table.grid(padding=(0, 2))
        for name, one in content.items():
            table.add_row(Text(line(name), style="dim"), _cell(one))
        return table
    rows = content.get("result") if isinstance(content, dict) and len(content) == 1 else content
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        names = list(dict.fromkeys(name for row in rows for name in row))
        if all(_flat(one) for row in rows for one in row.values()):
            table = _table(*(line(name) for name in names))
            for row in rows:
                table.add_row(*(_cell(row.get(name, "")) for name in names))
            return table
    return JSON.from_data(content, ensure_ascii=True)


def _flat(one: object) -> bool:
    return not isinstance(one, dict | list)


def _cell(one: object) -> Text:
    if isinstance(one, bool) or one is None:
        return Text({True: "true", False: "false", None: "null"}[one], style="italic")
    return Text(printable(str(one)))


class Bar:
    """How far a call is, on stderr, while it runs; gone when it has ended."""

    def __init__(self, name: str) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(line(name), total=None, told="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def __call__(self, done: float, total: float | None, words: str) -> None:
        """Show how far it is; see `terminal.OnProgress`."""
        told = line(words) or (f"{done:g}" if total is None else f"{done:g} of {total:g}")
        self._progress.update(self._task, completed=done, total=total, told=told)
