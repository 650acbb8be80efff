"""The store in SQLite, and what both stores share: rates, replays, lost memory, broken files."""

import asyncio
import itertools
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gateway import state_sqlite
from gateway.rate import Rate, gcra
from gateway.state import (
    Admission,
    Claim,
    StateError,
    Verdict,
    forgotten,
    prepare,
    state_for,
)
from gateway.state_redis import RedisState, unfit
from gateway.state_sqlite import SqliteState
from keys.token import LEEWAY

NOW = 1_800_000_000.25
WIDE = Rate(1000.0, 1000)
SECOND = 1_000_000

_numbers = itertools.count()


def fresh(issued: float = NOW, life: int = 60) -> Claim:
    """A claim that nobody has made."""
    return Claim("k" * 43, f"{next(_numbers):022}", int(issued), int(issued) + life)


Open = Callable[..., Awaitable[SqliteState]]


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[Open]:
    """Open the store in tmp_path/state, or elsewhere; its memory begins a minute before NOW."""
    async with AsyncExitStack() as stack:

        async def begin(directory: Path = tmp_path / "state") -> SqliteState:
            prepare(directory, NOW - 60)
            state = SqliteState(directory)
            await state.open()
            stack.push_async_callback(state.close)
            return state

        yield begin


async def verdict(state: SqliteState, claim: Claim, now: float = NOW) -> Verdict:
    return (await state.admit("laptop", WIDE, claim, now)).verdict


# The rate, pure


def admitted(times: list[int], interval: int, burst: int) -> list[int]:
    due, let_in = 0, []
    for now in times:
        due, wait = gcra(due, now, interval, burst, 5 * SECOND)
        if not wait:
            let_in.append(now)
    return let_in


