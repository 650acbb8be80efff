"""The smaller parts: wire, hold, pool, log, headers, files, keys."""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from keys.files import private_file_fault, write_private
from keys.sshkey import KeyFileError, authorized_line, fingerprint, make_key, public_half
from tests.droplet import find_sshd
from tunnel.hold import Hold
from tunnel.http import HttpConnection, end_to_end
from tunnel.initialise import ensure_key
from tunnel.log import JsonFormatter, TextFormatter
from tunnel.pool import REUSE, REUSE_ONCE, SPARE_AGE, Pool, Upstream
from tunnel.problems import Problem, ProblemError
from tunnel.wire import Wire


class Collector(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = b""

    def data_received(self, data: bytes) -> None:
        self.data += data


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        pass


async def test_writes_of_one_turn_leave_together() -> None:
    with socket.socket() as sock:
        wire, transport = Wire(Collector(), sock), Transport()
        wire.connection_made(transport)
        wire.write(b"a")
        wire.write(b"b")
        assert transport.writes == []
        assert wire.asked is not None
        await asyncio.sleep(0)
        wire.write(b"c")
        await asyncio.sleep(0)
        assert transport.writes == [b"ab", b"c"]


async def test_only_what_is_received_proves_life() -> None:
    with socket.socket() as sock:
        inner = Collector()
        wire = Wire(inner, sock)
        wire.connection_made(Transport())
        wire.heard -= 100
        wire.write(b"hello?")
        assert asyncio.get_running_loop().time() - wire.heard > 99
        wire.data_received(b"yes")
        assert asyncio.get_running_loop().time() - wire.heard < 1
        assert wire.asked is None
        assert inner.data == b"yes"


@pytest.mark.parametrize(("size", "nudges"), [(10, 1), (100_000, 0)])
async def test_small_receives_are_nudged_where_there_is_no_quick_ack(
    size: int, nudges: int
) -> None:
    seen: list[int] = []
    with socket.socket() as sock:
        wire = Wire(Collector(), sock, quickack=None)
        wire.nudge = lambda: seen.append(1)
        wire.connection_made(Transport())
        wire.data_received(b"x" * size)
        assert len(seen) == nudges


async def test_hold_is_bounded_in_number_bytes_and_time() -> None:
    hold = Hold(60, requests=1, size=100)
    why = Problem("dns_failed", "No such name.")
    first = asyncio.ensure_future(hold.wait(asyncio.Event().wait(), 10, why))
    await asyncio.sleep(0)
    assert (hold.waiting, hold.held_bytes) == (1, 10)
    with pytest.raises(ProblemError) as told:
        await hold.wait(asyncio.Event().wait(), 10, why)
    assert told.value.problem.code == "hold_full"
    assert "No such name." in str(told.value)
    first.cancel()
    await asyncio.wait([first])
    assert (hold.waiting, hold.held_bytes) == (0, 0)
    with pytest.raises(ProblemError, match="queue full"):
        await hold.wait(asyncio.Event().wait(), 101, None)
    short = Hold(0.01)
    with pytest.raises(ProblemError) as late:
        await short.wait(asyncio.Event().wait(), 0, why)
    assert late.value.problem.code == "hold_expired"
    assert short.waiting == 0


class FakeHttp:
    def __init__(self) -> None:
        self.spoilt = False
        self.aborted = False
        self.reusable = True

    def next_message(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def pool_of(made: list[FakeHttp]) -> Pool:
    async def open_one() -> tuple[HttpConnection, object]:
        made.append(FakeHttp())
        return cast(HttpConnection, made[-1]), object()

    return Pool(open_one)  # type: ignore[arg-type]


async def served(pool: Pool, age: float) -> Upstream:
    """Have one connection that served, `age` seconds ago, and no spare."""
    upstream = await pool.acquire(repeatable=True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for spare in list(pool._idle):
        pool._idle.remove(spare)
    pool.release(upstream)
    upstream.idle_since -= age
    return upstream


@pytest.mark.parametrize(
    ("age", "repeatable", "reused"),
    [
        (0.0, True, True),
        (REUSE - 0.5, True, True),
        (REUSE + 0.1, True, False),
        (0.0, False, True),
        (REUSE_ONCE + 0.1, False, False),
        (REUSE - 0.5, False, False),
    ],
)
async def test_what_must_not_be_repeated_goes_out_on_young_connections(
    age: float, repeatable: bool, reused: bool
) -> None:
    pool = pool_of([])
    old = await served(pool, age)
    new = await pool.acquire(repeatable=repeatable)
    assert (new is old) is reused
    assert new.fresh is not reused


async def test_a_connection_that_ended_or_spoke_out_of_turn_is_not_reused() -> None:
    made: list[FakeHttp] = []
    pool = pool_of(made)
    old = await served(pool, 0)
    cast(FakeHttp, old.http).spoilt = True
    assert await pool.acquire(repeatable=True) is not old
    assert made[0].aborted


async def test_a_spare_is_opened_ahead_and_not_kept_for_ever() -> None:
    made: list[FakeHttp] = []
    pool = pool_of(made)
    await pool.acquire(repeatable=True)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(made) == 2
    [spare] = pool._idle
    spare.idle_since -= SPARE_AGE + 1
    assert await pool.acquire(repeatable=True) is not spare


async def test_giving_up_an_owner_spares_what_must_not_be_repeated() -> None:
    pool = pool_of([])
    call = await pool.acquire(repeatable=False)
    read = await pool.acquire(repeatable=True)
    read.owner = call.owner
    pool.abandon(call.owner)
    assert cast(FakeHttp, read.http).aborted
    assert not cast(FakeHttp, call.http).aborted


def test_hop_by_hop_fields_stay_on_their_hop() -> None:
    fields = [
        (b"Connection", b"close, X-Private"),
        (b"x-private", b"1"),
        (b"Keep-Alive", b"5"),
        (b"TE", b"trailers"),
        (b"Transfer-Encoding", b"chunked"),
        (b"Upgrade", b"h2c"),
        (b"Proxy-Authorization", b"secret"),
        (b"Mcp-Session-Id", b"1"),
        (b"X-Twice", b"1"),
        (b"x-twice", b"2"),
    ]
    kept = [(b"Mcp-Session-Id", b"1"), (b"X-Twice", b"1"), (b"x-twice", b"2")]
    assert end_to_end(fields) == kept


def record(**fields: object) -> logging.LogRecord:
    made = {"name": "tunnel", "msg": "link down", "levelno": 30, "levelname": "WARNING"}
    return logging.makeLogRecord({**made, **fields})


def test_text_is_one_line_even_if_a_value_is_not() -> None:
    problem = Problem("dns_failed", "The name x\nINFO fake does not resolve.")
    line = TextFormatter().format(record(problem=problem, connects=3))
    assert "\n" not in line
    assert "warning link down connects=3 [dns_failed] The name x" in line


def test_json_has_the_problem_in_parts() -> None:
    line = json.loads(JsonFormatter().format(record(problem=Problem("dns_failed", "x"))))
    assert line["event"] == "link down"
    assert line["level"] == "warning"
    assert line["problem"]["code"] == "dns_failed"
    assert line["time"].endswith("Z")


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")


@POSIX
def test_private_files_are_born_private_and_whole(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_private(tmp_path / "new" / "secret", b"1", replace=False)
    finally:
        os.umask(before)
    file = tmp_path / "new" / "secret"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FileExistsError):
        write_private(file, b"2", replace=False)
    assert file.read_bytes() == b"1"
    write_private(file, b"2", replace=True)
    assert file.read_bytes() == b"2"
    assert [one.name for one in file.parent.iterdir()] == ["secret"]
    assert private_file_fault(file) is None


@POSIX
@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602, 0o601])
def test_open_files_are_refused_with_the_repair(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "secret"
    file.write_text("x")
    file.chmod(mode)
    assert f"chmod 600 {file}" in str(private_file_fault(file))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in str(private_file_fault(tmp_path / "none"))
    assert private_file_fault(tmp_path) is not None


@pytest.mark.skipif(find_sshd() is None, reason="no OpenSSH on this machine")
def test_openssh_reads_our_keys_and_agrees(tmp_path: Path) -> None:
    key = tmp_path / "key"
    public = make_key(key)
    said = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, text=True)
    assert said.stdout.split()[:2] == public.split()
    said = subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True)
    assert fingerprint(public) in said.stdout


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key = tmp_path / "keys" / "key"
    public, made = ensure_key(key)
    assert made
    assert ensure_key(key) == (public, False)
    with pytest.raises(FileExistsError):
        make_key(key)
    assert public_half(key) == public
    key.write_text("damaged")
    with pytest.raises(KeyFileError):
        ensure_key(key)
    assert key.read_text() == "damaged"


def test_the_line_for_the_droplet_closes_every_door() -> None:
    line = authorized_line("ssh-ed25519 AAAA", ["127.0.0.1:5000", "db:5432"], "me@laptop")
    options, _, rest = line.partition(" ssh-ed25519 ")
    assert options.startswith("restrict,port-forwarding,")
    for option in (
        'permitopen="127.0.0.1:5000"',
        'permitopen="db:5432"',
        'permitlisten="127.0.0.1:1"',
        'command="/usr/sbin/nologin"',
    ):
        assert option in options
    assert rest == "AAAA me@laptop"
