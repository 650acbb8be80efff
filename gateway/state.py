"""What the gateway remembers between requests: single-use tokens, and how fast each lane goes.

Two stores keep it: SQLite for one process (`state_sqlite`), Redis for several (`state_redis`). What
they must agree on is here, and pure: the time is passed in.
"""

import enum
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .rate import Rate


class StateError(Exception):
    """The store cannot be asked; the caller must deny. In words, without the URL's password."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Of a single-use token: its use, by whoever comes first."""

    kid: str
    jti: str
    issued: int  # seconds since the epoch, as the client counted them
    expires: int
    """Remembered until then and two clocks' leeway."""


class Verdict(enum.Enum):
    """What becomes of a request."""

    ADMITTED = "admitted"
    REPLAYED = "replayed"
    """The token has been used."""
    LIMITED = "limited"
    """The lane is too fast."""
    FORGOTTEN = "forgotten"
    """Whether the token has been used is not known: it is older than the store's memory."""


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer of `State.admit`."""

    verdict: Verdict
    retry_after: float = 0.0  # seconds, when LIMITED


ADMITTED = Admission(Verdict.ADMITTED)
REPLAYED = Admission(Verdict.REPLAYED)
FORGOTTEN = Admission(Verdict.FORGOTTEN)


class State(Protocol):
    """A store. It belongs to one event loop."""

    async def open(self) -> None:
        """Begin; to be called once, before anything else.

        Raises:
            StateError: it cannot be asked now.
        """

    async def admit(self, lane: str, rate: Rate, claim: Claim | None, now: float) -> Admission:
        """Take the claim, if there is one, then a place in the lane.

        The claim stays taken where the lane then says LIMITED: whether a token has been seen must
        not depend on how busy its client is. Given back, it could be sent again by whoever
        overheard it, at a moment of their choosing.

        Args:
            lane: what shares one rate, such as "laptop" or "laptop/stop_trading".
            rate: of that lane; it may change from one call to the next.
            claim: of a token that may serve once, already verified; None for others.
            now: wall clock, seconds since the epoch, read for this call.

        Raises:
            StateError: the store cannot be asked; deny.
        """

    async def close(self) -> None:
        """End; raises nothing."""


def forgotten(issued: int, since: float, margin: float) -> bool:
    """Return whether a token may have been used before `since`, when the memory begins.

    A token that was used by then was made by then, and says at most `since` + `margin`, by which
    its maker's clock may be ahead. Its `issued` is rounded down, so equality counts as before. The
    same store accepts tokens again `margin` plus at most a second after `since`.
    """
    return issued <= since + margin


def state_for(setting: str, directory: Path) -> State:
    """Return the store that the setting `state` names, not yet open.

    Args:
        setting: "sqlite", or the URL of a Redis server (see `state_redis`).
        directory: where SQLite's file goes.

    Raises:
        ValueError: in words, without the setting, which may hold a password.
    """
    if setting == "sqlite":
        from .state_sqlite import SqliteState

        return SqliteState(directory)
    try:
        from .state_redis import RedisState
    except ImportError:
        raise ValueError(
            "state in Redis needs a library. Run: pip install 'catalyst-tunnel[redis]'"
        ) from None

    return RedisState(setting)


def prepare(directory: Path, now: float) -> None:
    """Make SQLite's file, so that the memory of the first start begins now and not then.

    A file that exists is left as it is.

    Raises:
        StateError: it cannot be made.
    """
    from .state_sqlite import prepare as make

    make(directory, now)
