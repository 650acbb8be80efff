"""When to try again: full jitter under a cap, forgotten only after sustained uptime.

The jitter is the "full jitter" of Marc Brooker, "Exponential Backoff And Jitter" (AWS, 2015): it
spreads clients best, and its mean stays low for the one who waits. Pure: randomness and uptime
are passed in.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

BASE = 0.5  # seconds; the first retry comes within this
CAP = 10.0  # seconds; a laptop that comes back from a tunnel should not wait longer
SUSTAINED = 20.0  # seconds of uptime that make a connection a good one
SLOW = 60.0  # seconds between tries that cannot succeed until somebody acts


@dataclass(slots=True)
class Backoff:
    """Counts failures in a row and says how long to wait, in seconds.

    A connection that lives for less than `SUSTAINED` counts as another failure: a server that
    accepts and drops must not be dialled in a tight loop.
    """

    uniform: Callable[[float, float], float]
    failures: int = field(default=0)

    def lived(self, uptime: float) -> None:
        """Take note that a connection was up for `uptime` seconds."""
        if uptime >= SUSTAINED:
            self.failures = 0

    def next(self) -> float:
        """Return the seconds to wait before the next try, and count the failure.

        The first retry after a good connection is immediate: most losses are of the connection,
        not of the droplet.
        """
        doublings = min(self.failures - 1, 16)  # a float overflows after a night offline
        ceiling = 0.0 if self.failures == 0 else min(CAP, BASE * 2.0**doublings)
        self.failures += 1
        return self.uniform(0.0, ceiling)

    def slow(self) -> float:
        """Return the seconds to wait after a permanent refusal.

        sshd's PerSourcePenalties (sshd_config(5), since 9.8) add 5 s per failed login and act
        from 15 s: one try a minute never gets there.
        """
        return self.uniform(SLOW, SLOW * 1.25)
