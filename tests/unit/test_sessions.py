"""Which processes are ended: connections of sshd's that offered a key, and nothing else at all.

The notes are written by an account that is trusted with little, so most of these are its tricks.
The processes here only look like sshd's; tests/integration/test_registry_sshd.py has real ones.
"""

import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway import sessions
from gateway.sessions import Ended
from gateway.settings import Layout

ACCOUNT = "k1_nobody_has_this"
OURS = f"sshd: {ACCOUNT} [priv]"
KEY = "SHA256:" + "A" * 43
OTHER = "SHA256:" + "B" * 42 + "A"

Begin = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path)
    made.sessions.mkdir(parents=True)
    return made


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start a program under a name and title of one's own; they all wait for ever."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    running: list[subprocess.Popen[bytes]] = []

    def start(
        name: str = "sshd", title: str = f"sshd: {ACCOUNT} [priv]"
    ) -> subprocess.Popen[bytes]:
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        if not program.exists():
            shutil.copy(sleep, program)
        one = subprocess.Popen([title, "1000"], executable=program)
        running.append(one)
        return one

    yield start
    for one in running:
        one.kill()
        one.wait()


def end(layout: Layout, accepted: set[str] | None = None, *, unknown: bool = False) -> Ended:
    return sessions.end(layout, ACCOUNT, frozenset(accepted or ()), unknown=unknown)


def test_exactly_the_one_is_ended(layout: Layout, begin: Begin) -> None:
    one, other = begin(), begin()
    sessions.note(layout, one.pid, KEY)
    sessions.note(layout, other.pid, OTHER)
    assert end(layout, {KEY, OTHER}) == Ended(0, 0)
    assert end(layout, {OTHER}) == Ended(1, 0)
    assert one.wait(10) == -signal.SIGKILL
    assert other.poll() is None


def test_who_offered_two_keys_goes_with_either(layout: Layout, begin: Begin) -> None:
    one = begin()
    sessions.note(layout, one.pid, KEY)
    sessions.note(layout, one.pid, OTHER)
    assert end(layout, {KEY}).count == 1
    one.wait(10)


def test_without_a_note_it_goes_when_a_key_is_gone(layout: Layout, begin: Begin) -> None:
    noted, unknown = begin(), begin()
    sessions.note(layout, noted.pid, OTHER)
    assert end(layout, {OTHER}) == Ended(0, 0)
    assert end(layout, {OTHER}, unknown=True) == Ended(1, 0)
    unknown.wait(10)
    assert noted.poll() is None


def test_who_comes_in_while_it_is_looked_around_is_known(
    layout: Layout, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login has its note before it is over, so whoever is seen to be in has one to be read."""
    one = begin()
    look = sessions._everything

    def seen_as_it_comes_in() -> Iterator[sessions._Seen]:
        sessions.note(layout, one.pid, OTHER)
        yield from look()

    monkeypatch.setattr(sessions, "_everything", seen_as_it_comes_in)
    assert end(layout, {OTHER}, unknown=True) == Ended(0, 0)
    assert one.poll() is None


def test_who_is_on_his_way_in_is_left_alone_unless_his_key_is_gone(
    layout: Layout, tmp_path: Path
) -> None:
    """No note of a new key is there yet, and ending its login would refuse who is let in."""
    programs = tmp_path / "programs"
    programs.mkdir()
    title = f"sshd: {ACCOUNT} [net]"
    for source, name in (("sh", "sshd"), ("sleep", title)):
        found = shutil.which(source)
        assert found is not None
        shutil.copy(found, programs / name)
    command = [OURS, "-c", f"'{title}' 1000 & wait"]
    shell = str(programs / "sshd")
    with subprocess.Popen(command, executable=shell, env={"PATH": str(programs)}) as one:
        deadline = time.monotonic() + 10
        while not any(seen.title == title for seen in sessions._everything()):
            assert time.monotonic() < deadline
        assert end(layout, {OTHER}, unknown=True) == Ended(0, 0)
        sessions.note(layout, one.pid, KEY)
        assert end(layout, {OTHER}, unknown=True) == Ended(1, 0)
        one.wait(10)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("postgres", OURS),
        ("sshd", "sshd: root [priv]"),
        ("sshd", f"sshd: {ACCOUNT}x [priv]"),
        ("sshd", "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups"),
        ("sshd", ACCOUNT),
        ("sshd", ""),
    ],
)
def test_a_note_on_something_else_ends_nothing(
    layout: Layout, begin: Begin, name: str, title: str
) -> None:
    """The listener, an administrator's session, another service: a note is no warrant."""
    one = begin(name, title)
    seen = sessions._look(one.pid)
    assert seen is not None
    start = seen.process.start
    (layout.sessions / f"{one.pid}.{start}.{'A' * 43}").touch()
    assert end(layout, unknown=True) == Ended(0, 0)
    assert one.poll() is None


def test_a_number_that_was_given_away_since(layout: Layout, begin: Begin) -> None:
    one = begin()
    sessions.note(layout, one.pid, OTHER)
    seen = sessions._look(one.pid)
    assert seen is not None
    (layout.sessions / f"{one.pid}.{seen.process.start - 1}.{'A' * 43}").touch()
    assert end(layout, {OTHER}) == Ended(0, 0)
    assert one.poll() is None


@pytest.mark.parametrize(
    "name", ["", "x", "1.2", "-1.2." + "A" * 43, "1.2." + "A" * 42, "0.0." + "A" * 43, "1.2.\n"]
)
def test_what_is_no_note(layout: Layout, begin: Begin, name: str) -> None:
    one = begin()
    (layout.sessions / f"x{name}").touch()
    if name:
        (layout.sessions / name).touch()
    assert end(layout) == Ended(0, 0)
    assert one.poll() is None


def test_notes_of_what_is_over_are_forgotten(layout: Layout, begin: Begin) -> None:
    one = begin()
    sessions.note(layout, one.pid, KEY)
    one.kill()
    one.wait()
    other = begin()
    sessions.note(layout, other.pid, KEY)
    [left] = layout.sessions.iterdir()
    assert left.name.startswith(f"{other.pid}.")


def test_a_question_that_sshd_did_not_ask(layout: Layout) -> None:
    with pytest.raises(ProcessLookupError, match="not sshd"):
        sessions.note(layout, 1, KEY)
    assert list(layout.sessions.iterdir()) == []


def test_a_note_that_cannot_be_kept(layout: Layout, begin: Begin) -> None:
    one = begin()
    layout.sessions.rmdir()
    with pytest.raises(OSError):
        sessions.note(layout, one.pid, KEY)
    assert end(layout) == Ended(0, 0)


def test_a_note_is_not_followed_elsewhere(layout: Layout, begin: Begin, tmp_path: Path) -> None:
    one = begin()
    seen = sessions._look(one.pid)
    assert seen is not None
    target = tmp_path / "target"
    (layout.sessions / f"{one.pid}.{seen.process.start}.{'A' * 43}").symlink_to(target)
    with pytest.raises(OSError):
        sessions.note(layout, one.pid, KEY)
    assert not target.exists()
