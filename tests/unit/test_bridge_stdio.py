"""Lines on pipes: in pieces of any size, too long, unread, to and from clients that are gone."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.bridge.stdio import AHEAD, PENDING, Line, Overlong, Splitter, Stdio


@given(
    st.lists(st.binary(max_size=40).map(lambda text: text.replace(b"\n", b" "))),
    st.lists(st.integers(1, 50)),
    st.booleans(),
)
def test_lines_come_out_however_they_are_cut(
    texts: list[bytes], sizes: list[int], ended: bool
) -> None:
    whole = b"\n".join(texts) + (b"\n" if ended else b"")
    splitter = Splitter(1000)
    lines: list[Line] = []
    start = 0
    for size in [*sizes, len(whole)]:
        lines += splitter.feed(whole[start : start + size])
        start += size
    lines += splitter.rest()
    assert lines == [one for text in texts if (one := text.strip(b"\r\t "))]


@given(st.integers(1, 7000), st.integers(10_001, 30_000))
def test_of_a_line_that_is_too_long_the_ends_are_kept(piece: int, size: int) -> None:
    whole = (bytes(range(65, 91)) * 2000)[:size]
    splitter = Splitter(10_000)
    lines: list[Line] = []
    text = b"before\n" + whole + b"\nafter\n"
    for start in range(0, len(text), piece):
        lines += splitter.feed(text[start : start + piece])
    assert lines == [b"before", Overlong(size, whole[:4096], whole[-4096:]), b"after"]


def test_a_long_line_costs_no_memory() -> None:
    splitter = Splitter(1 << 20)
    head = b"{" + b"a" * 9999
    lines = splitter.feed(head)
    for _ in range(1600):
        lines += splitter.feed(b"b" * (64 << 10))
        assert sum(map(len, splitter._pieces)) <= 1 << 20
    lines += splitter.feed(b"c}\n")
    assert lines == [Overlong(1600 * (64 << 10) + 10_002, head[:4096], b"b" * 4094 + b"c}")]


@dataclass
class Ends:
    """A client's ends of two pipes, and ours behind them."""

    stdio: Stdio
    to_us: int
    from_us: int

    def close(self, *which: int) -> None:
        for one in which:
            with contextlib.suppress(OSError):
                os.close(one)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.005)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    source, to_us = os.pipe()
    from_us, sink = os.pipe()
    ends = Ends(Stdio(source, sink, limit=1 << 20), to_us, from_us)
    yield ends
    ends.close(to_us, from_us)
    await ends.stdio.close(5)
    ends.close(source, sink)


async def everything(stdio: Stdio) -> list[Line]:
    async with asyncio.timeout(10):
        return [line async for line in stdio.lines()]


async def test_lines_until_the_end_of_stdin(ends: Ends) -> None:
    os.write(ends.to_us, b"one\r\n\n  two\nthree")
    ends.close(ends.to_us)
    assert await everything(ends.stdio) == [b"one", b"two", b"three"]


async def test_what_is_sent_is_one_line_each(ends: Ends) -> None:
    ends.stdio.send(b"one")
    ends.stdio.send(b"two")
    await ends.stdio.close(5)
    assert os.read(ends.from_us, 100) == b"one\ntwo\n"


async def test_many_megabytes_each_way_are_read_as_they_are_taken(ends: Ends) -> None:
    """What nobody takes is not read beyond a bound, and the client's writes wait."""
    line = b"x" * 99_999 + b"\n"
    written = 0

    def write() -> None:
        nonlocal written
        for _ in range(400):
            written += os.write(ends.to_us, line)
        ends.close(ends.to_us)

    writing = asyncio.ensure_future(asyncio.to_thread(write))
    await ends.until(lambda: written > AHEAD)
    taken = 0
    async with asyncio.timeout(20):
        async for got in ends.stdio.lines():
            assert got == line[:-1]
            assert written <= (taken + 1) * len(line) + AHEAD + (4 << 20)
            taken += 1
    assert taken == 400
    await writing


async def test_a_client_that_does_not_read_is_waited_for(ends: Ends) -> None:
    await ends.stdio.drain()
    for _ in range(10):
        ends.stdio.send(b"x" * (PENDING // 8))
    waiting = asyncio.ensure_future(ends.stdio.drain())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waiting.done()
    reading = asyncio.ensure_future(asyncio.to_thread(_read_all, ends.from_us, 10 * PENDING // 8))
    await asyncio.wait_for(waiting, 10)
    await reading


async def test_the_end_of_stdin_is_seen_though_stdout_is_not_read(ends: Ends) -> None:
    ends.stdio.send(b"x" * (PENDING + 1))
    os.write(ends.to_us, b"one\ntwo\n")
    waiting = asyncio.ensure_future(ends.stdio.drain())
    ends.close(ends.to_us)
    await asyncio.wait_for(waiting, 10)
    assert await everything(ends.stdio) == [b"one", b"two"]
    ends.stdio.send(b"x" * (PENDING + 1))
    await asyncio.wait_for(ends.stdio.drain(), 10)


async def test_a_client_that_reads_no_more_is_gone(ends: Ends) -> None:
    for _ in range(2):
        ends.stdio.send(b"x" * (PENDING + 1))
    waiting = asyncio.ensure_future(ends.stdio.drain())
    ends.close(ends.from_us)
    await asyncio.wait_for(waiting, 10)
    assert await everything(ends.stdio) == []


async def test_the_end_does_not_wait_for_a_client_that_does_not_read(ends: Ends) -> None:
    ends.stdio.send(b"x" * (1 << 20))
    async with asyncio.timeout(10):
        await ends.stdio.close(0.01)
    _read_all(ends.from_us, 1 << 20)


def _read_all(source: int, size: int) -> None:
    while size > 0 and (data := os.read(source, 1 << 20)):
        size -= len(data)


NOISY = """\
import os, subprocess, sys
from tunnel.bridge.stdio import take_over
source, sink = take_over()
print("printed")
os.write(1, b"written to 1")
sys.__stdout__.write("written to the first stdout")
sys.__stdout__.flush()
subprocess.run([sys.executable, "-c", "print('printed by a child')"])
assert sys.stdin.read() == ""
os.write(sink, b"said: " + os.read(source, 100))
"""


def run(program: str, *, shell: str = "") -> subprocess.CompletedProcess[bytes]:
    command = ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, program]
    return subprocess.run(command, input=b"heard\n", capture_output=True, timeout=30, check=False)


def test_nothing_else_gets_onto_stdout() -> None:
    done = run(NOISY)
    assert done.stdout == b"said: heard\n"
    assert done.stderr.count(b"printed") == 2
    assert done.stderr.count(b"written") == 2


def test_without_a_stderr() -> None:
    done = run(NOISY, shell="2>&-")
    assert done.stdout == b"said: heard\n"
