"""The start of a bundle: what its settings page says becomes `init`, where needed, and `stdio`.

stdout belongs to MCP, so what `init` says goes to stderr, which Claude Desktop keeps as this
server's log.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .cli import cli
from .cli import main as run
from .settings import SettingsError, home, load_unchecked


@dataclass(frozen=True, slots=True)
class Given:
    """What the settings page says; empty fields have their defaults."""

    config: Path
    host: str
    port: str
    user: str
    fingerprint: str

    @classmethod
    def read(cls, arguments: Sequence[str]) -> "Given":
        """Return what the arguments say that the manifest makes of the settings page."""
        parser = argparse.ArgumentParser(allow_abbrev=False)
        for name in ("config", "ssh-host", "ssh-port", "ssh-user", "fingerprint"):
            parser.add_argument(f"--{name}", default="", type=_given)
        said = parser.parse_args(arguments)
        config = Path(said.config).expanduser() if said.config else home() / "config.toml"
        return cls(config, said.ssh_host, said.ssh_port, said.ssh_user, said.fingerprint)


def _given(text: str) -> str:
    """Return a field's text; what a client has not filled in is left in the manifest's words."""
    return "" if text.startswith("${") else text.strip()


def init_arguments(given: Given) -> list[str] | None:
    """Return the arguments of the `init` that is missing, or None if nothing is, or can be done.

    A start that was killed in the middle of it is completed by the next.
    """
    arguments = ["init", "--yes", f"--config={given.config}"]
    if given.fingerprint:
        arguments.append(f"--host-key-fingerprint={given.fingerprint}")
    if not given.config.exists():
        if not given.host:
            return None
        arguments.append(f"--ssh-host={given.host}")
        if given.port:
            arguments.append(f"--ssh-port={given.port}")
        if given.user:
            arguments.append(f"--ssh-user={given.user}")
        return arguments
    try:
        ssh = load_unchecked(given.config).ssh
    except (SettingsError, OSError):
        return None  # `stdio` says what is wrong with them
    return arguments if given.fingerprint and not ssh.known_hosts.exists() else None


def main() -> None:
    """Prepare what is missing, then be the bridge."""
    given = Given.read(sys.argv[1:])
    arguments = init_arguments(given)
    if arguments is not None:
        # Whatever comes of it, the bridge starts: it answers in words where `init` has failed.
        with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(SystemExit):
            cli(arguments, prog_name="catalyst-tunnel")
    sys.argv[1:] = ["stdio", "--config", str(given.config)]
    run()
