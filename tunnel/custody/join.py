"""`enroll`: everything that lets a laptop in, in one go, by a login that its owner has already.

First it looks and says what it would change; what is done already is left as it is, so it can be
run again whenever it was interrupted. That the laptop comes in is seen in the end, by coming in.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from keys import sshkey

from ..hostkey import pin, pinned
from ..initialise import KEY, Answers, ensure_key, line_for, write_settings
from ..problems import ProblemError
from ..settings import Address, Settings, load, load_unchecked
from ..tokens import Clock
from . import authorized
from .account import Account, AccountError
from .enrol import install, make_request
from .keyfacts import key_facts
from .keyfiles import unlock_new
from .wayin import way_in

GATEWAY = ("catalyst-gateway", "/opt/catalyst/bin/catalyst-gateway")  # as README installs it
DIRECTORY = "/etc/catalyst-gateway"
ACCOUNT = "catalyst"


class JoinError(Exception):
    """It cannot go on; says why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for."""

    file: Path
    name: str
    role: str
    account: str | None
    target: Address
    listen: Address
    replace: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What is over there."""

    account: str
    """That tunnels come in by."""
    gateway: tuple[str, ...] | None
    """How `catalyst-gateway` is called, where it is set up."""
    listed: bool
    """Whether a client of our name is let in."""
    enrolled: bool
    """Whether it is this laptop, with the keys that are here."""


async def survey(login: Account, wanted: Wanted) -> Found:
    """Look at the droplet; change nothing.

    Raises:
        AccountError: it cannot be looked at.
        JoinError: there is a gateway that this login may not ask.
    """
    account = wanted.account
    if account is None:
        known = await login.run("getent", "passwd", ACCOUNT)
        account = ACCOUNT if known.code == 0 else login.user
    for called in (*((one,) for one in GATEWAY), *(("sudo", "-n", one) for one in GATEWAY)):
        done = await login.run(*called, "client", "list", "--json")
        if done.code == 0:
            client = _client(done.said, wanted.name)
            kids = {key["kid"] for key in client.get("keys", []) if not key["revoked"]}
            enrolled = bool(kids & _ours(wanted.file))
            listed = bool(client) and not client.get("revoked", False)
            return Found(account, called, listed, enrolled)
    if (await login.run("test", "-e", DIRECTORY)).code == 0:  # nothing is to lead around it
        raise JoinError(
            f"A gateway is set up there ({DIRECTORY}), but {login.user} cannot run "
            f"`{GATEWAY[0]} client list`. Come in as root, or as somebody who may use sudo without "
            "a password; the command has to be on the PATH, or in /opt/catalyst/bin."
        )
    return Found(account, None, listed=False, enrolled=False)


def _client(said: str, name: str) -> dict[str, Any]:
    try:
        clients = json.loads(said)["clients"]
        return next((one for one in clients if one["name"] == name), {})
    except (ValueError, KeyError, TypeError) as exc:
        raise AccountError("`catalyst-gateway client list` there is of another version.") from exc


def _ours(file: Path) -> set[str]:
    if not file.exists():
        return set()
    return {one.name for one in key_facts(load_unchecked(file)) if one.name is not None}


def plan(wanted: Wanted, found: Found, login: Account) -> list[str]:
    """Return what would be changed, a line each.

    Raises:
        JoinError: it cannot be done.
    """
    here = Address(login.host, login.port)
    lines = []
    if not wanted.file.exists():
        lines.append(f"here:    write {wanted.file}, for {found.account}@{here}")
    if not (wanted.file.parent / KEY).exists():
        lines.append("here:    make an SSH key")
    lines.append(f"here:    pin the host key {sshkey.fingerprint(login.host_key)}")
    if found.gateway is None:
        lines.append(f"droplet: a line in authorized_keys of {found.account}: forwarding, no more")
        return lines
    if found.enrolled:
        lines.append(f"droplet: nothing, {wanted.name} is let in with the keys that are here")
        return lines
    if found.listed and not wanted.replace:
        raise JoinError(
            f"A client called {wanted.name} is let in there already, with other keys. Take another "
            "name (--name), or revoke it in favour of this laptop (--replace)."
        )
    if found.listed:
        lines.append(f"droplet: revoke the keys that {wanted.name} has now")
    lines.append("here:    make a token key and a TLS key")
    lines.append(f"droplet: let {wanted.name} in as {wanted.role}, by the gateway's registry")
    lines.append(
        f"droplet: where sshd does not ask that, a line in authorized_keys of {found.account}"
    )
    return lines


