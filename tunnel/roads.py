"""The paths that the settings ask for, with what each of them runs over."""

from collections.abc import Callable

from . import https, ssh
from .custody.keyfiles import Current
from .link import Link
from .paths import Path
from .settings import Address, Https, Settings
from .tokens import Clock

KEEPALIVE = 5.0  # seconds of silence after which https is asked for a sign of life


def make_paths(settings: Settings, uniform: Callable[[float, float], float]) -> list[Path]:
    """Return the paths of a tunnel, the preferred one first; none of them is up yet."""
    clock = Clock()
    current = Current(settings)
    makers = {"ssh": _ssh, "https": _https}
    return [makers[name](settings, current, clock, uniform) for name in settings.paths]


def _ssh(
    settings: Settings,
    current: Current,
    clock: Clock,
    uniform: Callable[[float, float], float],
) -> Path:
    async def connect() -> ssh.Carrier:
        return await ssh.connect(current.settings().ssh, current.ssh)

    link = Link(connect, keepalive=settings.ssh.keepalive, uniform=uniform)
    if not settings.ssh.gateway or settings.https is None:
        return Path("ssh", link, settings.ssh.target)
    mint = https.unbound_tokens(lambda: _table(current.settings()), clock)
    return Path("ssh", link, settings.ssh.target, tokens=lambda _: mint())


def _table(settings: Settings) -> Https:
    if settings.https is None:
        raise ValueError("the settings name https without a table for it")
    return settings.https


def _https(
    settings: Settings,
    current: Current,
    clock: Clock,
    uniform: Callable[[float, float], float],
) -> Path:
    given = _table(settings)

    async def connect() -> https.Session:
        return await https.connect(_table(current.settings()), clock, files=current.https)

    link = Link(connect, keepalive=KEEPALIVE, name="https", uniform=uniform)
    return Path(
        "https",
        link,
        Address(given.host, given.port),
        tokens=lambda session: session.tokens,
        base=given.base,
        host=given.authority.encode("ascii"),
    )
