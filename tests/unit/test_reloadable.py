import os
from pathlib import Path

import pytest

from keys import strictjson
from keys.reloadable import Reloadable


def number(path: Path) -> int:
    """Load a file that holds one whole number, as JSON."""
    content = strictjson.loads(path.read_bytes())
    if type(content) is not int:
        raise ValueError("must be a number")
    return content


def swap(path: Path, text: str) -> None:
    """Put another file in its place, as whoever writes files with care does."""
    new = path.with_name("new")
    new.write_text(text)
    new.replace(path)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("1")
    return path


@pytest.fixture
def held(file: Path) -> Reloadable[int]:
    return Reloadable(file, number)


def test_as_loaded(held: Reloadable[int]) -> None:
    assert (held.value, held.fault, held.changed()) == (1, None, False)


def test_there_is_nothing_to_fall_back_on_at_first(tmp_path: Path, file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Reloadable(tmp_path / "none", number)
    file.write_text("one")
    with pytest.raises(ValueError, match="Expecting value"):
        Reloadable(file, number)


def test_a_change_is_seen_and_taken_when_asked(held: Reloadable[int]) -> None:
    swap(held.path, "22")
    assert held.changed()
    assert held.value == 1, "looking is not loading"
    assert held.reload()
    assert (held.value, held.fault, held.changed()) == (22, None, False)


def test_a_change_in_place_is_seen(held: Reloadable[int]) -> None:
    held.path.write_text("22")
    assert held.changed()
    assert held.reload()
    assert held.value == 22


@pytest.mark.parametrize("text", ["one", "1.5", "", "{", "[" * 100_000, "\udc80", '{"a":1,"a":2}'])
def test_a_broken_file_leaves_the_old_value_and_says_so(held: Reloadable[int], text: str) -> None:
    held.path.write_bytes(text.encode(errors="surrogateescape"))
    assert held.changed()
    assert not held.reload()
    assert held.value == 1
    assert held.fault is not None
    assert held.fault.startswith(f"{held.path}: ")
    assert len(held.fault) > len(f"{held.path}: ") + 5, "in words"
    assert not held.changed(), "it is not looked at again until it is another"
    swap(held.path, "333")
    assert held.changed()
    assert held.reload()
    assert held.value == 333
    assert held.fault is None


def test_one_fault_gives_way_to_the_next(held: Reloadable[int]) -> None:
    held.path.write_text("1.5")
    assert not held.reload()
    assert held.fault == f"{held.path}: must be a number"
    held.path.write_text('{"a":1,"a":1}')
    assert not held.reload()
    assert held.fault == f"{held.path}: a member is named twice"
    assert held.value == 1


def test_a_file_that_is_deleted_and_comes_back(held: Reloadable[int]) -> None:
    held.path.unlink()
    assert held.changed()
    assert not held.reload()
    assert (held.value, held.fault) == (1, f"{held.path}: No such file or directory")
    assert not held.changed()
    held.path.write_text("1")
    assert held.changed(), "the same text, but the fault must go"
    assert held.reload()
    assert held.fault is None


def test_a_directory_in_its_place(held: Reloadable[int]) -> None:
    held.path.unlink()
    held.path.mkdir()
    assert held.changed()
    assert not held.reload()
    assert (held.value, held.fault) == (1, f"{held.path}: Is a directory")


def test_a_link_that_is_turned_elsewhere(tmp_path: Path, file: Path) -> None:
    """As certbot does with its live directory."""
    other = tmp_path / "other"
    other.write_text("2")
    link = tmp_path / "link"
    link.symlink_to(file)
    held = Reloadable(link, number)
    link.unlink()
    link.symlink_to(other)
    assert held.changed()
    assert held.reload()
    assert held.value == 2


def at(path: Path, nanoseconds: int) -> None:
    os.utime(path, ns=(nanoseconds, nanoseconds))


def test_a_file_of_the_same_size_and_time_that_was_swapped_in(held: Reloadable[int]) -> None:
    before = held.path.stat()
    swap(held.path, "2")
    at(held.path, before.st_mtime_ns)
    assert (held.path.stat().st_size, held.path.stat().st_mtime_ns) == (1, before.st_mtime_ns)
    assert held.changed(), "it is another file"


def test_an_older_file_of_the_same_size(held: Reloadable[int]) -> None:
    """A backup that is put back: the time is another, if not a later one."""
    held.path.write_text("2")
    at(held.path, 10**18)
    assert held.changed()


def test_what_no_stamp_can_tell_is_taken_when_asked(held: Reloadable[int]) -> None:
    """Written in place, within one tick of the file system's clock: only reading shows it.

    Whoever writes by renaming, as this program does, makes another file and is seen.
    """
    before = held.path.stat()
    held.path.write_text("2")
    at(held.path, before.st_mtime_ns)
    assert held.reload()
    assert held.value == 2


def test_a_change_while_it_is_being_loaded_is_not_missed(file: Path) -> None:
    texts = ["22", "333"]

    def slowly(path: Path) -> int:
        value = number(path)
        if texts:
            swap(path, texts.pop(0))
        return value

    held = Reloadable(file, slowly)
    assert (held.value, held.changed()) == (1, True)
    held.reload()
    assert (held.value, held.changed()) == (22, True)
    held.reload()
    assert (held.value, held.changed()) == (333, False)


def test_a_fault_without_words_of_the_system(file: Path) -> None:
    calls = iter([1])

    def load(path: Path) -> int:
        for value in calls:
            return value
        raise OSError("the disk said no")

    held = Reloadable(file, load)
    assert not held.reload()
    assert held.fault == f"{file}: the disk said no"
