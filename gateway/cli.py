"""The droplet's command line."""

import sys

import click

from . import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="catalyst-gateway")
def cli() -> None:
    """Prepare a droplet for tunnels."""


@cli.command(
    epilog="\b\nExample, as root on the droplet:\n"
    "  catalyst-gateway sshd-config --user catalyst \\\n"
    "      > /etc/ssh/sshd_config.d/60-catalyst.conf\n"
    "  sshd -t && systemctl reload ssh"
)
@click.option("--user", default="catalyst", show_default=True, help="Account of the tunnels.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    default=["127.0.0.1:5000"],
    show_default=True,
    help="What may be reached; may be repeated.",
)
def sshd_config(user: str, targets: tuple[str, ...]) -> None:
    """Print the sshd rules that let an account forward to the service, and nothing else."""
    from .sshd import match_block

    try:
        click.echo(match_block(user, list(targets)), nl=False)
    except ValueError as exc:
        click.secho(str(exc), fg="red", err=True)
        sys.exit(2)


def main() -> None:
    """Run the command line."""
    cli(prog_name="catalyst-gateway")
