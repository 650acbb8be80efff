"""The commands about keys: the registrar, what sshd asks, and the client CA."""

import os
import shlex
import sys
from pathlib import Path

import click

from keys.errors import KeyFileError, in_words

from .settings import Layout
from .terminal import dir_option, fail, layout_of, settings_of


@click.command(epilog="\b\nExample:\n  catalyst-gateway registrar --dir /etc/catalyst-gateway")
@dir_option
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def registrar(given: Path | None, verbose: bool) -> None:
    """Change keys as clients ask, until SIGTERM; as root, beside `serve`.

    It alone may use the client CA's key, and ends the ssh sessions of keys that are retired.
    """
    from .registrar import RegistrarError, run
    from .serve import configure_log

    configure_log(verbose)
    try:
        run(layout_of(given), lambda where: click.echo(f"registrar ready on {where}"))
    except RegistrarError as exc:
        fail(str(exc), 2)


_targets = click.option(
    "--target", "targets", multiple=True, metavar="HOST:PORT", help="What may be reached."
)


@click.command(
    epilog="\b\nExample, as `catalyst-gateway sshd-config` writes it:\n"
    "  AuthorizedKeysCommand /opt/catalyst/bin/catalyst-gateway authorized-keys \\\n"
    "      --dir /etc/catalyst-gateway --target 127.0.0.1:5001 %t %k"
)
@_targets
@click.argument("kind")
@click.argument("blob")
@dir_option
def authorized_keys(given: Path | None, targets: tuple[str, ...], kind: str, blob: str) -> None:
    """Tell sshd, which calls this, whether the registry lets a key in, and for what."""
    from .authorized import answer, read_target

    try:
        if not targets:
            raise ValueError("--target is missing: nothing could be reached")
        checked = [read_target(target) for target in targets]
        line = answer(layout_of(given), checked, kind, blob, os.getppid())
    except (OSError, ValueError) as exc:
        fail(in_words(exc), 1)
    click.echo(line)


@click.command(
    epilog="\b\nExample, as root on the droplet:\n"
    "  catalyst-gateway sshd-config --user catalyst \\\n"
    "      > /etc/ssh/sshd_config.d/60-catalyst.conf\n"
    "  sshd -t && systemctl reload ssh"
)
@click.option("--user", help="Account of the tunnels.  [ssh_user in the settings, else catalyst]")
@_targets
@click.option(
    "--keys",
    "source",
    type=click.Choice(["registry", "file"]),
    help="Where keys are looked up: in DIR/registry.json, or in authorized_keys.  "
    "[registry, where there is one]",
)
@dir_option
def sshd_config(
    given: Path | None, user: str | None, targets: tuple[str, ...], source: str | None
) -> None:
    """Print the sshd rules that let an account forward to the service, and nothing else.

    With a registry, its keys and no others come in, and only as far as the gateway. Without one,
    authorized_keys decides, and the service itself (127.0.0.1:5000) is what may be reached.
    """
    from .sshd import match_block

    layout = layout_of(given)
    try:
        if source == "file" or (source is None and not layout.registry.exists()):
            reached = list(targets) or ["127.0.0.1:5000"]
            click.echo(match_block(user or "catalyst", reached), nl=False)
        else:
            _registry_rules(layout, user, list(targets))
    except ValueError as exc:
        fail(str(exc), 2)


def _registry_rules(layout: Layout, user: str | None, targets: list[str]) -> None:
    from .init import USER, program
    from .sshd import Lookup, command_fault, match_block

    if sys.platform == "win32":
        fail("The gateway does not run on Windows.")
    settings = settings_of(layout)
    if user not in (None, settings.ssh_user):
        fail(f'{layout.settings} says ssh_user = "{settings.ssh_user}": change it there first.', 2)
    try:
        owner = layout.sessions.owner()
    except (OSError, KeyError):
        fail(f"{layout.sessions} is not there, or nobody's. Run `catalyst-gateway init`.", 2)
    lookup = Lookup(program(), layout.directory, owner)
    click.echo(match_block(settings.ssh_user, targets or [settings.ssh_target], lookup), nl=False)
    if owner == "root":
        click.secho(f"Root will be asked. Better: chown {USER}: {layout.sessions}", err=True)
    if fault := command_fault(lookup.program[0]):
        click.secho(fault, fg="red", err=True)


@click.group()
def ca() -> None:
    """Look after the client CA."""


@ca.command(
    epilog="\b\nExamples, as root on the droplet:\n  catalyst-gateway ca rotate\n"
    "  catalyst-gateway ca rotate --finish\n"
    "  catalyst-gateway ca rotate --no-reload    # NGINX is told by somebody else"
)
@click.option("--finish", is_flag=True, help="Trust the new CA alone from now on.")
@click.option("--force", is_flag=True, help="Finish though clients would be locked out.")
@click.option(
    "--nginx", "command", default="nginx", show_default=True, help="How NGINX is called here."
)
@click.option("--no-reload", is_flag=True, help="Neither test nor reload NGINX.")
@dir_option
def rotate(given: Path | None, finish: bool, force: bool, command: str, no_reload: bool) -> None:
    """Put a new client CA in place of the old; both are trusted until --finish.

    May be run again whenever it was interrupted.
    """
    from . import authority
    from .changing import ConflictError
    from .frontdoor import Elsewhere, Nginx

    if force and not finish:
        fail("--force goes with --finish.", 2)
    layout = layout_of(given)
    settings = settings_of(layout)
    try:
        door: authority.FrontDoor
        if no_reload:
            door = Elsewhere()
        else:
            door = Nginx(_called(command), settings.domain, settings.https_port)
        if finish:
            authority.finish(layout, door, click.echo, force=force)
        else:
            name = f"catalyst clients of {settings.domain}"
            authority.rotate(layout, name, door, click.echo)
    except (authority.AuthorityError, ConflictError, KeyFileError, ValueError) as exc:
        fail(str(exc))
    except OSError as exc:
        fail(in_words(exc))
    if no_reload:
        click.echo("Now: nginx -t && systemctl reload nginx")
    if not finish:
        click.echo("Clients: catalyst-tunnel keys rotate cert. Then: ca rotate --finish")


def _called(command: str) -> list[str]:
    from .site import find_nginx

    parts = shlex.split(command)
    if not parts:
        fail("--nginx must say how NGINX is called.", 2)
    found = find_nginx() if parts[0] == "nginx" else None
    return [str(found), *parts[1:]] if found else parts


KEYS = (registrar, authorized_keys, sshd_config, ca)
