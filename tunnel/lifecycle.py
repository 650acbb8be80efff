"""The life of a link as one table: which event is legal in which state, and where it leads.

The idea is h11's: every transition is an entry, and a missing entry is a programming error that
raises, instead of a case that is quietly ignored. The diagram in ARCHITECTURE.md is `diagram()`.
"""

from enum import StrEnum


class State(StrEnum):
    """Where a link is in its life."""

    IDLE = "idle"
    CONNECTING = "connecting"
    UP = "up"
    WAITING = "waiting"  # lost or refused for now; a retry is due soon
    FAILED = "failed"  # a retry cannot help until somebody acts; tried again slowly
    STOPPED = "stopped"


class Event(StrEnum):
    """What happens to a link."""

    START = "start"
    CONNECTED = "connected"
    REPLACED = "replaced"  # a connection made with new keys took the place of the one that was up
    LOST = "lost"
    REFUSED = "refused"  # wrong key, changed host key: permanent until somebody acts
    RETRY_DUE = "retry_due"
    WOKE = "woke"  # the machine slept, or somebody asks to look at once
    STOP = "stop"


TABLE: dict[State, dict[Event, State]] = {
    State.IDLE: {Event.START: State.CONNECTING, Event.STOP: State.STOPPED},
    State.CONNECTING: {
        Event.CONNECTED: State.UP,
        Event.LOST: State.WAITING,
        Event.REFUSED: State.FAILED,
        Event.STOP: State.STOPPED,
    },
    State.UP: {
        Event.REPLACED: State.UP,
        Event.LOST: State.WAITING,
        Event.STOP: State.STOPPED,
    },
    State.WAITING: {
        Event.RETRY_DUE: State.CONNECTING,
        Event.WOKE: State.CONNECTING,
        Event.STOP: State.STOPPED,
    },
    State.FAILED: {
        Event.RETRY_DUE: State.CONNECTING,
        Event.WOKE: State.CONNECTING,
        Event.STOP: State.STOPPED,
    },
    State.STOPPED: {},
}


class IllegalTransitionError(Exception):
    """An event arrived in a state that has no entry for it."""


def after(state: State, event: Event) -> State:
    """Return the state that follows `state` on `event`.

    Raises:
        IllegalTransitionError: the table has no such entry.
    """
    try:
        return TABLE[state][event]
    except KeyError:
        raise IllegalTransitionError(f"a link that is {state} cannot take {event}") from None


def diagram() -> str:
    """Return the table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.IDLE}"]
    for state, row in TABLE.items():
        for event, following in row.items():
            lines.append(f"    {state} --> {following}: {event}")
    lines.append(f"    {State.STOPPED} --> [*]")
    return "\n".join(lines)
