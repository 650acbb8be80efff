"""`catalyst-tunnel enroll`: a laptop let in, in one go."""

import asyncio
import platform
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .cli_base import config_option, fail, file_of, say

if TYPE_CHECKING:
    from .custody.join import Wanted


@click.command(
    epilog="\b\nExamples:\n  catalyst-tunnel enroll root@droplet.example.com\n"
    "  catalyst-tunnel enroll me@droplet --name laptop --role observer --yes\n\n"
    "Nothing but your own SSH access to the droplet is needed: your agent and ~/.ssh/config are "
    "used. It can be run again without harm."
)
@click.argument("via", metavar="USER@HOST")
@config_option
@click.option("--name", help="What this laptop is called there.  [its own name]")
@click.option("--role", type=click.Choice(["operator", "observer"]), default="operator")
@click.option("--account", metavar="USER", help="Account of the tunnels.  [catalyst, or yours]")
@click.option("--target", default="127.0.0.1:5000", show_default=True, help="The service there.")
@click.option("--listen", default="127.0.0.1:5000", show_default=True, help="The address here.")
@click.option("--replace", is_flag=True, help="Take the place of a client of that name.")
@click.option(
    "--authorized-keys", metavar="FILE", help="That file.  [~/.ssh/authorized_keys of the account]"
)
@click.option("--yes", is_flag=True, help="Ask nothing.")
def enroll(
    via: str,
    config: Path | None,
    name: str | None,
    role: str,
    account: str | None,
    target: str,
    listen: str,
    replace: bool,
    authorized_keys: str | None,
    yes: bool,
) -> None:
    """Let this laptop in: settings, keys, host key, and its entry on the droplet.

    Shows what would be changed, asks, and in the end comes in by each path.
    """
    from keys.errors import KeyFileError

    from .custody.account import AccountError, parse_via
    from .custody.enrol import EnrolError
    from .custody.join import JoinError, Wanted
    from .hostkey import HostKeyError
    from .problems import ProblemError
    from .settings import SettingsError, parse_address

    called = name or re.sub(r"[^a-z0-9._-]", "-", (platform.node() or "laptop").lower())[:63]
    try:
        parse_via(via)
        wanted = Wanted(
            file_of(config),
            called,
            role,
            account,
            parse_address(target),
            parse_address(listen),
            replace,
        )
        asyncio.run(_enroll(via, wanted, authorized_keys, yes))
    except (JoinError, AccountError, ProblemError, HostKeyError, EnrolError, KeyFileError) as exc:
        fail(f"{exc}\nWhat is done stays; run it again.", 1)
    except (SettingsError, ValueError) as exc:
        fail(str(exc), 2)
    except OSError as exc:
        fail(f"{exc.filename}: {exc.strerror}", 1)
    click.echo("\nThen: catalyst-tunnel up")


async def _enroll(via: str, wanted: "Wanted", authorized_keys: str | None, yes: bool) -> None:
    from .custody.account import account
    from .custody.join import carry_out, plan, survey
    from .settings import load_unchecked

    settings = load_unchecked(wanted.file) if wanted.file.exists() else None
    async with account(via, settings) as login:
        found = await survey(login, wanted)
        for line in plan(wanted, found, login):
            click.echo(line)
        if not yes:
            click.confirm("Do that?", default=False, abort=True)
        await carry_out(login, wanted, found, say, authorized_keys)
