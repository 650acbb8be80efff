from itertools import product

import pytest

from tunnel.lifecycle import Event, IllegalTransitionError, State, after, diagram

LEGAL = {
    ("idle", "start"): "connecting",
    ("idle", "stop"): "stopped",
    ("connecting", "connected"): "up",
    ("connecting", "lost"): "waiting",
    ("connecting", "refused"): "failed",
    ("connecting", "stop"): "stopped",
    ("up", "lost"): "waiting",
    ("up", "stop"): "stopped",
    ("waiting", "retry_due"): "connecting",
    ("waiting", "woke"): "connecting",
    ("waiting", "stop"): "stopped",
    ("failed", "retry_due"): "connecting",
    ("failed", "woke"): "connecting",
    ("failed", "stop"): "stopped",
}


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_every_pair(state: State, event: Event) -> None:
    if (state, event) in LEGAL:
        assert after(state, event) == LEGAL[state, event]
    else:
        with pytest.raises(IllegalTransitionError):
            after(state, event)


def test_every_state_can_be_stopped_and_nothing_leaves_stopped() -> None:
    for state in State:
        if state is State.STOPPED:
            assert not any((state, event) in LEGAL for event in Event)
        else:
            assert after(state, Event.STOP) is State.STOPPED


def test_the_diagram_has_every_transition() -> None:
    for (state, event), following in LEGAL.items():
        assert f"    {state} --> {following}: {event}\n" in diagram()
