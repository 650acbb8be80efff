import contextlib
import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import verify as module
from gateway.audit import AuditError, AuditLog
from gateway.verify import Report, verify

if sys.platform == "win32":
    pytest.skip("the gateway does not run on Windows", allow_module_level=True)

import resource

NOON = 1_795_457_951.123456  # 2026-11-23T18:19:11.123456Z
ZEROS = "0" * 64


class Clock:
    """A wall clock that the test moves; the log looks at its file once a second."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


@pytest.fixture
def log(path: Path, clock: Clock) -> Iterator[AuditLog]:
    made = AuditLog(path, clock)
    made.open()
    yield made
    made.close()


def fill(path: Path, lines: int = 10) -> list[bytes]:
    """Write a log and close it; returns its lines."""
    log = AuditLog(path, Clock())
    log.open()
    for number in range(lines):
        log.append({"decision": "allow", "tool": f"tool {number}"})
    log.close()
    return lines_of(path)


def crash(log: AuditLog) -> None:
    """Let go of everything as the end of the process does: without an anchor."""
    log._release()


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def told(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines_of(path)]


def texts(*paths: Path) -> list[str]:
    return [f"{one.line}: {one.text}" for one in verify(paths).findings]


def sealed(body: dict[str, Any]) -> bytes:
    """Return a line with a hash that fits, as a forger makes it."""
    covered = json.dumps(body, separators=(",", ":"))[:-1].encode()
    return covered + b',"hash":"' + sha256(covered).hexdigest().encode() + b'"}\n'


def resealed(lines: list[bytes], prev: str) -> list[bytes]:
    """Chain `lines` anew, as a forger with much time does."""
    made = []
    for line in lines:
        body = json.loads(line)
        del body["hash"]
        made.append(sealed(body | {"prev": prev}))
        prev = json.loads(made[-1])["hash"]
    return made


# The line


def test_a_line(log: AuditLog, path: Path) -> None:
    assert log.append({"client": "laptop", "ms": 1.5}) == 1
    assert log.append({}) == 2
    first, second = lines_of(path)
    covered, _, rest = first.rpartition(b',"hash":"')
    assert covered == (
        b'{"seq":1,"time":"2026-11-23T18:19:11.123456Z","client":"laptop","ms":1.5,"prev":"'
        + ZEROS.encode()
        + b'"'
    )
    assert rest == sha256(covered).hexdigest().encode() + b'"}\n'
    assert json.loads(second)["prev"] == json.loads(first)["hash"]
    log.anchor()
    report = verify([path])
    assert report == Report(2, 1, 2, json.loads(second)["hash"], ())


def test_times_are_told_to_the_microsecond(log: AuditLog, path: Path, clock: Clock) -> None:
    for now in (1_800_000_000.0, 1_800_000_000.000001, 1_800_000_000.999999, 1_800_000_001.5):
        clock.now = now
        log.append({})
    assert [line["time"] for line in told(path)] == [
        "2027-01-15T08:00:00.000000Z",
        "2027-01-15T08:00:00.000000Z",  # a float has no more at this size than a quarter of it
        "2027-01-15T08:00:00.999999Z",
        "2027-01-15T08:00:01.500000Z",
    ]


@pytest.mark.parametrize(
    "end",
    ["\n", "\r", "\v", "\f", "\x1b[2K\r", "\x85", "\u2028", "\u2029", "\0", "\ud800", '"}\n{'],
)
def test_nobody_outside_writes_lines_or_moves_the_cursor(
    log: AuditLog, path: Path, end: str
) -> None:
    tool = f'a{end}{{"seq":9,"prev":"{ZEROS}","hash":"{ZEROS}"}}'
    log.append({"tool": tool, "more": {tool: [tool]}})
    (line,) = path.read_text("ascii").splitlines()
    assert line.isprintable()
    assert json.loads(line)["tool"] == tool
    log.anchor()
    assert texts(path) == []


def test_long_texts_are_cut_wherever_they_are(log: AuditLog, path: Path) -> None:
    log.append({"a": "x" * 256, "b": "é" * 257, "c": {"d": ["y" * 9999], "k" * 999: 1}})
    (line,) = told(path)
    assert line["a"] == "x" * 256
    assert line["b"] == "é" * 255 + "…"
    assert line["c"] == {"d": ["y" * 255 + "…"], "k" * 255 + "…": 1}


@pytest.mark.parametrize(
    "facts",
    [
        {"seq": 9},
        {"time": "x"},
        {"prev": ZEROS},
        {"hash": ZEROS},
        {"ms": float("nan")},
        {"many": ["x" * 256] * 5000},
        {"bytes": b"x"},
    ],
)
def test_facts_that_cannot_be_told(log: AuditLog, path: Path, facts: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError)):
        log.append(facts)
    assert path.read_bytes() == b""
    assert log.append({"fine": True}) == 1


def test_one_write_a_line(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[bytes] = []
    true = os.write

    def write(fd: int, data: bytes) -> int:
        writes.append(data)
        return true(fd, data)

    monkeypatch.setattr(os, "write", write)
    for _ in range(5):
        log.append({"a": 1})
    assert len(writes) == 5
    assert all(one.count(b"\n") == 1 and one.endswith(b"\n") for one in writes)


# Tampering


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit") / "audit.jsonl"
    fill(path, 6)
    return path


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_no_byte_can_be_changed(sample: Path, data: st.DataObject) -> None:
    whole = bytearray(sample.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda one: one != whole[place]))
    whole[place] = value
    forged = sample.with_name("forged.jsonl")
    forged.write_bytes(whole)
    shutil.copy(f"{sample}.head", f"{forged}.head")
    report = verify([forged])
    at = sample.read_bytes()[:place].count(b"\n") + 1
    assert report.findings
    assert report.findings[0].line == at


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_byte_of_the_anchor_can_be_changed(sample: Path, data: st.DataObject) -> None:
    anchor = bytearray(sample.with_name("audit.jsonl.head").read_bytes())
    place = data.draw(st.integers(0, len(anchor) - 1))
    anchor[place] = data.draw(st.integers(0, 255).filter(lambda one: one != anchor[place]))
    forged = sample.with_name("forged.jsonl")
    shutil.copy(sample, forged)
    forged.with_name("forged.jsonl.head").write_bytes(anchor)
    assert verify([forged]).findings


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_no_stretch_can_be_removed_repeated_or_moved(sample: Path, data: st.DataObject) -> None:
    lines = lines_of(sample)
    forged = list(lines)
    start = data.draw(st.integers(0, len(lines) - 1))
    end = data.draw(st.integers(start + 1, len(lines)))
    stretch = forged[start:end]
    if data.draw(st.booleans()):
        del forged[start:end]
    place = data.draw(st.integers(0, len(forged)))
    if data.draw(st.booleans()):
        forged[place:place] = stretch
    copy = sample.with_name("forged.jsonl")
    copy.write_bytes(b"".join(forged))
    shutil.copy(f"{sample}.head", f"{copy}.head")
    assert bool(verify([copy]).findings) == (forged != lines)


def test_a_line_that_was_removed(path: Path) -> None:
    lines = fill(path)
    path.write_bytes(b"".join(lines[:4] + lines[5:]))
    assert texts(path) == ["5: has number 6 where 5 is due: 1 line is missing before"]


def test_lines_that_were_removed_at_the_start(path: Path) -> None:
    path.write_bytes(b"".join(fill(path)[3:]))
    assert texts(path) == ["1: has number 4 where 1 is due: 3 lines are missing before"]


def test_two_lines_that_were_swapped(path: Path) -> None:
    lines = fill(path)
    lines[3], lines[4] = lines[4], lines[3]
    path.write_bytes(b"".join(lines))
    assert [one.line for one in verify([path]).findings] == [4, 5, 6]


def test_a_line_that_was_repeated(path: Path) -> None:
    lines = fill(path)
    path.write_bytes(b"".join(lines[:5] + lines[4:]))
    assert texts(path) == ["6: has number 5 where 6 is due: repeated, moved or put in"]


def test_a_forged_line_breaks_the_next_one(path: Path) -> None:
    lines = fill(path)
    body = {"seq": 5, "time": "x", "tool": "forged", "prev": json.loads(lines[3])["hash"]}
    path.write_bytes(b"".join([*lines[:4], sealed(body), *lines[5:]]))
    assert texts(path) == [
        "6: does not follow from the line before it: one of the two was replaced"
    ]
    path.write_bytes(b"".join([*lines[:4], sealed(body), *lines[4:]]))
    assert texts(path) == ["6: has number 5 where 6 is due: repeated, moved or put in"]


def test_a_tail_that_was_written_anew_is_not_the_anchored_one(path: Path) -> None:
    lines = fill(path)
    assert json.loads(lines[4])["tool"] == "tool 4"
    tail = [line.replace(b"tool 4", b"tool X") for line in lines[4:]]
    path.write_bytes(b"".join(lines[:4] + resealed(tail, json.loads(lines[3])["hash"])))
    assert texts(path) == ["10: is not the one that was anchored"]


def test_an_end_that_was_cut_off(path: Path) -> None:
    lines = fill(path)
    path.write_bytes(b"".join(lines[:8]))
    assert texts(path) == ["8: 2 lines are missing at the end"]
    path.write_bytes(b"".join(lines[:9]) + lines[9][:50])
    assert texts(path) == [
        "10: is torn: its end is missing",
        "10: the line that was anchored, number 10, is not there",
    ]
    path.write_bytes(b"")
    assert texts(path) == ["0: 10 lines are missing at the end"]


def test_without_an_anchor_the_check_says_so(path: Path) -> None:
    fill(path)
    path.with_name("audit.jsonl.head").unlink()
    assert texts(path) == [
        "10: audit.jsonl.head is missing or broken: a missing end would not be noticed"
    ]


def test_rubbish_is_reported_in_bounded_memory(path: Path) -> None:
    fill(path, 3)
    with path.open("ab") as file:
        file.write(b"x" * (16 << 20))
        file.write(b"\nrubbish" * 5000)
    gc.collect()
    tracemalloc.start()
    try:
        report = verify([path])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 100 <= len(report.findings) <= module.LISTED + 3
    assert peak < 6 << 20


def test_a_file_that_is_missing(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify([path])


# What was tampered with while the gateway was stopped stays visible once it runs again


def restart(path: Path) -> None:
    log = AuditLog(path, Clock())
    log.open()
    log.append({"tool": "later"})
    log.close()


def test_a_restart_continues_the_chain(path: Path) -> None:
    fill(path)
    restart(path)
    restart(path)
    assert verify([path]).lines == 12
    assert texts(path) == []


def test_a_cut_end_stays_missing(path: Path) -> None:
    lines = fill(path)
    path.write_bytes(b"".join(lines[:8]))
    restart(path)
    assert told(path)[8]["event"] == "broken"
    assert (told(path)[8]["known"], told(path)[8]["found"]) == (10, 8)
    assert texts(path) == ["9: has number 11 where 9 is due: 2 lines are missing before"]


def test_a_deleted_log_stays_missing(path: Path) -> None:
    fill(path)
    path.unlink()
    restart(path)
    assert texts(path) == ["1: has number 11 where 1 is due: 10 lines are missing before"]


@pytest.mark.parametrize("more", [0, 1, 5])
def test_a_rewritten_tail_stays_broken(path: Path, more: int) -> None:
    """However long the forger makes it: the anchored line is not in it."""
    lines = fill(path)
    tail = [line.replace(b"tool 4", b"tool X") for line in lines[4:]]
    for number in range(11, 11 + more):
        tail.append(sealed({"seq": number, "time": "x", "prev": ""}))
    path.write_bytes(b"".join(lines[:4] + resealed(tail, json.loads(lines[3])["hash"])))
    restart(path)
    assert f"{11 + more}: does not follow" in texts(path)[0]
    restart(path)
    assert len(texts(path)) == 1


def test_a_wholly_rewritten_log_stays_broken(path: Path) -> None:
    lines = resealed(fill(path)[5:], "1" * 64)
    path.write_bytes(b"".join(lines))
    restart(path)
    assert [text[:2] for text in texts(path)] == ["1:", "6:"]


@pytest.mark.parametrize("anchor", [None, b"", b"rubbish", b'{"seq":5,"hash":"0"}\n'])
def test_an_anchor_that_is_gone_or_broken_is_put_on_record(
    path: Path, anchor: bytes | None
) -> None:
    lines = fill(path)
    path.write_bytes(b"".join(lines[:8]))
    head = path.with_name("audit.jsonl.head")
    head.unlink() if anchor is None else head.write_bytes(anchor)
    restart(path)
    assert texts(path) == [
        "9: the anchor was gone when the gateway started here: lines may be missing"
    ]


def test_a_break_further_up_neither_stops_the_service_nor_is_mended(path: Path) -> None:
    lines = fill(path)
    lines[4] = lines[4].replace(b"tool", b"fool")
    path.write_bytes(b"".join(lines))
    restart(path)
    assert verify([path]).lines == 11
    assert texts(path) == ["5: was changed: its hash does not fit"]


# Crashes


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("rest", [b'{"s', b'{"seq":', None])
def test_a_line_that_a_crash_tore(
    path: Path, clock: Clock, before: int, rest: bytes | None
) -> None:
    log = AuditLog(path, clock)
    log.open()
    for _ in range(before + 1):
        log.append({"a": 1})
    crash(log)
    whole = lines_of(path)
    torn = whole[-1][:-20] if rest is None else rest
    path.write_bytes(b"".join(whole[:-1]) + torn)
    restart(path)
    assert texts(path) == []
    note = told(path)[before]
    assert (note["event"], note["bytes"]) == ("recovered", len(torn))
    kept = path.with_name(note["kept"])
    assert kept.read_bytes() == torn
    assert kept.name.startswith(f"audit.jsonl.torn-{before + 1}-")
    assert kept.stat().st_mode & 0o777 == 0o600


def test_a_last_line_that_is_whole_but_wrong_is_cut_off_too(path: Path, clock: Clock) -> None:
    """After a power failure a file may be as long as it was, with zeros in it."""
    log = AuditLog(path, clock)
    log.open()
    log.append({})
    log.anchor()
    log.append({"text": "x" * 100})
    crash(log)
    path.write_bytes(path.read_bytes().replace(b"x" * 100, b"\0" * 100))
    restart(path)
    assert told(path)[1]["event"] == "recovered"
    assert texts(path) == []


def test_lines_after_the_anchor_outlive_a_crash(path: Path, clock: Clock) -> None:
    log = AuditLog(path, clock)
    log.open()
    for number in range(300):
        if number in (0, 5):
            log.anchor()
        log.append({"text": "x" * 200})
    crash(log)
    restart(path)
    assert verify([path]).lines == 301
    assert texts(path) == []


def test_a_process_that_dies_in_the_middle_of_a_write(path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from gateway.audit import AuditLog
log = AuditLog(Path(sys.argv[1]))
log.open()
for _ in range(5):
    log.append({"a": 1})
write = os.write
def die(fd, data):
    write(fd, data[:100])
    os._exit(7)
os.write = die
log.append({"a": 2})
"""
    ended = subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=30)
    assert ended.returncode == 7
    assert not path.read_bytes().endswith(b"\n")
    restart(path)
    assert [line.get("event") for line in told(path)] == [None] * 5 + ["recovered", None]
    assert texts(path) == []


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root only")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)  # also when a test left files open


