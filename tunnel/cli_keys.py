"""The commands about this laptop's keys: `catalyst-tunnel keys ...`."""

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any, cast

import click

from .cli_base import config_option, fail, file_of, say

STATUS_CODES = """\b
Exit codes:
  0  every key in use is let in, and nothing ends soon
  1  failure, told on stderr
  2  usage or settings at fault
  4  the other end cannot be asked
  5  something wants attention: see the codes in brackets"""

ROTATE_CODES = """\b
Exit codes:
  0    the new keys are in use, and the old ones are refused
  1    it was taken back, or waits: `up` and the next `keys rotate` go on with it
  2    usage or settings at fault; nothing was begun
  130  interrupted; it goes on as after a crash"""

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def keys() -> None:
    """Get this laptop let in by the droplet, and look after its keys."""


@keys.command(
    epilog="\b\nExample, with the droplet's half in the middle:\n"
    "  catalyst-tunnel keys request > request\n"
    "  ssh root@droplet catalyst-gateway client add laptop --role operator \\\n"
    "      < request > answer\n"
    "  catalyst-tunnel keys accept answer"
)
@config_option
@click.option("--new", is_flag=True, help="Give up keys that wait for an answer; make new ones.")
@click.option("--new-ssh", is_flag=True, help="Ask for a new SSH key, too.")
def request(config: Path | None, new: bool, new_ssh: bool) -> None:
    """Make the keys of the https path, and print the request for the droplet.

    The private halves stay here. Keys that wait for an answer are kept and asked for again. The SSH
    key in use is asked for, too.
    """
    from keys.errors import KeyFileError

    from .custody.enrol import make_request
    from .custody.keyfiles import unlock_new
    from .settings import SettingsError, load_unchecked

    file = file_of(config)
    try:
        identity = unlock = None
        if file.exists():
            settings = load_unchecked(file)
            identity, unlock = settings.ssh.identity, unlock_new(settings)
        text = make_request(
            file.parent, fresh=new, new_ssh=new_ssh, identity=identity, unlock=unlock
        )
    except (KeyFileError, SettingsError) as exc:
        fail(str(exc), 2)
    except OSError as exc:
        fail(f"{exc.filename}: {exc.strerror}", 1)
    click.echo(text, nl=False)


@keys.command(epilog="\b\nExample:\n  catalyst-tunnel keys accept answer")
@click.argument("answer", type=click.File("rb"))
@config_option
def accept(config: Path | None, answer: Any) -> None:
    """Check the droplet's ANSWER, install it, and complete [https] in the settings."""
    from keys.enrolment import SIZE
    from keys.errors import KeyFileError

    from .custody.enrol import EnrolError, install
    from .settings import SettingsError

    file = file_of(config)
    try:
        enrolled = install(file, answer.read(SIZE + 1))
    except (EnrolError, KeyFileError, SettingsError, ValueError) as exc:
        fail(str(exc), 2)
    except OSError as exc:
        fail(f"{exc.filename}: {exc.strerror}", 1)
    click.echo(f"{enrolled.client} may come in as {enrolled.role}, by {enrolled.url}")
    click.echo(
        f"Settings: {file}\n\nThen: catalyst-tunnel up\n\n"
        "For tokens, roles and the audit log on the ssh path too, set in [ssh]:\n"
        f'  target = "{enrolled.ssh_target}"\n  gateway = true'
    )


def _settings(config: Path | None) -> Any:
    """Return the settings, whether or not the files that they name are all there."""
    from .settings import SettingsError, load_unchecked

    try:
        return load_unchecked(file_of(config))
    except SettingsError as exc:
        fail(str(exc), 2)


@keys.command(
    "list", epilog="\b\nExamples:\n  catalyst-tunnel keys list\n  catalyst-tunnel keys list --json"
)
@config_option
@_json
def list_(config: Path | None, as_json: bool) -> None:
    """Show the keys in use: what they are called, how old they are, when they end.

    Asks nobody; `keys status` asks the other end.
    """
    from .custody.keyfacts import key_facts

    facts = key_facts(_settings(config))
    if as_json:
        click.echo(json.dumps([one.to_json() for one in facts], indent=2))
        return
    for one in facts:
        _show(one, None)


def _show(one: Any, accepted: bool | None) -> None:
    """Print one key, and whether it is let in where that is known."""
    from .custody.journal import WHAT

    now = time.time()
    color = None if accepted is None and one.fault is None else ("green" if accepted else "red")
    click.secho(f"{WHAT[one.family]}", bold=True, nl=False)
    click.echo(f"  {one.file}")
    if one.fault is not None:
        click.secho(f"  {one.fault}", fg="red")
        return
    parts = [one.name or ""]
    if one.made is not None:
        parts.append(f"{max(0.0, now - one.made) / 86400:.0f} days old")
    if one.ends is not None:
        day = time.strftime("%Y-%m-%d", time.gmtime(one.ends))
        parts.append(f"ends {day}, in {(one.ends - now) / 86400:.0f} days")
    if accepted is not None:
        parts.append("let in" if accepted else "not let in")
    click.secho("  " + ", ".join(parts), fg=color)


