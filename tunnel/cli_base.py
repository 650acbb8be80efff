"""What every command has in common: where the settings are, and how it fails."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click


def fail(text: str, code: int = 1) -> NoReturn:
    """Say what is wrong on stderr and exit."""
    for line in text.splitlines():
        click.secho(line, fg="red", err=True)
    sys.exit(code)


def say(text: str) -> None:
    """Tell of progress, on stderr."""
    click.echo(text, err=True)


def config_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the option --config."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Settings file; its directory is the home.  [$CATALYST_HOME/config.toml, "
        "else ~/.catalyst-tunnel/config.toml]",
    )(function)


def file_of(config: Path | None) -> Path:
    """Return the settings file that --config, or the environment, names."""
    from .settings import home

    return (config or home() / "config.toml").absolute()