def test_a_full_disk_and_after_it(small_disk: Path, clock: Clock) -> None:
    path = small_disk / "audit.jsonl"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (40 << 10))
    log = AuditLog(path, clock)
    log.open()
    seq = 0
    with pytest.raises(AuditError, match=r"^audit log: No space left on device$"):
        for _ in range(10_000):
            seq = log.append({"text": "x" * 100})
    assert log.fault == "audit log: No space left on device"
    for _ in range(3):
        with pytest.raises(AuditError):
            log.append({"text": "y" * 100})
    assert len(lines_of(path)) == seq
    assert path.read_bytes().endswith(b"}\n")  # not half a line
    with pytest.raises(AuditError, match="No space"):
        log.anchor()
    ballast.unlink()
    assert log.append({"text": "goes on"}) == seq + 1
    assert log.fault is None
    log.close()
    assert texts(path) == []


def test_a_rotation_on_a_full_disk(small_disk: Path, clock: Clock) -> None:
    path = small_disk / "audit.jsonl"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * (40 << 10))
    log = AuditLog(path, clock)
    log.open()
    with pytest.raises(AuditError):
        for _ in range(10_000):
            log.append({"text": "x" * 100})
    old = path.rename(small_disk / "audit.jsonl.1")
    with pytest.raises(AuditError, match="No space"):
        log.reopen()
    with pytest.raises(AuditError, match="No space"):
        log.append({"text": "again"})
    ballast.unlink()
    log.append({"text": "goes on"})
    log.close()
    assert [line.get("event") for line in told(path)] == ["rotated", None]
    assert texts(old, path) == []


