"""Rates: how fast a lane may go, in whole microseconds. Pure: the time is passed in."""

from dataclasses import dataclass

MICROSECONDS = 1_000_000
_REFILL = 86_400.0  # seconds; a lane that takes longer to refill is a mistake, not a limit


@dataclass(frozen=True, slots=True)
class Rate:
    """What a lane may do: `burst` requests at once, and `per_second` in the long run.

    Raises (on construction):
        ValueError: it is not a rate, or its burst takes more than a day to come back.
    """

    per_second: float
    burst: int

    def __post_init__(self) -> None:
        if not (0 < self.per_second < float("inf") and self.burst >= 1):
            raise ValueError("a rate needs per_second above 0 and a burst of at least 1")
        if self.burst / self.per_second > _REFILL:
            raise ValueError("a rate whose burst takes more than a day to come back")

    @property
    def interval(self) -> int:
        """Microseconds from one request to the next in the long run."""
        return max(1, round(MICROSECONDS / self.per_second))


def gcra(due: int, now: int, interval: int, burst: int, skew: int) -> tuple[int, int]:
    """Return (new due time, wait); a wait above 0 refuses the request, and changes nothing.

    The generic cell rate algorithm, ITU-T I.371, as virtual scheduling: one number for each lane,
    the time at which the next request would be due at the steady pace. A request may come `burst`
    - 1 intervals early. All times are whole microseconds, which are exact in Python, in SQLite and
    in Lua's doubles alike (below 2**53); `state_redis` has the same arithmetic in Lua.

    Args:
        due: of the lane; 0 where there is none.
        now: since the epoch.
        interval: between requests at the steady pace.
        burst: requests that may come at once.
        skew: by which the clocks that write `due` may differ.
    """
    full = burst * interval
    if due > now + full + skew:
        due = now  # no request made this: a clock was put back, or the rate was raised
    early = due - now - (full - interval)
    if early > 0:
        return due, early
    return max(due, now) + interval, 0
