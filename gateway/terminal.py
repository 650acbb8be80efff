"""What the commands of the droplet's command line share: words, faults, the directory."""

import sys
from pathlib import Path
from typing import NoReturn

import click

from keys.errors import in_words

from .settings import Layout, Settings, SettingsError, directory


def fail(text: str, code: int = 1) -> NoReturn:
    """Say what is wrong on stderr and exit."""
    for line in text.splitlines():
        click.secho(line, fg="red", err=True)
    sys.exit(code)


def layout_of(given: Path | None) -> Layout:
    """Return where everything is."""
    return Layout(directory(given))


dir_option = click.option(
    "--dir",
    "given",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where everything of the gateway lives.  "
    "[$CATALYST_GATEWAY_DIR, else /etc/catalyst-gateway]",
)


def settings_of(layout: Layout) -> Settings:
    """Return the settings, or say what is wrong with them and exit."""
    from .settings import load

    try:
        return load(layout.settings)
    except SettingsError as exc:
        fail(str(exc), 2)
    except FileNotFoundError:
        fail(f"{layout.settings} does not exist. Run `catalyst-gateway init` first.", 2)
    except OSError as exc:
        fail(in_words(exc), 2)
