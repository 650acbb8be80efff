from itertools import product

import pytest

from tunnel.lifecycle import TABLE, Event, IllegalTransitionError, State, after, diagram

LEGAL = {
    ("idle", "start"): "connecting",
    ("idle", "stop"): "stopped",
    ("connecting", "connected"): "up",
    ("connecting", "lost"): "waiting",
    ("connecting", "refused"): "failed",
    ("connecting", "stop"): "stopped",
    ("up", "replaced"): "up",
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
        with pytest.raises(IllegalTransitionError, match=rf"{state}.*{event}"):
            after(state, event)


def test_the_lists_agree_on_what_exists() -> None:
    assert {state for state, _ in LEGAL} | set(LEGAL.values()) == set(State)
    assert {event for _, event in LEGAL} == set(Event)
    assert set(TABLE) == set(State)


def test_every_state_can_be_stopped_and_nothing_leaves_stopped() -> None:
    for state in State:
        if state is State.STOPPED:
            assert not any((state, event) in LEGAL for event in Event)
        else:
            assert after(state, Event.STOP) is State.STOPPED


def test_every_state_is_reached_from_the_first() -> None:
    reached = {State.IDLE}
    for _ in State:
        reached |= {State(to) for (state, _), to in LEGAL.items() if state in reached}
    assert reached == set(State)


def test_the_diagram_is_every_transition_and_nothing_else() -> None:
    head, start, *transitions, end = diagram().splitlines()
    assert (head, start, end) == ("stateDiagram-v2", "    [*] --> idle", "    stopped --> [*]")
    expected = [f"    {state} --> {to}: {event}" for (state, event), to in LEGAL.items()]
    assert sorted(transitions) == sorted(expected)