def test_a_burst_and_then_the_pace() -> None:
    start = int(NOW * SECOND)
    assert len(admitted([start] * 50, SECOND // 10, 20)) == 20
    each_ms = range(start, start + 10 * SECOND, 1000)
    assert len(admitted(list(each_ms), SECOND // 10, 20)) == 20 + 99
    steady = range(start, start + 100 * SECOND, SECOND // 10)
    assert len(admitted(list(steady), SECOND // 10, 1)) == 1000


def test_the_wait_is_exact() -> None:
    now = int(NOW * SECOND)
    due, _ = gcra(0, now, 250_000, 1, 0)
    same, wait = gcra(due, now + 100_000, 250_000, 1, 0)
    assert (same, wait) == (due, 150_000)
    assert gcra(due, now + 100_000 + wait - 1, 250_000, 1, 0)[1] == 1
    assert gcra(due, now + 100_000 + wait, 250_000, 1, 0)[1] == 0


@given(
    some.lists(some.integers(0, 3 * SECOND), max_size=200),
    some.integers(1, 2 * SECOND),
    some.integers(1, 30),
)
def test_no_window_ever_holds_more_than_its_share(
    gaps: list[int], interval: int, burst: int
) -> None:
    times = list(itertools.accumulate(gaps, initial=int(NOW * SECOND)))
    let_in = admitted(times, interval, burst)
    for first, last in itertools.combinations(range(len(let_in)), 2):
        window = let_in[last] - let_in[first]
        assert last - first + 1 <= burst + window // interval


@given(
    some.integers(0, 2 * int(NOW * SECOND)), some.integers(1, 10 * SECOND), some.integers(1, 1000)
)
def test_who_waits_as_long_as_told_gets_in(due: int, interval: int, burst: int) -> None:
    now = int(NOW * SECOND)
    _, wait = gcra(due, now, interval, burst, 5 * SECOND)
    assert 0 <= wait <= interval + 5 * SECOND
    assert gcra(due, now + wait, interval, burst, 5 * SECOND)[1] == 0


def test_a_clock_put_back_an_hour_does_not_lock_a_lane() -> None:
    now = int(NOW * SECOND)
    due = now
    for _ in range(20):
        due, wait = gcra(due, now, SECOND, 20, 5 * SECOND)
        assert not wait
    assert gcra(due, now - 4 * SECOND, SECOND, 20, 5 * SECOND)[1] > 0  # within the leeway: it holds
    due, wait = gcra(due, now - 3600 * SECOND, SECOND, 20, 5 * SECOND)
    assert not wait
    assert due == now - 3599 * SECOND


@pytest.mark.parametrize(
    ("per_second", "burst"),
    [(0, 1), (-1, 1), (1, 0), (float("nan"), 1), (float("inf"), 1), (1e-300, 1), (1, 10**9)],
)
def test_what_is_no_rate_is_refused(per_second: float, burst: int) -> None:
    with pytest.raises(ValueError, match="a rate"):
        Rate(per_second, burst)


def test_microseconds_between_requests() -> None:
    assert Rate(10, 1).interval == 100_000
    assert Rate(3, 1).interval == 333_333
    assert Rate(1e9, 1).interval == 1


# Lost memory, pure


@given(some.floats(0, LEEWAY), some.floats(0, 300), some.floats(0, 1e9))
def test_no_token_made_before_the_loss_is_taken(ahead: float, earlier: float, lost: float) -> None:
    made = int(lost - earlier + ahead)  # by a clock that is ahead, in whole seconds
    assert forgotten(made, lost, LEEWAY)


@given(some.floats(0, LEEWAY), some.floats(0, 1e9))
def test_tokens_are_taken_again_soon_after(behind: float, lost: float) -> None:
    assert not forgotten(int(lost + 2 * LEEWAY + 1.01 - behind), lost, LEEWAY)


# Claims


async def test_a_token_serves_once(opened: Open) -> None:
    state = await opened()
    claim = fresh()
    assert await verdict(state, claim) is Verdict.ADMITTED
    assert await verdict(state, claim) is Verdict.REPLAYED
    assert await verdict(state, Claim("other", claim.jti, claim.issued, claim.expires)) is (
        Verdict.ADMITTED
    )
    assert await verdict(state, fresh()) is Verdict.ADMITTED
    assert await state.admit("laptop", WIDE, None, NOW) == Admission(Verdict.ADMITTED)


async def test_of_200_at_once_one_gets_in(opened: Open) -> None:
    state = await opened()
    claim = fresh()
    verdicts = await asyncio.gather(*(verdict(state, claim) for _ in range(200)))
    assert verdicts.count(Verdict.ADMITTED) == 1
    assert verdicts.count(Verdict.REPLAYED) == 199


async def test_a_claim_stays_taken_where_the_lane_is_full(opened: Open) -> None:
    state = await opened()
    slow = Rate(1, 1)
    claim = fresh()
    assert (await state.admit("laptop", slow, None, NOW)).verdict is Verdict.ADMITTED
    limited = await state.admit("laptop", slow, claim, NOW + 0.25)
    assert limited == Admission(Verdict.LIMITED, 0.75)
    assert (await state.admit("laptop", slow, claim, NOW + 2)).verdict is Verdict.REPLAYED


async def test_lanes_do_not_touch(opened: Open) -> None:
    state = await opened()
    slow = Rate(1, 1)
    for lane in ("laptop", "laptop/stop_trading", "desk"):
        assert (await state.admit(lane, slow, None, NOW)).verdict is Verdict.ADMITTED
        assert (await state.admit(lane, slow, None, NOW)).verdict is Verdict.LIMITED


async def test_a_replay_costs_the_client_nothing(opened: Open) -> None:
    state = await opened()
    claim = fresh()
    slow = Rate(1, 2)
    await state.admit("laptop", slow, claim, NOW)
    for _ in range(10):
        assert (await state.admit("laptop", slow, claim, NOW)).verdict is Verdict.REPLAYED
    assert (await state.admit("laptop", slow, fresh(), NOW)).verdict is Verdict.ADMITTED


# Restarts


async def test_a_restart_forgets_nothing(opened: Open) -> None:
    state = await opened()
    used, slow = fresh(), Rate(0.1, 1)
    assert await verdict(state, used) is Verdict.ADMITTED
    assert (await state.admit("slow", slow, None, NOW)).verdict is Verdict.ADMITTED
    await state.close()

    state = await opened()
    assert await verdict(state, used) is Verdict.REPLAYED
    assert await verdict(state, fresh()) is Verdict.ADMITTED
    again = await state.admit("slow", slow, None, NOW + 1)
    assert again == Admission(Verdict.LIMITED, 9.0)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from gateway.rate import Rate
from gateway.state import Claim
from gateway.state_sqlite import SqliteState

async def main():
    state = SqliteState(Path(sys.argv[1]))
    await state.open()
    for number in range(300):
        claim = Claim("k", str(number), 1_800_000_000, 1_800_000_060)
        print((await state.admit("x", Rate(1e3, 1000), claim, 1_800_000_000.0)).verdict.value)
    for second in (2.0, 2.1):
        await state.admit("slow", Rate(0.1, 1), None, 1_800_000_000 + second)
        await state.admit("x", Rate(1e3, 1000), None, 1_800_000_001 + second)
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_killed_process_forgets_no_claim(opened: Open, tmp_path: Path) -> None:
    directory = tmp_path / "state"
    prepare(directory, NOW - 60)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(directory)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["admitted"] * 300
    state = await opened()
    for number in range(300):
        claim = Claim("k", str(number), 1_800_000_000, 1_800_000_060)
        assert await verdict(state, claim) is Verdict.REPLAYED
    assert await verdict(state, fresh()) is Verdict.ADMITTED
    slow = await state.admit("slow", Rate(0.1, 1), None, 1_800_000_004.0)
    assert slow.verdict is Verdict.LIMITED


async def test_a_second_process_is_refused(opened: Open, tmp_path: Path) -> None:
    state = await opened()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "state")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert "StateError" in done.stderr
    assert "held by another process" in done.stderr
    assert await verdict(state, fresh()) is Verdict.ADMITTED


async def test_a_second_store_in_this_process_is_refused(opened: Open, tmp_path: Path) -> None:
    state = await opened()
    with pytest.raises(StateError, match="held by another process"):
        await SqliteState(tmp_path / "state").open()
    prepare(tmp_path / "state", NOW)  # and init beside a running gateway changes nothing
    assert await verdict(state, fresh()) is Verdict.ADMITTED


# Lost memory


async def test_a_new_file_takes_only_tokens_made_after_it(tmp_path: Path) -> None:
    state = SqliteState(tmp_path / "state")
    await state.open()
    assert await verdict(state, fresh(NOW)) is Verdict.FORGOTTEN
    assert await verdict(state, fresh(NOW + 5)) is Verdict.FORGOTTEN  # by a clock 5 s ahead
    assert await verdict(state, fresh(NOW + 6), NOW + 6) is Verdict.ADMITTED
    # A token without a claim has nothing to forget.
    assert await state.admit("laptop", WIDE, None, NOW) == Admission(Verdict.ADMITTED)
    await state.close()


async def test_no_token_is_used_on_both_sides_of_a_loss(opened: Open, tmp_path: Path) -> None:
    state = await opened()
    used = [fresh(NOW - 30), fresh(NOW), fresh(NOW + LEEWAY)]
    assert {await verdict(state, claim) for claim in used} == {Verdict.ADMITTED}
    await state.close()
    shutil.rmtree(tmp_path / "state")

    state = SqliteState(tmp_path / "state")
    await state.open()
    for now in (NOW + 0.01, NOW + 3, NOW + 20, NOW + 64):
        for claim in used:
            assert await verdict(state, claim, now) in (Verdict.FORGOTTEN, Verdict.REPLAYED)
    await state.close()


async def test_the_moment_of_init_counts_not_that_of_the_start(tmp_path: Path) -> None:
    prepare(tmp_path / "state", NOW - 10)
    prepare(tmp_path / "state", NOW)  # again: what is there stays
    state = SqliteState(tmp_path / "state")
    await state.open()
    assert await verdict(state, fresh(NOW)) is Verdict.ADMITTED
    await state.close()


async def test_after_another_boot_the_memory_begins_anew(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may take the last claims with it, because no claim waits for the disk."""
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(state_sqlite, "_BOOT", boot)
    boot.write_text("first\n")
    state = await opened()
    used = fresh()
    assert await verdict(state, used) is Verdict.ADMITTED
    await state.close()

    boot.write_text("second\n")
    state = await opened()
    assert await verdict(state, used) is Verdict.REPLAYED  # what is known is still known
    assert await verdict(state, fresh()) is Verdict.FORGOTTEN
    assert await verdict(state, fresh(NOW + 6), NOW + 6) is Verdict.ADMITTED
    await state.close()

    boot.unlink()  # a system that does not tell
    state = await opened()
    assert await verdict(state, fresh(NOW + 7), NOW + 7) is Verdict.FORGOTTEN


# Clocks, and what is forgotten on purpose


async def test_an_expired_claim_is_never_admitted(opened: Open) -> None:
    state = await opened()
    old = fresh(NOW - 50, life=10)
    assert await verdict(state, old) is Verdict.FORGOTTEN
    assert await verdict(state, fresh(NOW - 50, life=46)) is Verdict.ADMITTED  # within the leeway


async def test_expired_claims_are_deleted_and_no_others(opened: Open, tmp_path: Path) -> None:
    state = await opened()
    early = [fresh() for _ in range(state_sqlite.SWEEP)]
    for claim in early:
        await verdict(state, claim)
    kept = fresh(NOW + 60)
    later = NOW + 60 + 2 * LEEWAY + 1
    assert await verdict(state, kept, later) is Verdict.ADMITTED
    for _ in range(state_sqlite.SWEEP):
        assert await verdict(state, fresh(later), later) is Verdict.ADMITTED
    assert await verdict(state, kept, later) is Verdict.REPLAYED
    await state.close()
    with sqlite3.connect(tmp_path / "state" / "state.db") as db:
        [(count,)] = db.execute("SELECT count(*) FROM claims")
    db.close()
    assert count <= state_sqlite.SWEEP + 1


async def test_a_clock_that_jumped_and_came_back_opens_no_window(opened: Open) -> None:
    state = await opened()
    used = fresh()
    assert await verdict(state, used) is Verdict.ADMITTED
    year = NOW + 365 * 86_400
    for _ in range(2 * state_sqlite.SWEEP):  # what looks expired is deleted
        await verdict(state, fresh(year), year)
    assert await verdict(state, used, NOW + 1) is Verdict.FORGOTTEN
    assert await verdict(state, fresh(NOW + 1), NOW + 1) is Verdict.FORGOTTEN
    assert await verdict(state, fresh(NOW + 8), NOW + 8) is Verdict.ADMITTED


async def test_rates_are_written_once_a_second_and_idle_lanes_dropped(
    opened: Open, tmp_path: Path
) -> None:
    state = await opened()
    for number in range(50):
        await state.admit(f"lane{number}", Rate(10, 1), None, NOW)
    await state.admit("busy", Rate(0.01, 1), None, NOW + 2)
    await state.admit("last", WIDE, None, NOW + 4)
    await state.close()
    with sqlite3.connect(tmp_path / "state" / "state.db") as db:
        lanes = {lane for (lane,) in db.execute("SELECT lane FROM lanes")}
    db.close()
    assert "busy" in lanes
    assert lanes <= {"busy", "last"}


# The file


@pytest.mark.parametrize("umask", [0o000, 0o277])
async def test_the_file_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        state = SqliteState(tmp_path / "state")
        await state.open()
        await verdict(state, fresh())
    finally:
        os.umask(before)
    files = list((tmp_path / "state").iterdir())
    assert {file.name for file in files} == {"state.db", "state.db-wal"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) & 0o077 == 0
    await state.close()


@pytest.mark.parametrize("which", ["state.db", "state.db-wal"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_file_that_goes_away_while_it_runs(
    opened: Open, tmp_path: Path, which: str, how: str
) -> None:
    state = await opened()
    assert await verdict(state, fresh()) is Verdict.ADMITTED
    file = tmp_path / "state" / which
    if how == "replaced":
        shutil.copy(file, tmp_path / "copy")
        (tmp_path / "copy").replace(file)
    else:
        file.unlink()
    with pytest.raises(StateError, match=f"{which} was deleted or replaced; restart"):
        await verdict(state, fresh())
    with pytest.raises(StateError, match="was deleted or replaced"):  # when the rates are written
        await state.admit("laptop", WIDE, None, NOW + 2)


@pytest.mark.parametrize(
    "content", [b"not a database at all, but longer than a header" * 20, b"SQLite format 3\0" * 256]
)
async def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "state.db"
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(StateError, match=r"state\.db: "):
        await SqliteState(tmp_path).open()
    assert file.read_bytes() == content


async def test_a_damaged_page_is_seen_at_open(opened: Open, tmp_path: Path) -> None:
    state = await opened()
    for _ in range(500):
        await verdict(state, fresh())
    await state.close()
    file = tmp_path / "state" / "state.db"
    with file.open("r+b") as db:
        db.seek(4096)
        db.write(os.urandom(8 * 4096))
    with pytest.raises(StateError, match="malformed"):
        await SqliteState(tmp_path / "state").open()


async def test_damage_while_it_runs_denies(opened: Open, tmp_path: Path) -> None:
    """Over the database and its WAL, in place; the cache is out of the way."""
    state = await opened()
    for _ in range(2000):
        await verdict(state, fresh())
    assert state._db is not None
    state._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    state._db.execute("PRAGMA shrink_memory")
    file = tmp_path / "state" / "state.db"
    # Written through another name, in another process: closing it here would release the locks.
    script = "import os,sys; f=open(sys.argv[1],'r+b'); f.seek(4096); f.write(os.urandom(1<<20))"
    subprocess.run([sys.executable, "-c", script, str(file)], check=True, timeout=30)
    with pytest.raises(StateError, match="malformed"):
        for _ in range(50):
            await verdict(state, fresh())


async def test_a_store_of_another_version(opened: Open, tmp_path: Path) -> None:
    await (await opened()).close()
    with sqlite3.connect(tmp_path / "state" / "state.db") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StateError, match="not written by this version"):
        await SqliteState(tmp_path / "state").open()


async def test_a_file_that_others_may_write(opened: Open, tmp_path: Path) -> None:
    await (await opened()).close()
    file = tmp_path / "state" / "state.db"
    file.chmod(0o660)
    with pytest.raises(StateError, match=f"chmod 600 {file}"):
        await SqliteState(tmp_path / "state").open()


async def test_a_link_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "state.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="not a regular file"):
        await SqliteState(tmp_path).open()
    assert not (tmp_path / "elsewhere").exists()


async def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(StateError, match="taken"):
        await SqliteState(tmp_path / "taken").open()
    with pytest.raises(StateError):
        prepare(tmp_path / "taken" / "state", NOW)


async def test_a_store_that_is_not_open_denies(tmp_path: Path) -> None:
    state = SqliteState(tmp_path)
    with pytest.raises(StateError, match="not open"):
        await verdict(state, fresh())
    await state.close()


async def test_a_full_database_denies_and_recovers(opened: Open) -> None:
    state = await opened()
    assert state._db is not None
    [pages] = state._db.execute("PRAGMA page_count").fetchone()
    state._db.execute(f"PRAGMA max_page_count = {pages}")
    taken: list[Claim] = []
    with pytest.raises(StateError, match="full"):
        for _ in range(1000):
            claim = fresh()
            await verdict(state, claim)
            taken.append(claim)
    with pytest.raises(StateError, match="full"):
        await verdict(state, claim)
    assert await verdict(state, taken[0]) is Verdict.REPLAYED
    state._db.execute("PRAGMA max_page_count = 100000")
    assert await verdict(state, claim) is Verdict.ADMITTED


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root and its capability")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


async def test_a_full_disk_denies_and_recovers(opened: Open, small_disk: Path) -> None:
    state = await opened(small_disk / "state")
    await verdict(state, fresh())
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space"):
        filler.write_bytes(bytes(1 << 20))
    with pytest.raises(StateError, match="full"):
        for _ in range(100):
            claim = fresh()
            await verdict(state, claim)
    with pytest.raises(StateError, match="full"):
        for number in range(100):  # the rates of so many lanes find no room either
            await state.admit(f"{number}" * 1000, Rate(0.01, 1), None, NOW + number)
    assert state._db is not None
    assert not state._db.in_transaction
    filler.unlink()
    assert await verdict(state, claim, NOW + 1) is Verdict.ADMITTED
    assert await verdict(state, claim, NOW + 1) is Verdict.REPLAYED
    await state.close()


async def test_a_read_only_disk_denies(opened: Open, small_disk: Path) -> None:
    state = await opened(small_disk / "state")
    await state.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StateError):
        await SqliteState(small_disk / "state").open()
    with pytest.raises(StateError):
        await SqliteState(small_disk / "new").open()


async def test_close_never_raises(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = await opened()
    await state.admit("laptop", Rate(0.01, 1), None, NOW)
    shutil.rmtree(tmp_path / "state")
    await state.close()
    assert "rates were not kept" in caplog.text
    await state.close()


# The setting


def test_the_setting_names_a_store(tmp_path: Path) -> None:
    assert isinstance(state_for("sqlite", tmp_path), SqliteState)
    for url in (
        "redis://127.0.0.1",
        "redis://:secret@host:6380/3",
        "redis://[::1]:6379/0",
        "rediss://user:secret@host/0?ssl_ca_certs=/ca.pem",
        "unix:///run/redis.sock?db=2",
        "unix://:secret@/run/redis.sock",
    ):
        assert isinstance(state_for(url, tmp_path), RedisState)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url",
    [
        "",
        "SQLITE",
        "sqlite:///s3cret",
        "memory",
        "http://:s3cret@host",
        "redis://",
        "redis:s3cret@host",
        "redis://:s3cret@",
        "redis://:s3cret@host:port",
        "redis://:s3cret@host:99999",
        "redis://:s3/cret@host",
        "redis://:s3#cret@host",
        "redis://:s3?cret@host",
        "redis://:s3cret@host/zero",
        "redis://:s3cret@host/0/1",
        "redis://:s3cret@[host",
        "redis://:s3cret@host?db=1",
        "redis://:s3cret@host?socket_timeout=100",
        "redis://:s3cret@host?retry_on_timeout=yes",
        "rediss://:s3cret@host?ssl_cert_reqs=none",
        "rediss://:s3cret@host?ssl_check_hostname=false",
        "unix://:s3cret@run/redis.sock",
        "unix://",
        "unix:///run/redis.sock?db=s3cret",
        "unix:///run/redis.sock?password=s3cret",
    ],
)
def test_other_settings_are_refused_without_being_repeated(url: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"state") as caught:
        state_for(url, tmp_path)
    text = f"{caught.value!r} {caught.value.__cause__!r}"
    assert "s3" not in text
    assert "cret" not in text


def test_servers_that_evict_are_unfit() -> None:
    assert unfit({"maxmemory": 0, "maxmemory_policy": "allkeys-lru"}) is None
    assert unfit({"maxmemory": 1 << 30, "maxmemory_policy": "noeviction"}) is None
    for memory in ({"maxmemory": 1 << 30, "maxmemory_policy": "volatile-ttl"}, {"maxmemory": 0}):
        assert "noeviction" in (unfit(memory) or "")
