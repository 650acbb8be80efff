"""The snapshot: the one record that status, log and exit code are rendered from."""

from dataclasses import asdict, dataclass, field
from typing import Any

from .problems import Problem

EXIT_UP = 0
EXIT_NOT_RUNNING = 3
EXIT_NO_PATH = 4


@dataclass(frozen=True, slots=True)
class PathFacts:
    """One path at one moment."""

    name: str
    current: bool  # whether requests take it now
    state: str
    since: float  # wall time of the last change, seconds since the epoch
    connects: int
    answered: bool  # whether the last probe went to the service and back
    latency: float | None  # seconds that it took
    problem: dict[str, str] | None  # code, message, remedy


@dataclass(frozen=True, slots=True)
class ForwardFacts:
    """One raw forward at one moment."""

    name: str
    listen: list[str]
    target: str
    open: int
    connections: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A running tunnel at one moment."""

    version: str
    pid: int
    started: float
    listen: list[str]
    target: str
    paths: list[PathFacts]
    forwards: list[ForwardFacts]
    requests: int
    running: int
    held: int
    answered: int
    problems: dict[str, int]
    notices: list[dict[str, str]] = field(default_factory=list)
    """What will stop working if nobody acts: code, message, remedy."""

    @property
    def up(self) -> bool:
        """Whether a request gets through by any path."""
        return any(path.answered for path in self.paths)

    @property
    def exit_code(self) -> int:
        """What `status` exits with."""
        return EXIT_UP if self.up else EXIT_NO_PATH

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data; `up` first, since that is what scripts ask."""
        return {"up": self.up, **asdict(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Snapshot":
        """Return the snapshot that `to_json` gave.

        Raises:
            TypeError, KeyError: `data` is something else.
        """
        fields = {key: value for key, value in data.items() if key != "up"}
        fields["paths"] = [PathFacts(**path) for path in data["paths"]]
        fields["forwards"] = [ForwardFacts(**forward) for forward in data["forwards"]]
        return cls(**fields)


def told(problem: Problem | None) -> dict[str, str] | None:
    """Return a problem as plain data."""
    if problem is None:
        return None
    return {"code": problem.code, "message": problem.message, "remedy": problem.remedy}
