"""The command line; with its groups (`cli_keys`), the only place that prints and exits.

Imports are late on purpose: `status` and `--help` must not pay for asyncssh.
"""

import asyncio
import functools
import getpass
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from . import __version__
from .cli_base import LateGroup, config_option, fail, file_of
from .cli_enroll import enroll
from .cli_keys import keys

EXIT_CODES = """\b
Exit codes:
  0    success; for `status`: a request goes through
  1    failure, or the service said no; told on stderr
  2    usage, arguments or settings at fault, or an address is taken
  3    no tunnel is running
  4    no path is up, or nothing was delivered: it is safe to call again
  5    outcome unknown: it may have run, or not
  130  interrupted before it was done; for `up`, by a second Ctrl-C"""


@click.group(
    cls=LateGroup,
    module="cli_terminal",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nFirst time:\n  catalyst-tunnel init\n  catalyst-tunnel up\n\n" + EXIT_CODES,
)
@click.version_option(__version__, prog_name="catalyst-tunnel")
def cli() -> None:
    """Reach an MCP service on a remote machine as if it were local."""


@cli.command(
    epilog="\b\nExamples:\n  catalyst-tunnel up\n  catalyst-tunnel up --path https\n"
    "  catalyst-tunnel up --log-format json"
)
@config_option
@click.option(
    "--path",
    "road",
    type=click.Choice(["auto", "ssh", "https"]),
    default="auto",
    help="Use one path only.  [auto: those in the settings, the first that is good]",
)
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text")
@click.option("-v", "--verbose", is_flag=True, help="Log every request.")
def up(config: Path | None, road: str, log_format: str, verbose: bool) -> None:
    """Bring the tunnel up and keep it up, until Ctrl-C.

    A first connection that fails is tried again, it does not end the command.
    """
    from . import log
    from .settings import SettingsError, load

    file = file_of(config)
    try:
        settings = load(file, None if road == "auto" else road)
    except SettingsError as exc:
        fail(str(exc), 2)
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    beside: Callable[[Any], Any] = _nothing
    if log_format == "text" and sys.stderr.isatty():
        from rich.console import Console

        from .view import TerminalView

        view = TerminalView(Console(stderr=True, highlight=False))
        handler, beside = view, view.show
    log.configure([handler], "json" if log_format == "json" else "text", verbose=verbose)

    from .control import ControlError
    from .sockets import PortTakenError
    from .up import run

    ready = functools.partial(
        logging.getLogger("tunnel").info,
        "listening",
        extra={"address": f"http://{settings.listen}", "target": settings.service},
    )
    try:
        run(settings, file.parent, beside, ready)
    except (PortTakenError, ControlError) as exc:
        fail(str(exc), 2)
    except OSError as exc:
        fail(f"{exc.filename or file.parent}: {exc.strerror}", 1)


async def _nothing(_: object) -> None:
    """Show nothing beside the log."""


def _ask(config: Path | None, command: str) -> dict[str, Any]:
    from .control import ControlError, NotRunningError, ask

    file = file_of(config)
    try:
        return asyncio.run(ask(file.parent, command))
    except NotRunningError:
        fail("No tunnel is running here. Start it with: catalyst-tunnel up", 3)
    except ControlError as exc:
        fail(str(exc), 1)


@cli.command(
    epilog="\b\nExamples:\n  catalyst-tunnel status\n"
    "  catalyst-tunnel status --json | jq .paths\n\n" + EXIT_CODES
)
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print the whole snapshot as JSON.")
def status(config: Path | None, as_json: bool) -> None:
    """Send a request to the service and back, and tell what came of it."""
    from .control import ControlError, NotRunningError, ask
    from .status import EXIT_NO_PATH, EXIT_NOT_RUNNING, EXIT_UP, Snapshot

    if as_json:
        try:
            data = asyncio.run(ask(file_of(config).parent, "status"))
        except NotRunningError:
            click.echo(json.dumps({"up": False, "running": False}))
            sys.exit(EXIT_NOT_RUNNING)
        except ControlError as exc:
            fail(str(exc), 1)
        click.echo(json.dumps(data, indent=2))
        sys.exit(EXIT_UP if data.get("up") else EXIT_NO_PATH)
    try:
        snapshot = Snapshot.from_json(_ask(config, "status"))
    except (TypeError, KeyError):
        fail("The running tunnel is of another version. Stop it and start it again.", 1)
    from .view import describe, duration

    now = time.time()
    for path in snapshot.paths:
        click.secho("● ", fg="green" if path.answered else "red", nl=False)
        mark = ", in use" if path.current and len(snapshot.paths) > 1 else ""
        click.echo(describe(path, now) + mark)
        if path.problem is not None:
            click.echo(f"  {path.problem['message']} {path.problem['remedy']}")
            click.echo(f"  [{path.problem['code']}]")
    click.echo(f"  listening on {', '.join(snapshot.listen)} for {snapshot.target}")
    for forward in snapshot.forwards:
        listen = ", ".join(forward.listen)
        click.echo(f"  {forward.name}: {listen} to {forward.target}, {forward.open} open")
    click.echo(
        f"  {snapshot.requests} requests ({snapshot.running} running, {snapshot.held} waiting), "
        f"up for {duration(now - snapshot.started)}, pid {snapshot.pid}"
    )
    for code, count in sorted(snapshot.problems.items()):
        click.echo(f"  {count} times {code}")
    for notice in snapshot.notices:
        text = f"  {notice['message']} {notice['remedy']} [{notice['code']}]"
        click.secho(text, fg="yellow")
    sys.exit(snapshot.exit_code)