async def carry_out(
    login: Account, wanted: Wanted, found: Found, say: Callable[[str], None], keys_file: str | None
) -> Settings:
    """Do what `plan` says, and see that this laptop comes in; return its settings.

    Args:
        login: the owner's.
        wanted, found: as they were planned with.
        say: is told of progress.
        keys_file: authorized_keys, where it is not the usual one of the account.

    Raises:
        JoinError, AccountError, ProblemError: it cannot be done; what is done stays.
        KeyFileError, EnrolError, SettingsError, OSError: the same, of files here.
    """
    file = wanted.file
    if not file.exists():
        where = login.host, login.port, found.account, wanted.target, wanted.listen
        write_settings(file, Answers(*where))
        say(f"wrote {file}")
    settings = load_unchecked(file)
    if settings.ssh.host != login.host:
        raise JoinError(f"{file} is for {settings.ssh.host}, and that login is on {login.host}.")
    identity = settings.ssh.identity or file.parent / KEY
    _, made = ensure_key(identity, unlock_new(settings))
    if made:
        say(f"made {identity}")
    _pin(login, settings)
    if found.gateway is not None and not found.enrolled:
        await _enrol(login, wanted, found.gateway, found.listed)
        say(f"{wanted.name} is let in")
    settings = load(file)
    public = sshkey.public_half(settings.ssh.identity or identity, settings.ssh.unlock)
    if await _refused(settings):
        usual = keys_file or await login.authorized_keys(found.account)
        line = line_for(settings, public)
        await login.edit(usual, lambda text: authorized.beside(text, public, public, line))
        say(f"added a line to authorized_keys of {found.account}")
    for name in settings.paths:
        async with way_in(settings, name, Clock()) as way:
            await way.prove()
        say(f"came in by {name}")
    return settings


def _pin(login: Account, settings: Settings) -> None:
    where = Address(settings.ssh.host, settings.ssh.port or 22)
    if not pinned(settings.ssh.known_hosts, where):
        pin(settings.ssh.known_hosts, where, login.host_key)
    elif login.host_key.split()[0] in {
        key.split()[0] for key in pinned(settings.ssh.known_hosts, where)
    } and login.host_key not in pinned(settings.ssh.known_hosts, where):
        raise JoinError(
            f"{settings.ssh.known_hosts} pins another host key of {where} than the one that you "
            "have just come in by. If it was replaced on purpose, remove the old line first."
        )


async def _enrol(login: Account, wanted: Wanted, gateway: tuple[str, ...], listed: bool) -> None:
    if listed:
        done = await login.run(*gateway, "client", "revoke", wanted.name)
        if done.code:
            raise JoinError(f"`client revoke` failed there: {done.complained.strip()}")
    settings = load_unchecked(wanted.file)
    request = make_request(
        wanted.file.parent,
        fresh=listed,
        new_ssh=listed,
        identity=settings.ssh.identity,
        unlock=settings.ssh.unlock,
    )
    add = ("client", "add", wanted.name, "--role", wanted.role)
    done = await login.run(*gateway, *add, stdin=request)
    if done.code:
        raise JoinError(f"`client add` failed there: {done.complained.strip()}")
    answer = install(wanted.file, done.said.encode())
    _lead_to_gateway(wanted.file, answer.ssh_target)


def _lead_to_gateway(file: Path, target: str) -> None:
    """Have the ssh path lead to the gateway, in the settings `file`."""
    import tomlkit

    from keys.files import write_private

    content = tomlkit.parse(file.read_text(encoding="utf-8-sig"))
    table = content.get("ssh")
    if isinstance(table, dict):
        table["target"], table["gateway"] = target, True
        write_private(file, tomlkit.dumps(content).encode(), replace=True)


async def _refused(settings: Settings) -> bool:
    """Return whether sshd does not let our key in."""
    if "ssh" not in settings.paths:
        return False
    try:
        async with way_in(replace(settings, https=None), "ssh", Clock()):
            return False
    except ProblemError as exc:
        if exc.problem.code != "auth_denied":
            raise
        return True
