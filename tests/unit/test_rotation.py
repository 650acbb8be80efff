"""The plan of a rotation: every transition, and a machine that crashes wherever it likes."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keys.pointer import FAMILIES, Family, Names
from keys.rotation import (
    ENDS,
    TABLE,
    Event,
    IllegalStepError,
    Journal,
    Step,
    after,
    describe,
    diagram,
)

LEGAL = {
    ("introduce", "done"): "prove",
    ("introduce", "refused"): "undo",
    ("prove", "done"): "switch",
    ("prove", "refused"): "undo",
    ("switch", "done"): "drain",
    ("drain", "done"): "retire",
    ("retire", "done"): "tidy",
    ("retire", "refused"): "revert",
    ("tidy", "done"): "done",
    ("revert", "done"): "undo",
    ("undo", "done"): "undone",
}
OLD = Names()
JOURNAL = Journal(FAMILIES, OLD, OLD.after(FAMILIES, ()), 1e9, 30.0, since=1e9)


@pytest.mark.parametrize(("step", "event"), list(product(Step, Event)))
def test_every_pair(step: Step, event: Event) -> None:
    if (step, event) in LEGAL:
        assert after(step, event) == LEGAL[step, event]
    else:
        with pytest.raises(IllegalStepError, match=rf"{step}.*{event}"):
            after(step, event)


def test_every_step_is_reached_and_leads_to_an_end() -> None:
    assert set(TABLE) == set(Step)
    reached = {Step.INTRODUCE}
    for _ in Step:
        reached |= {Step(to) for (step, _), to in LEGAL.items() if step in reached}
    assert reached == set(Step)
    assert {step for step in Step if not TABLE[step]} == ENDS


def test_the_diagram_is_in_the_architecture() -> None:
    page = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    assert f"```mermaid\n{diagram()}\n```" in page


@given(
    families=st.lists(st.sampled_from(FAMILIES), min_size=1, unique=True),
    step=st.sampled_from(Step),
    drain=st.floats(0, 3600),
    compromised=st.booleans(),
    desk=st.sampled_from(["registry", "account"]),
    via=st.none() | st.text(),
    since=st.floats(0, 1e12),
)
def test_what_is_written_is_what_is_read(
    families: list[Family], step: Step, since: float, **own: Any
) -> None:
    journal = replace(JOURNAL, families=tuple(families), step=step, since=since, **own)
    assert Journal.read(journal.to_text()) == journal


GOOD = json.loads(JOURNAL.to_text())


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": True},
        {"step": "leap"},
        {"families": []},
        {"families": ["gpg"]},
        {"families": "ssh"},
        {"families": [1]},
        {"drain": -1.0},
        {"drain": "30"},
        {"drain": 3601.0},
        {"since": None},
        {"compromised": 1},
        {"desk": "hall"},
        {"via": 7},
        {"authorized_keys": []},
        {"old": {"ssh": "x", "token": "y"}},
        {"new": {"ssh": "../x", "token": "y", "tls": "z"}},
        {"new": {"ssh": "/etc/x", "token": "y", "tls": "z"}},
        {"new": {"ssh": "", "token": "y", "tls": "z"}},
        {"new": {"ssh": ".x", "token": "y", "tls": "z"}},
        {"more": 1},
    ],
)
def test_a_journal_that_was_changed_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        Journal.read(json.dumps({**GOOD, **change}).encode())


@given(st.integers(0, len(JOURNAL.to_text()) - 2))
def test_a_journal_cut_short_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=r"\w+"):
        Journal.read(JOURNAL.to_text()[:size])


@pytest.mark.parametrize("jump", [-86400.0, -1.0, 0.0, 29.0, 30.0, 86400.0])
def test_a_clock_that_jumped_makes_the_drain_no_longer(jump: float) -> None:
    left = JOURNAL.draining(JOURNAL.since + jump)
    assert 0 <= left <= JOURNAL.drain
    assert left == min(max(30.0 - jump, 0.0), 30.0)


def test_nothing_is_waited_for_when_the_old_keys_are_in_other_hands() -> None:
    assert replace(JOURNAL, compromised=True).draining(JOURNAL.since) == 0


@settings(max_examples=200)
@given(
    families=st.lists(st.sampled_from(FAMILIES), min_size=1, unique=True),
    times=st.integers(1, 30),
    extra=st.sets(st.sampled_from(["token-2.key", "tls-3.crt", "ssh_ed25519-2.pub", "x"])),
)
def test_new_names_are_never_taken(families: list[Family], times: int, extra: set[str]) -> None:
    names, taken = OLD, set(extra)
    for family in FAMILIES:
        taken |= set(OLD.files(family))
    for _ in range(times):
        new = names.after(families, taken)
        for family in FAMILIES:
            if family in families:
                assert not set(new.files(family)) & taken
                taken |= set(new.files(family))
            else:
                assert new.files(family) == names.files(family)
        names = new
    assert Names.from_json(names.to_json()) == names


def test_the_plan_in_words_names_what_is_made_and_what_is_refused() -> None:
    text = describe(JOURNAL)
    for name in ("ssh_ed25519-2", "token-2.key", "tls-2.crt", "token.key", "tls.crt", "30 s"):
        assert name in text
    assert "waits for nothing" in describe(replace(JOURNAL, compromised=True))


class Rotations(RuleBasedStateMachine):
    """A laptop and a droplet as sets of keys; the laptop crashes, the operator edits by hand.

    Whatever happens, the key that the pointer names is on the disk, and let in unless the operator
    took it away; and whoever carries a rotation to its end leaves one key and no file too many.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files = {"k1"}
        self.pointer = "k1"
        self.accepted = {"k1"}
        self.removed: set[str] = set()  # by hand
        self.journal: tuple[str, str, Step] | None = None  # old, new, step
        self.number = 1
        self.crash_after: int | None = None

    def _effect(self) -> None:
        """Something happens for good; the machine may go down right after it."""
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                raise KeyboardInterrupt

    @initialize()
    def begin(self) -> None:
        pass

    @precondition(lambda self: self.journal is None)
    @rule()
    def rotate(self) -> None:
        self.number += 1
        self.journal = self.pointer, f"k{self.number}", Step.INTRODUCE

    @precondition(lambda self: self.journal is not None)
    @rule(crash=st.none() | st.integers(0, 8))
    def carry_on(self, crash: int | None) -> None:
        self.crash_after = crash
        try:
            while self.journal is not None:
                old, new, step = self.journal
                following = after(step, self._do(old, new, step))
                self.journal = None if following in ENDS else (old, new, following)
                self._effect()
        except KeyboardInterrupt:
            return
        finally:
            self.crash_after = None
        assert self.files == {self.pointer}
        assert self.accepted <= {self.pointer}

    def _do(self, old: str, new: str, step: Step) -> Event:
        match step:
            case Step.INTRODUCE:
                self.files.add(new)
                self._effect()
                if old not in self.accepted or new in self.removed:
                    # Before a crash it may have been let in already.
                    return Event.DONE if new in self.accepted else Event.REFUSED
                self.accepted.add(new)
                self._effect()
            case Step.PROVE:
                return Event.DONE if new in self.accepted else Event.REFUSED
            case Step.SWITCH:
                self.pointer = new
                self._effect()
            case Step.RETIRE:
                if new not in self.accepted:
                    return Event.REFUSED
                self.accepted.discard(old)
                self._effect()
            case Step.TIDY:
                self.files.discard(old)
                self._effect()
            case Step.REVERT:
                self.pointer = old
                self._effect()
            case Step.UNDO:
                if old in self.accepted:
                    self.accepted.discard(new)
                self._effect()
                self.files.discard(new)
                self._effect()
        return Event.DONE

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def edited_by_hand(self, data: st.DataObject) -> None:
        gone = data.draw(st.sampled_from(sorted(self.accepted)))
        self.accepted.discard(gone)
        self.removed.add(gone)

    @rule()
    def enrolled_again(self) -> None:
        if not self.accepted and self.journal is None:
            self.number += 1
            self.pointer = f"k{self.number}"
            self.files, self.accepted = {self.pointer}, {self.pointer}

    @invariant()
    def what_is_used_is_there(self) -> None:
        assert self.pointer in self.files

    @invariant()
    def there_is_a_way_in(self) -> None:
        if not self.removed:
            assert self.pointer in self.accepted


TestRotations = Rotations.TestCase
TestRotations.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
