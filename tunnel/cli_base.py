"""What every command has in common: where the settings are, and how it fails."""

import importlib
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


class LateGroup(click.Group):
    """A group whose commands are, all or in part, in a module that is imported when asked for."""

    def __init__(self, *args: Any, module: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._module = module

    def _more(self) -> dict[str, click.Command]:
        found: dict[str, click.Command] = importlib.import_module(f"tunnel.{self._module}").COMMANDS
        return found

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all of them."""
        return sorted({*super().list_commands(ctx), *self._more()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name."""
        return super().get_command(ctx, cmd_name) or self._more().get(cmd_name)