def test_a_limit_on_the_size_of_files(tmp_path: Path, clock: Clock) -> None:
    """The kernel takes a part of the line, then nothing: as a disk does that is nearly full."""
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, clock)
    log.open()
    log.append({})
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, before[1]))
    try:
        with pytest.raises(AuditError, match="File too large"):
            log.append({"a": 1})
        assert path.stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.append({"a": 2}) == 2
    log.close()
    assert texts(path) == []


class Disk:
    """The system's write to the log, which takes so many bytes and then fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room: int | None = None
        self.truncates = True
        self._write, self._truncate = os.write, os.ftruncate
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "ftruncate", self.ftruncate)

    def write(self, fd: int, data: bytes) -> int:
        if self.room is None:
            return self._write(fd, data)
        taken = data[: self.room]
        self.room -= len(taken)
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(fd, taken)

    def ftruncate(self, fd: int, size: int) -> None:
        if not self.truncates:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._truncate(fd, size)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("room", [0, 1, 7, 100, 200])
def test_half_a_line_is_taken_back(log: AuditLog, path: Path, disk: Disk, room: int) -> None:
    log.append({"a": 1})
    before = path.read_bytes()
    disk.room = room
    with pytest.raises(AuditError, match="No space left"):
        log.append({"text": "x" * 100})
    assert path.read_bytes() == before
    disk.room = None
    assert log.append({"a": 2}) == 2
    assert log.fault is None
    log.anchor()
    assert texts(path) == []


def test_half_a_line_that_cannot_be_taken_back_is_cut_off_later(
    log: AuditLog, path: Path, disk: Disk
) -> None:
    log.append({"a": 1})
    disk.room, disk.truncates = 50, False
    for _ in range(2):
        with pytest.raises(AuditError):
            log.append({"a": 2})
    assert not path.read_bytes().endswith(b"\n")
    disk.room, disk.truncates = None, True
    log.append({"a": 3})
    log.anchor()
    assert [line.get("event") for line in told(path)] == [None, "recovered", None]
    assert texts(path) == []


def test_an_administrator_who_empties_the_log_of_a_full_disk(
    log: AuditLog, path: Path, disk: Disk
) -> None:
    log.append({"a": 1})
    disk.room = 50
    os.truncate(path, 0)
    with pytest.raises(AuditError):
        log.append({"a": 2})
    disk.room = None
    log.append({"a": 3})
    log.anchor()
    assert b"\0" not in path.read_bytes()
    assert [line.get("event") for line in told(path)] == ["recovered", "broken", None]
    assert texts(path) == ["1: has number 2 where 1 is due: 1 line is missing before"]


# Rotation, and a file that changes underneath


def test_rotation(log: AuditLog, path: Path) -> None:
    log.append({"a": 1})
    old = path.with_name("audit.jsonl.1")
    path.rename(old)
    log.append({"a": 2})  # nobody told us yet
    log.reopen()
    assert texts(path) == []  # what is anchored is the old file's last line
    assert log.append({"a": 3}) == 4
    log.anchor()
    assert [line["seq"] for line in told(old)] == [1, 2]
    assert [line.get("event") for line in told(path)] == ["rotated", None]
    assert texts(old, path) == []
    assert texts(path) == []  # older files may be given up
    assert verify([path]).first == 3
    oldest = path.with_name("audit.jsonl.2")
    old.rename(oldest)
    path.rename(old)
    log.reopen()
    log.close()
    assert texts(oldest, old, path) == []
    assert texts(oldest, path) == [
        "1: audit.jsonl: has number 5 where 3 is due: 2 lines are missing before"
    ]
    assert texts(old, oldest, path)


def test_rotation_where_the_new_file_is_there_already(log: AuditLog, path: Path) -> None:
    log.append({"a": 1})
    old = path.rename(path.with_name("audit.jsonl.1"))
    path.touch(mode=0o600)
    log.reopen()
    log.append({"a": 2})
    log.close()
    assert texts(old, path) == []
    assert told(path)[0]["event"] == "rotated"


def test_an_empty_log_may_be_rotated_and_no_other_begins_anew(log: AuditLog, path: Path) -> None:
    old = path.rename(path.with_name("audit.jsonl.1"))
    log.reopen()
    log.close()
    assert texts(path) == texts(old, path) == []
    line = sealed({"seq": 1, "time": "x", "event": "rotated", "prev": "1" * 64})
    digest = json.loads(line)["hash"]
    path.write_bytes(line)
    path.with_name("audit.jsonl.head").write_text(f'{{"seq":1,"hash":"{digest}"}}\n')
    assert texts(path) == [
        "1: does not follow from the line before it: one of the two was replaced"
    ]


def test_rotation_while_the_gateway_is_stopped(path: Path) -> None:
    fill(path)
    old = path.rename(path.with_name("audit.jsonl.1"))
    restart(path)
    assert texts(old, path) == []
    assert texts(path)  # alone it cannot be told from a log that was deleted


def test_rotation_then_a_crash(log: AuditLog, path: Path) -> None:
    log.append({"a": 1})
    old = path.rename(path.with_name("audit.jsonl.1"))
    log.reopen()
    for _ in range(3):
        log.append({"a": 2})
    crash(log)
    restart(path)
    assert texts(old, path) == []


def test_a_hangup_without_a_rotation_changes_nothing(log: AuditLog, path: Path) -> None:
    log.append({})
    log.reopen()
    log.append({})
    assert [line["seq"] for line in told(path)] == [1, 2]


def test_a_rotation_that_fails_is_tried_again(log: AuditLog, path: Path) -> None:
    log.append({"a": 1})
    old = path.rename(path.with_name("audit.jsonl.1"))
    path.mkdir()
    with pytest.raises(AuditError, match="directory"):
        log.reopen()
    with pytest.raises(AuditError, match="directory"):
        log.append({"a": 2})
    path.rmdir()
    assert log.append({"a": 3}) == 3
    log.close()
    assert texts(old, path) == []


@pytest.mark.parametrize("idle", [True, False])
def test_a_log_that_is_deleted_underneath(
    log: AuditLog, path: Path, clock: Clock, idle: bool
) -> None:
    log.append({"a": 1})
    path.unlink()
    log.append({"a": 2})  # within the second: goes with the file, and is missed
    clock.tick()
    if idle:
        log.anchor()
    else:
        log.append({"a": 3})
    assert path.stat().st_mode & 0o777 == 0o600
    log.close()
    assert told(path)[0]["event"] == "broken"
    assert texts(path) == ["1: has number 3 where 1 is due: 2 lines are missing before"]


@pytest.mark.parametrize("edit", ["cut", "forged", "changed", "half"])
def test_a_log_that_is_changed_underneath(
    log: AuditLog, path: Path, clock: Clock, edit: str
) -> None:
    for _ in range(5):
        log.append({"tool": "read"})
    lines = lines_of(path)
    match edit:
        case "cut":
            path.write_bytes(b"".join(lines[:3]))
        case "forged":
            body = {"seq": 6, "time": "x", "prev": json.loads(lines[-1])["hash"]}
            path.write_bytes(b"".join(lines) + sealed(body))
        case "changed":  # as `sed -i` does: another file
            other = path.with_name("other")
            other.write_bytes(b"".join(lines).replace(b"read", b"feed", 1))
            other.chmod(0o600)
            other.replace(path)
        case "half":
            path.write_bytes(b"".join(lines)[:-10])
    clock.tick()
    log.append({"tool": "next"})
    log.append({"tool": "last"})
    log.close()
    at = {"cut": 4, "forged": 7, "changed": 1, "half": 5}[edit]
    assert [one.line for one in verify([path]).findings] == [at]
    assert told(path)[-1]["tool"] == "last"


def test_an_old_log_with_its_old_anchor_lacks_a_head_kept_elsewhere(path: Path) -> None:
    """The limit of what the files alone can tell."""
    fill(path)
    head = path.with_name("audit.jsonl.head")
    before = path.read_bytes(), head.read_bytes()
    restart(path)
    kept_elsewhere = verify([path]).head.encode()
    path.write_bytes(before[0])
    head.write_bytes(before[1])
    assert texts(path) == []
    assert kept_elsewhere not in path.read_bytes()


# Who may write, and what is written to


def test_a_second_writer_is_refused(log: AuditLog, path: Path) -> None:
    log.append({"a": 1})
    second = AuditLog(path)
    with pytest.raises(AuditError, match="another process"):
        second.open()
    with pytest.raises(AuditError, match="not open"):
        second.append({"b": 1})
    assert log.append({"a": 2}) == 2
    log.close()
    second.open()
    assert second.append({"b": 1}) == 3
    second.close()
    assert texts(path) == []


def test_a_second_process_is_refused_even_after_a_rotation(log: AuditLog, path: Path) -> None:
    log.append({"a": 1})
    path.rename(path.with_name("audit.jsonl.1"))
    program = (
        "import sys; from pathlib import Path; from gateway.audit import AuditLog;"
        "AuditLog(Path(sys.argv[1])).open()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(path)], check=False, capture_output=True, timeout=30
    )
    assert ended.returncode == 1
    assert b"another process writes" in ended.stderr
    assert not path.exists()


def test_all_files_are_private(path: Path) -> None:
    before = os.umask(0)
    try:
        fill(path)
    finally:
        os.umask(before)
    names = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
    assert names == {"audit.jsonl": 0o600, "audit.jsonl.head": 0o600, "audit.jsonl.lock": 0o600}


@pytest.mark.parametrize("mode", [0o602, 0o604, 0o620, 0o666])
def test_a_log_that_is_open_to_others_is_refused(path: Path, mode: int) -> None:
    fill(path)
    path.chmod(mode)
    log = AuditLog(path)
    with pytest.raises(AuditError, match=f"open to others.*{mode:04o}"):
        log.open()
    path.chmod(0o640)
    log.open()
    log.close()


def test_a_log_that_is_opened_to_others_in_a_rotation_is_refused(log: AuditLog, path: Path) -> None:
    log.append({})
    path.rename(path.with_name("audit.jsonl.1"))
    path.touch()
    path.chmod(0o666)
    with pytest.raises(AuditError, match="open to others"):
        log.reopen()


@pytest.mark.parametrize("name", ["audit.jsonl", "audit.jsonl.lock"])
def test_a_symbolic_link_is_not_followed(path: Path, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.touch(mode=0o600)
    (tmp_path / name).symlink_to(victim)
    with pytest.raises(AuditError, match="symbolic links"):
        AuditLog(path).open()
    assert victim.read_bytes() == b""


@pytest.mark.parametrize(
    "content", [b"root:x:0:0\n", b"x", b"\n", b"x" * (3 << 20), b'{"seq":' + b"\n" * (3 << 20)]
)
def test_a_file_that_is_not_a_log_is_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(AuditError, match="does not end like an audit log"):
        AuditLog(path).open()
    assert path.read_bytes() == content


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="No such file"):
        AuditLog(tmp_path / "missing" / "audit.jsonl").open()


def test_a_closed_log_takes_nothing(log: AuditLog) -> None:
    log.append({})
    log.close()
    log.close()
    with pytest.raises(AuditError, match="not open"):
        log.append({})
    for call in (log.anchor, log.reopen):
        with pytest.raises(AuditError, match="not open"):
            call()


def test_no_file_stays_open(path: Path) -> None:
    fill(path)
    before = len(list(Path("/dev/fd").iterdir()))
    path.chmod(0o666)
    for _ in range(3):
        with contextlib.suppress(AuditError):
            AuditLog(path).open()
    path.chmod(0o600)
    restart(path)
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_the_anchor_is_written_only_when_something_changed(
    log: AuditLog, path: Path, clock: Clock
) -> None:
    head = path.with_name("audit.jsonl.head")
    log.append({})
    log.anchor()
    first = head.stat().st_ino
    clock.tick()
    log.anchor()
    assert head.stat().st_ino == first
    assert json.loads(head.read_bytes())["seq"] == 1
    log.append({})
    log.anchor()
    assert json.loads(head.read_bytes()) == {"seq": 2, "hash": told(path)[1]["hash"]}


def test_the_log_is_on_the_disk_before_its_anchor(
    log: AuditLog, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    true = os.fsync

    def fsync(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        true(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    log.append({})
    assert synced == []
    log.anchor()
    head = path.with_name("audit.jsonl.head")
    assert synced == [one.stat().st_ino for one in (path, head, path.parent)]