@cli.command()
@config_option
def down(config: Path | None) -> None:
    """Stop the running tunnel; requests that run are given a few seconds."""
    from .control import control_file

    _ask(config, "down")
    file = control_file(file_of(config).parent)
    deadline = time.monotonic() + 10.0
    while file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if file.exists():
        fail("The tunnel was told to stop but is still there. Look at its log.", 1)
    click.echo("stopped")


@cli.command(
    epilog="\b\nExamples:\n  catalyst-tunnel init\n"
    "  catalyst-tunnel init --ssh-host droplet.example.com --ssh-user catalyst --yes \\\n"
    "      --host-key-fingerprint SHA256:...\n"
    "  catalyst-tunnel init --show-key\n"
)
@config_option
@click.option("--ssh-host", metavar="HOST", help="Name or address of the droplet.")
@click.option("--ssh-port", type=click.IntRange(1, 65535), default=22, show_default=True)
@click.option("--ssh-user", metavar="USER", help="Account on the droplet.  [your own name]")
@click.option(
    "--target",
    default="127.0.0.1:5000",
    show_default=True,
    help="The service, as the droplet sees it.",
)
@click.option(
    "--listen",
    default="127.0.0.1:5000",
    show_default=True,
    help="The address here that clients use.",
)
@click.option(
    "--host-key-fingerprint",
    metavar="SHA256:...",
    help="Pin the host key that has this fingerprint, without asking.",
)
@click.option("--yes", is_flag=True, help="Ask nothing; what is not given has its default.")
@click.option("--show-key", is_flag=True, help="Only print the authorized_keys line.")
def init(
    config: Path | None,
    ssh_host: str | None,
    ssh_port: int,
    ssh_user: str | None,
    target: str,
    listen: str,
    host_key_fingerprint: str | None,
    yes: bool,
    show_key: bool,
) -> None:
    """Write the settings, make a key, pin the host key, and print the line for the droplet.

    What exists already is kept: run it again to see the line or to pin a host key.
    """
    from keys.errors import KeyFileError

    from .custody.keyfiles import unlock_new
    from .initialise import KEY, Answers, ensure_key, line_for, write_settings
    from .settings import SettingsError, load_unchecked, parse_address

    file = file_of(config)
    try:
        if file.exists():
            if ssh_host is not None:
                fail(f"{file} exists already and is kept: edit it, or remove it first.", 2)
        elif show_key:
            fail(f"{file} does not exist yet. Run `catalyst-tunnel init` first.", 2)
        else:
            if not yes:
                ssh_host = ssh_host or click.prompt("Droplet (name or address)")
                ssh_port = click.prompt("Port of its sshd", ssh_port, type=click.IntRange(1, 65535))
                ssh_user = ssh_user or click.prompt("Account there", getpass.getuser())
                target = click.prompt("Service, as the droplet sees it", target)
                listen = click.prompt("Address here", listen)
            if not ssh_host:
                fail("--yes needs --ssh-host: there is no default for it.", 2)
            answers = Answers(
                ssh_host,
                ssh_port,
                ssh_user or getpass.getuser(),
                parse_address(target),
                parse_address(listen),
            )
            write_settings(file, answers)
            click.echo(f"Settings: {file}")
        settings = load_unchecked(file)
        identity = settings.ssh.identity or file.parent / KEY
        public, made = ensure_key(identity, unlock_new(settings))
        if made:
            click.echo(f"Key:      {identity} (made now; the private half stays on this machine)")
        if not show_key:
            _pin(settings, host_key_fingerprint, yes)
            where = f"~{settings.ssh.user or ''}/.ssh/authorized_keys"
            click.echo(f"\nOn the droplet, append this line to {where}:\n")
        click.echo(line_for(settings, public))
        if not show_key:
            click.echo("\nThen: catalyst-tunnel up")
    except (SettingsError, KeyFileError) as exc:
        fail(str(exc), 2)
    except ValueError as exc:
        fail(f"--target and --listen: {exc}", 2)
    except OSError as exc:
        fail(f"{exc.filename or file}: {exc.strerror}", 1)


