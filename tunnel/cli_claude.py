"""`catalyst-tunnel claude`: the bridge made known to the programs that start it."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .claude import (
    NAME,
    Change,
    ClientFileError,
    carry_out,
    find,
    plan_install,
    plan_remove,
)
from .cli_base import config_option, fail, file_of
from .clients import CLIENTS, PROJECT, Machine, Place, candidates, places, redirected


def _where_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--dry-run", is_flag=True, help="Show the change and make none."),
        click.option("--name", default=NAME, show_default=True, help="Name of the entry."),
        click.option(
            "--config-path",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="The client's file, where it is another than the usual ones.",
        ),
        click.option(
            "--scope",
            type=click.Choice(["user", "project"]),
            default="user",
            show_default=True,
            help="For you everywhere, or for the project in this directory.",
        ),
        click.option(
            "--client", type=click.Choice(list(CLIENTS)), default="desktop", show_default=True
        ),
    ):
        function = option(function)
    return function


@click.command(
    epilog="\b\nExamples:\n  catalyst-tunnel claude install\n"
    "  catalyst-tunnel claude install --dry-run\n"
    "  catalyst-tunnel claude install --client vscode --scope project"
)
@_where_options
@config_option
def install(
    client: str, scope: str, config_path: Path | None, name: str, dry_run: bool, config: Path | None
) -> None:
    """Add the bridge to a client's MCP servers; everything else in its file stays.

    What was there is kept beside the file as FILE.bak-1, -2 and so on. A second run changes
    nothing.
    """
    file = file_of(config)
    changed = _change(
        _places(client, scope, config_path),
        lambda place: plan_install(place, name, file),
        ("added", "is there already"),
        name,
        dry_run,
    )
    if not file.exists():
        click.secho(f"{file} does not exist yet: catalyst-tunnel init", fg="yellow", err=True)
    if changed:
        click.echo(f"\n{CLIENTS[client].again}")


@click.command(epilog="\b\nExample:\n  catalyst-tunnel claude remove --client cursor")
@_where_options
def remove(client: str, scope: str, config_path: Path | None, name: str, dry_run: bool) -> None:
    """Take the bridge away from a client's MCP servers, and nothing else."""
    changed = _change(
        _places(client, scope, config_path),
        lambda place: plan_remove(place, name),
        ("removed", "is not there"),
        name,
        dry_run,
    )
    if changed:
        click.echo(f"\n{CLIENTS[client].again}")


def _places(client: str, scope: str, file: Path | None) -> list[Place]:
    """Return where to write; ends the command where there is no such place."""
    if file is not None:
        return [Place(CLIENTS[client], scope, file.absolute())]
    if scope == "project" and client not in PROJECT:
        fail(f"{CLIENTS[client].name} knows no projects: leave --scope project away.", 2)
    machine = Machine.here()
    found = places(client, scope, machine)
    if not found:
        looked = "\n".join(f"  {mark}" for mark, _ in candidates(client, machine))
        fail(
            f"{CLIENTS[client].name} has never run here: there is no\n{looked}\n"
            "Start it once, or name its file with --config-path.",
            1,
        )
    if any(redirected(place.file, machine) for place in found):
        fail(
            f"This Python is from the Microsoft Store, and Windows would hide from "
            f"{CLIENTS[client].name} what it writes.\nInstall catalyst-tunnel with Python from "
            "python.org (`py -3.11`), and run this again.",
            1,
        )
    return found


def _change(
    found: list[Place],
    plan: Callable[[Place], Change],
    words: tuple[str, str],
    name: str,
    dry_run: bool,
) -> bool:
    """Make the same change in each place; return whether there was one to make.

    A fault in one place does not spare the others; it ends the command after them.
    """
    from .shown import printable

    faults: list[tuple[str, int]] = []
    changed = False
    for place in found:
        try:
            change = plan(place)
            if not change.needed:
                click.echo(f"{place.file}: {name} {words[1]}")
            elif dry_run:
                click.echo(printable(change.diff()), nl=False)
            else:
                copy = carry_out(change)
                changed = True
                kept = f" (what was there: {copy.name})" if copy else ""
                click.echo(f"{change.target}: {name} {words[0]}{kept}")
        except ClientFileError as exc:
            faults.append((str(exc), 2))
        except OSError as exc:
            faults.append((f"{exc.filename or place.file}: {exc.strerror}", 1))
    if faults:
        fail("\n".join(text for text, _ in faults), max(code for _, code in faults))
    return changed


@click.command(
    epilog="\b\nExamples:\n  catalyst-tunnel claude show\n  catalyst-tunnel claude show --json\n\n"
    "\b\nExit codes:\n  0  it is configured somewhere, and what is configured exists\n"
    "  1  it is not"
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def show(as_json: bool) -> None:
    """Tell which clients have the bridge, and whether what they would start exists."""
    machine = Machine.here()
    report: list[dict[str, Any]] = []
    for key, client in CLIENTS.items():
        for scope in ("user", "project") if key in PROJECT else ("user",):
            for place in places(key, scope, machine):
                line: dict[str, Any] = {"client": key, "scope": scope, "file": str(place.file)}
                try:
                    entries, fault = find(place), None
                except ClientFileError as exc:
                    entries, fault = [], str(exc)
                except OSError as exc:
                    entries, fault = [], f"{place.file}: {exc.strerror}"
                shown = [dataclasses.asdict(entry) for entry in entries]
                report.append({**line, "entries": shown, "fault": fault})
                if not as_json and (entries or fault or scope == "user"):
                    _tell(f"{client.name} ({scope}): {place.file}", shown, fault)
    if as_json:
        click.echo(json.dumps(report, indent=2))
    elif not report:
        click.echo("No client that is known has ever run here.")
    all_of_them = [entry for line in report for entry in line["entries"]]
    good = all(entry["command_exists"] and entry["config_exists"] for entry in all_of_them)
    sys.exit(0 if all_of_them and good and not any(line["fault"] for line in report) else 1)


def _tell(title: str, entries: list[dict[str, Any]], fault: str | None) -> None:
    """Print what is in one file, which may be somebody else's project."""
    from .shown import printable

    click.echo(title)
    if fault:
        click.secho(f"  {printable(fault)}", fg="red")
    elif not entries:
        click.echo("  not there")
    for entry in entries:
        said = f"{entry['name']}: {entry['command']} {' '.join(entry['args'])}"
        click.echo(f"  {printable(said)}")
        for what in ("command", "config"):
            if not entry[f"{what}_exists"]:
                click.secho(f"    {printable(entry[what])} does not exist", fg="red")


@click.command(epilog="\b\nExample:\n  catalyst-tunnel claude bundle -o catalyst-tunnel.mcpb")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where to write it.  [catalyst-tunnel-VERSION.mcpb]",
)
def bundle(output: Path | None) -> None:
    """Write a bundle that Claude Desktop installs on a double click.

    It holds this program and no setting, key or address: those are asked for when it is installed.
    """
    from keys.files import write_whole

    from .bundle import BundleError, build, file_name

    try:
        path = (output or Path(file_name())).absolute()
        content = build()
        write_whole(path, content, replace=True, mode=0o644)
    except BundleError as exc:
        fail(str(exc), 1)
    except OSError as exc:
        fail(f"{exc.filename or output}: {exc.strerror}", 1)
    click.echo(f"{path} ({len(content) / 1024:.0f} KiB)")


COMMANDS: dict[str, click.Command] = {
    "install": install,
    "remove": remove,
    "show": show,
    "bundle": bundle,
}
