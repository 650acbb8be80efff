import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from keys.files import make_private_directory, private_file_fault, write_private

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes and owners are POSIX")
ROOT = sys.platform != "win32" and os.geteuid() == 0


@pytest.fixture(params=[0, 0o022], ids=["umask 000", "umask 022"])
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("x")
    file.chmod(0o600)
    return file


# Writing.


@POSIX
@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("replace", [True, False])
def test_a_secret_is_private_from_birth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    """Looked at when the content is there and the name may be, too."""
    directory = tmp_path / "new"
    seen: list[int] = []
    sync = os.fsync

    def look(handle: int) -> None:
        seen.extend(mode(path) for path in directory.iterdir())
        sync(handle)

    monkeypatch.setattr(os, "fsync", look)
    write_private(directory / "secret", b"1", replace=replace)
    assert seen
    assert set(seen) == {0o600}
    assert mode(directory) == 0o700
    assert (directory / "secret").read_bytes() == b"1"
    assert names(directory) == ["secret"]
    assert private_file_fault(directory / "secret") is None


@POSIX
@pytest.mark.usefixtures("umask")
def test_every_directory_that_is_made_is_private(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    make_private_directory(deep)
    assert [mode(path) for path in (deep, deep.parent, deep.parent.parent)] == [0o700] * 3


@POSIX
def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    make_private_directory(tmp_path)
    write_private(tmp_path / "secret", b"1", replace=False)
    assert mode(tmp_path) == 0o750


def test_what_exists_is_replaced_only_if_it_may_be(secret: Path) -> None:
    with pytest.raises(FileExistsError):
        write_private(secret, b"new", replace=False)
    assert secret.read_text() == "x"
    assert names(secret.parent) == ["secret"]
    write_private(secret, b"new", replace=True)
    assert secret.read_text() == "new"
    assert names(secret.parent) == ["secret"]


@POSIX
def test_replacing_an_open_file_closes_it_to_others(secret: Path) -> None:
    secret.chmod(0o666)
    write_private(secret, b"new", replace=True)
    assert mode(secret) == 0o600


@POSIX
def test_a_link_that_leads_nowhere_is_a_file_that_exists(tmp_path: Path) -> None:
    (tmp_path / "secret").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        write_private(tmp_path / "secret", b"1", replace=False)
    assert names(tmp_path) == ["secret"]


@POSIX
def test_replacing_a_link_leaves_alone_what_it_leads_to(secret: Path) -> None:
    link = secret.with_name("link")
    link.symlink_to(secret)
    write_private(link, b"new", replace=True)
    assert secret.read_text() == "x"
    assert (link.read_text(), link.is_symlink()) == ("new", False)


@pytest.mark.parametrize("replace", [True, False])
def test_a_full_disk_leaves_nothing_behind(
    secret: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    target = secret if replace else secret.with_name("other")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_private(target, b"new", replace=replace)
    assert names(secret.parent) == ["secret"]
    assert secret.read_text() == "x"


def test_a_directory_in_the_files_place_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    for replace in (True, False):
        with pytest.raises(OSError):
            write_private(tmp_path / "secret", b"1", replace=replace)
    assert names(tmp_path) == ["secret"]


def test_a_file_in_the_directorys_place(secret: Path) -> None:
    with pytest.raises(OSError):
        write_private(secret / "below", b"1", replace=True)
    assert secret.read_text() == "x"


@pytest.mark.skipif(ROOT or sys.platform == "win32", reason="root writes everywhere")
def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        write_private(tmp_path / "secret", b"1", replace=True)
    assert names(tmp_path) == []


def test_of_many_who_write_one_name_one_succeeds(tmp_path: Path) -> None:
    """No one sees the half of a file, and no one overwrites another's."""
    file = tmp_path / "secret"
    start = threading.Barrier(8)
    won: list[bytes] = []

    def write(content: bytes) -> None:
        start.wait()
        try:
            write_private(file, content, replace=False)
        except FileExistsError:
            return
        won.append(content)

    writers = [threading.Thread(target=write, args=(bytes([65 + n]) * 9999,)) for n in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert won == [file.read_bytes()]
    assert names(tmp_path) == ["secret"]


# Checking.


def test_a_private_file_has_no_fault(secret: Path) -> None:
    assert private_file_fault(secret) is None


@POSIX
@pytest.mark.parametrize("bits", [0o644, 0o640, 0o604, 0o660, 0o602, 0o601, 0o610, 0o777])
def test_open_files_are_refused_with_the_repair(secret: Path, bits: int) -> None:
    secret.chmod(bits)
    fault = private_file_fault(secret)
    assert fault is not None
    assert f"{bits:04o}" in fault
    assert fault.endswith(f"Run `chmod 600 {secret}`.")
    secret.chmod(0o600)
    assert private_file_fault(secret) is None


@POSIX
@pytest.mark.parametrize("bits", [0o400, 0o600, 0o700])
def test_what_the_owner_may_do_is_the_owners_business(secret: Path, bits: int) -> None:
    secret.chmod(bits)
    assert private_file_fault(secret) is None


def test_a_missing_file_is_told_with_what_makes_it(tmp_path: Path) -> None:
    fault = private_file_fault(tmp_path / "none")
    assert fault is not None
    assert fault.startswith(f"{tmp_path / 'none'} does not exist.")
    assert "catalyst-tunnel init" in fault


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in str(private_file_fault(tmp_path))


@POSIX
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    told: list[str | None] = []
    asker = threading.Thread(target=lambda: told.append(private_file_fault(pipe)), daemon=True)
    asker.start()
    asker.join(1)
    hung = asker.is_alive()
    os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # lets whoever hangs go
    asker.join(1)
    assert not hung
    assert "not a regular file" in str(told[0])


@pytest.mark.skipif(ROOT or sys.platform == "win32", reason="root reads everything")
def test_a_file_that_we_may_not_read(secret: Path) -> None:
    secret.chmod(0)
    fault = private_file_fault(secret)
    assert fault is not None
    assert "cannot be read" in fault


@pytest.mark.skipif(not ROOT, reason="only root gives files away")
def test_a_file_of_another_user_is_refused(secret: Path) -> None:
    os.chown(secret, 65534, -1)
    fault = private_file_fault(secret)
    assert fault is not None
    assert "belongs to another user" in fault


@POSIX
def test_a_link_is_judged_by_what_it_leads_to(secret: Path) -> None:
    link = secret.with_name("link")
    link.symlink_to(secret)
    assert private_file_fault(link) is None
    secret.chmod(0o644)
    assert private_file_fault(link) is not None
    secret.unlink()
    assert "does not exist" in str(private_file_fault(link))


def test_a_name_that_no_file_can_have_is_a_fault(tmp_path: Path) -> None:
    assert "cannot be read" in str(private_file_fault(tmp_path / ("x" * 5000)))