def _pin(settings: Any, expected: str | None, yes: bool) -> None:
    """Show the droplet's host key and pin it once it is confirmed; never silently."""
    from keys.sshkey import fingerprint

    from .hostkey import HostKeyError, fetch, pin, pinned
    from .settings import Address

    ssh = settings.ssh
    where = Address(ssh.host, ssh.port or 22)
    try:
        known = pinned(ssh.known_hosts, where)
        if known and expected is None:
            click.echo(f"Host key: {fingerprint(known[0])} (pinned in {ssh.known_hosts})")
            return
        public = asyncio.run(fetch(where, expected))
    except HostKeyError as exc:
        fail(f"{exc}\nThe host key is not pinned yet: run `catalyst-tunnel init` again.", 1)
    shown = fingerprint(public)
    if known and public not in known:
        fail(
            f"{where} shows {shown}, but {ssh.known_hosts} pins {fingerprint(known[0])}.\n"
            "Somebody may be impersonating it. If its key was replaced on purpose, remove the "
            "old line from that file first.",
            1,
        )
    if expected is None:
        click.echo(
            f"\nThe host key of {where} is {public.split()[0]}\n  {shown}\n"
            "Compare it with what the droplet itself says:\n"
            "  ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub\n"
        )
        if yes:
            fail("With --yes, pin it with --host-key-fingerprint: it is never trusted unseen.", 2)
        if not click.confirm("Is it the same?", default=False):
            fail("Not pinned. `up` will not connect until it is.", 1)
    if public not in known:
        pin(ssh.known_hosts, where, public)
    click.echo(f"Host key: {shown} (pinned in {ssh.known_hosts})")


cli.add_command(enroll)
cli.add_command(keys)


@cli.command(
    epilog="\b\nExample, by hand:\n"
    """  echo '{"jsonrpc":"2.0","id":1,"method":"tools/list"}' | catalyst-tunnel stdio\n"""
)
@config_option
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def stdio(config: Path | None, verbose: bool) -> None:
    """Be an MCP server on stdin and stdout: what Claude Desktop launches.

    Requests go through the tunnel that runs, or by paths of its own while none does. The log is
    in logs/ beside the settings, and on stderr.
    """
    from .bridge.run import run

    run(file_of(config), verbose=verbose)


@cli.group(cls=LateGroup, module="cli_claude")
def claude() -> None:
    """Let Claude Desktop and other MCP clients start the bridge."""


@cli.command(epilog="\b\nExamples:\n  catalyst-tunnel demo\n  catalyst-tunnel demo --port 5050")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=5000,
    show_default=True,
    help="Local port; 0 takes a free one.",
)
def demo(port: int) -> None:
    """Try everything on this machine: an embedded droplet, its service, and a tunnel to it."""
    from .demo.parts import DemoError
    from .demo.run import run

    try:
        sys.exit(run(port, click.echo))
    except DemoError as exc:
        fail(str(exc), exc.code)


@cli.command(
    epilog='\b\nExamples:\n  eval "$(catalyst-tunnel completion bash)"\n'
    "  catalyst-tunnel completion fish > ~/.config/fish/completions/catalyst-tunnel.fish"
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for a shell."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        fail(f"There is no completion for {shell}.", 2)
    click.echo(kind(cli, {}, "catalyst-tunnel", "_CATALYST_TUNNEL_COMPLETE").source())


def main() -> None:
    """Run the command line; neither an interrupt nor a full disk ends it with a traceback."""
    code = 130
    try:
        cli(prog_name="catalyst-tunnel", standalone_mode=False)
        sys.stdout.flush()
        return
    except click.ClickException as exc:
        exc.show()
        code = exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        pass
    except OSError as exc:
        click.secho(exc.strerror or "input or output failed", fg="red", err=True)
        code = 1
    os._exit(code)  # not by way of a flush that would fail once more
