"""A rotation: new keys in the place of old ones, in an order that always leaves a way in.

Introduce, prove, switch, drain, retire: each step may be done again, so after a crash the one that
the journal names is done again. What the other end refuses before the switch is taken back; after
it, the old keys come back if they are the ones that are let in. Every transition is an entry of one
table, and a missing entry raises, as in `tunnel.lifecycle`. Pure: the time is passed in.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, cast

from . import strictjson
from .pointer import FAMILIES, Family, Names

LONGEST_DRAIN = 3600.0  # seconds


class Step(StrEnum):
    """What is to be done next."""

    INTRODUCE = "introduce"  # make the new keys, and have them let in beside the old ones
    PROVE = "prove"  # come in with the new keys and no others
    SWITCH = "switch"  # point at the new keys
    DRAIN = "drain"  # let what came in with the old keys finish
    RETIRE = "retire"  # have the old keys refused, and see that they are
    TIDY = "tidy"  # remove the old files
    REVERT = "revert"  # point at the old keys again
    UNDO = "undo"  # have the new keys refused, and remove their files
    DONE = "done"
    UNDONE = "undone"


class Event(StrEnum):
    """What came of a step."""

    DONE = "done"
    REFUSED = "refused"  # the new keys are not let in, and no second try will change that


TABLE: dict[Step, dict[Event, Step]] = {
    Step.INTRODUCE: {Event.DONE: Step.PROVE, Event.REFUSED: Step.UNDO},
    Step.PROVE: {Event.DONE: Step.SWITCH, Event.REFUSED: Step.UNDO},
    Step.SWITCH: {Event.DONE: Step.DRAIN},
    Step.DRAIN: {Event.DONE: Step.RETIRE},
    Step.RETIRE: {Event.DONE: Step.TIDY, Event.REFUSED: Step.REVERT},
    Step.TIDY: {Event.DONE: Step.DONE},
    Step.REVERT: {Event.DONE: Step.UNDO},
    Step.UNDO: {Event.DONE: Step.UNDONE},
    Step.DONE: {},
    Step.UNDONE: {},
}

ENDS = frozenset({Step.DONE, Step.UNDONE})

Desk = Literal["registry", "account"]
DESKS: tuple[Desk, ...] = ("registry", "account")
"""Who lets SSH keys in: the gateway's registry, or authorized_keys of the account."""


class IllegalStepError(Exception):
    """A step came to something that the table has no entry for."""


def after(step: Step, event: Event) -> Step:
    """Return the step that follows `step` on `event`.

    Raises:
        IllegalStepError: the table has no such entry.
    """
    try:
        return TABLE[step][event]
    except KeyError:
        raise IllegalStepError(f"{step} cannot come to {event}") from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {Step.INTRODUCE}"]
    for step, row in TABLE.items():
        for event, following in row.items():
            lines.append(f"    {step} --> {following}: {event}")
    lines += [f"    {end} --> [*]" for end in (Step.DONE, Step.UNDONE)]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Journal:
    """A rotation that is under way: all that whoever carries it on has to know."""

    families: tuple[Family, ...]
    old: Names
    new: Names
    started: float  # seconds since the epoch
    drain: float  # seconds that what runs with the old keys is given at most
    compromised: bool = False
    """Whether the old keys are in other hands: nothing that runs with them is waited for."""
    desk: Desk = "registry"
    via: str | None = None
    """USER@HOST by which authorized_keys is reached, where the account is the desk."""
    authorized_keys: str | None = None
    """The file there, where it is not the usual one of the account."""
    step: Step = Step.INTRODUCE
    since: float = 0.0
    """When the step began, seconds since the epoch."""

    def taken(self, event: Event, now: float) -> "Journal":
        """Return the journal once the step came to `event` at `now`.

        Raises:
            IllegalStepError: the table has no such entry.
        """
        return replace(self, step=after(self.step, event), since=now)

    def draining(self, now: float) -> float:
        """Return the seconds left to drain; a clock that jumped makes them no more than all."""
        if self.compromised:
            return 0.0
        left = self.since + self.drain - now
        return min(max(left, 0.0), self.drain)

    def to_text(self) -> bytes:
        """Return it as it is written to a file."""
        members = {name: getattr(self, name) for name in self.__slots__}
        members |= {"old": self.old.to_json(), "new": self.new.to_json()}
        return strictjson.dumps({"version": 1, **members}) + b"\n"

    @classmethod
    def read(cls, text: bytes) -> "Journal":
        """Return the journal in `text`.

        Raises:
            ValueError: it is not one.
        """
        content = strictjson.loads(text)
        if not isinstance(content, dict) or content.keys() != {"version", *cls.__slots__}:
            raise ValueError("has other members than a journal")
        if type(content["version"]) is not int or content.pop("version") != 1:
            raise ValueError("is of another version")
        content["old"], content["new"] = map(Names.from_json, (content["old"], content["new"]))
        families = content["families"]
        if not isinstance(families, list) or not families or set(families) - set(FAMILIES):
            raise ValueError("names no families that are known here")
        content["families"] = tuple(cast(list[Family], families))
        for name in ("started", "drain", "since"):
            if type(content[name]) not in (int, float):
                raise ValueError(f"{name} must be a number")
        if not 0 <= content["drain"] <= LONGEST_DRAIN:
            raise ValueError("drain is out of range")
        if type(content["compromised"]) is not bool or content["desk"] not in DESKS:
            raise ValueError("compromised or desk makes no sense")
        for name in ("via", "authorized_keys"):
            if content[name] is not None and not isinstance(content[name], str):
                raise ValueError(f"{name} must be a string")
        content["step"] = Step(content["step"])
        return cls(**cast(dict[str, Any], content))


def describe(journal: Journal) -> str:
    """Return a rotation as it will go, a line a step."""
    files = [name for family in journal.families for name in journal.new.files(family)]
    old = [name for family in journal.families for name in journal.old.files(family)]
    where = "the registry" if journal.desk == "registry" else f"authorized_keys ({journal.via})"
    wait = "waits for nothing" if journal.compromised else f"at most {journal.drain:g} s"
    return "\n".join(
        [
            f"introduce  make {', '.join(files)}; have them let in beside the old, by {where}",
            "prove      come in with the new keys and no others",
            "switch     point at the new keys",
            f"drain      let what runs with the old keys finish: {wait}",
            f"retire     have {', '.join(old)} refused, and see that they are",
            "tidy       remove the old files",
        ]
    )
