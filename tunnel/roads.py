"""The paths that the settings ask for, with what each of them runs over."""

import functools
from collections.abc import Callable

from . import https, ssh
from .link import Link
from .paths import Path
from .settings import Address, Settings
from .tokens import Clock

KEEPALIVE = 5.0  # seconds of silence after which https is asked for a sign of life


def make_paths(settings: Settings, uniform: Callable[[float, float], float]) -> list[Path]:
    """Return the paths of a tunnel, the preferred one first; none of them is up yet."""
    clock = Clock()
    makers = {"ssh": _ssh, "https": _https}
    return [makers[name](settings, clock, uniform) for name in settings.paths]


def _ssh(settings: Settings, clock: Clock, uniform: Callable[[float, float], float]) -> Path:
    connect = functools.partial(ssh.connect, settings.ssh)
    link = Link(connect, keepalive=settings.ssh.keepalive, uniform=uniform)
    if not settings.ssh.gateway or settings.https is None:
        return Path("ssh", link, settings.ssh.target)
    mint = https.unbound_tokens(settings.https, clock)
    return Path("ssh", link, settings.ssh.target, tokens=lambda _: mint())


def _https(settings: Settings, clock: Clock, uniform: Callable[[float, float], float]) -> Path:
    given = settings.https
    if given is None:
        raise ValueError("the settings name https without a table for it")
    link = Link(
        functools.partial(https.connect, given, clock),
        keepalive=KEEPALIVE,
        name="https",
        uniform=uniform,
    )
    return Path(
        "https",
        link,
        Address(given.host, given.port),
        tokens=lambda session: session.tokens,
        base=given.base,
        host=given.authority.encode("ascii"),
    )