@keys.command(
    epilog="\b\nExamples:\n  catalyst-tunnel keys rotate\n  catalyst-tunnel keys rotate cert\n"
    "  catalyst-tunnel keys rotate all --compromised\n"
    "  catalyst-tunnel keys rotate ssh --via me@droplet    # where no gateway is installed\n\n"
    + ROTATE_CODES
)
@click.argument(
    "what", type=click.Choice(["ssh", "token", "cert", "all"]), default="all", metavar="[WHAT]"
)
@config_option
@click.option("--compromised", is_flag=True, help="Wait for nothing that runs with the old keys.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and do none of it.")
@click.option(
    "--drain",
    type=click.FloatRange(0, 3600),
    metavar="SECONDS",
    help="How long what runs with the old keys is waited for at most.  [30]",
)
@click.option(
    "--via", metavar="USER@HOST", help="Your own login, to change authorized_keys over SFTP."
)
@click.option(
    "--authorized-keys", metavar="FILE", help="That file.  [~/.ssh/authorized_keys of the account]"
)
@_json
def rotate(
    what: str,
    config: Path | None,
    compromised: bool,
    dry_run: bool,
    drain: float | None,
    via: str | None,
    authorized_keys: str | None,
    as_json: bool,
) -> None:
    """Put new keys in the place of the old ones, while everything goes on running.

    WHAT is ssh, token, cert or all. The new keys are let in beside the old ones, tried, taken into
    use, and only then are the old ones refused. One that was interrupted is finished first.
    """
    from keys.pointer import Family
    from keys.rotation import describe

    from .custody.care import plan_only, rotate_now
    from .custody.journal import families_of
    from .custody.rotate import DRAIN

    settings = _settings(config)
    families = families_of(settings) if what == "all" else (cast(Family, what),)
    options: dict[str, Any] = {
        "compromised": compromised,
        "drain": DRAIN if drain is None else drain,
        "via": via,
        "authorized_keys": authorized_keys,
    }
    if dry_run:
        click.echo(describe(_run(plan_only(settings, families, **options))))
        return
    outcome = _run(rotate_now(settings, families, say, **options))
    good = outcome.step == "done"
    if as_json:
        click.echo(json.dumps(outcome.to_json(), indent=2))
    elif good:
        click.echo(f"rotated: {', '.join(outcome.families)}")
    for warning in outcome.warnings:
        click.secho(warning, fg="yellow", err=True)
    if not good:
        fail(f"Taken back, the old keys are in use: {outcome.reason}", 1)
    sys.exit(1 if outcome.warnings else 0)


def _run(work: Any) -> Any:
    """Run `work`; what goes wrong is told in words, with the exit code that is documented."""
    from keys.errors import KeyFileError

    from .custody.account import AccountError
    from .custody.journal import RotateError, StuckError
    from .custody.lock import LockedError
    from .custody.registrar import RefusedError
    from .problems import ProblemError

    try:
        return asyncio.run(work)
    except LockedError:
        fail("Another rotation runs here. Let it finish.", 1)
    except StuckError as exc:
        fail(
            f"{exc.step}: {exc}\nA way in stays open meanwhile. `up` goes on with it, and so does "
            "the next `keys rotate`.",
            1,
        )
    except (RotateError, ValueError) as exc:
        fail(str(exc), 2)
    except (ProblemError, RefusedError, AccountError, KeyFileError) as exc:
        fail(str(exc), 1)
    except OSError as exc:
        fail(f"{exc.filename}: {exc.strerror}", 1)


@keys.command(
    epilog="\b\nExamples:\n  catalyst-tunnel keys status\n"
    "  catalyst-tunnel keys status --json | jq .notices\n\n" + STATUS_CODES
)
@config_option
@_json
def status(config: Path | None, as_json: bool) -> None:
    """Ask the other end which keys it lets in, and tell what will end soon.

    A rotation that was interrupted is gone on with first.
    """
    from .custody.care import look

    seen = _run(look(_settings(config), say))
    if as_json:
        click.echo(json.dumps(seen.to_json(), indent=2))
        sys.exit(seen.exit_code)
    for one in seen.facts:
        _show(one, seen.accepts(one))
    if seen.accepted is not None:
        others = seen.others()
        click.echo(f"  let in as {seen.accepted.client}, {seen.accepted.role}")
        for name in others:
            click.echo(f"  also let in: {name}")
    if seen.problem is not None:
        click.secho(f"The other end cannot be asked. {seen.problem}", fg="red", err=True)
    for notice in seen.notices:
        click.secho(f"{notice} [{notice.code}]", fg="yellow", err=True)
    sys.exit(seen.exit_code)


@keys.command(
    epilog="\b\nExamples:\n  catalyst-tunnel keys revoke\n  catalyst-tunnel keys revoke --yes"
)
@config_option
@click.option("--yes", is_flag=True, help="Ask nothing.")
def revoke(config: Path | None, yes: bool) -> None:
    """Give up all access that this laptop has through the gateway, for good.

    Its keys are never let in again; to come back it has to be enrolled anew, with new keys.
    """
    from .custody.care import give_up

    settings = _settings(config)
    if not yes:
        click.echo("No key of this laptop will be let in again; a new enrolment is needed then.")
        click.confirm("Give up all access?", default=False, abort=True)
    for notice in _run(give_up(settings)):
        click.secho(notice, fg="yellow", err=True)
    click.echo("revoked: the other end lets none of these keys in")
