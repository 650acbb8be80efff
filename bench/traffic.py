"""Jobs of the load generator for the gateway: requests at a steady pace, and open event streams."""

import asyncio
from collections import Counter
from time import monotonic
from typing import Any, cast

from bench.client import BrokenError, Caller, Place

NUMBER = "#########"
"""In a request, this becomes the request's number, in as many digits: a body nobody else sends."""

HANDSHAKES = 8  # connections that are being opened at a time


def spread(times: list[float]) -> dict[str, Any]:
    """p50 and p99 of these latencies, and how many there are."""
    if not times:
        raise BrokenError("not one answer in the time given")
    ordered = sorted(times)
    return {
        "requests": len(ordered),
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
    }


class Kind:
    """What became of the requests of one kind."""

    def __init__(self, request: str) -> None:
        self.request = request
        self.sent = 0
        self.waits: list[float] = []
        self.failures: Counter[str] = Counter()

    def told(self) -> dict[str, Any]:
        return {
            **(spread(self.waits) if self.waits else {"requests": 0, "p50": None, "p99": None}),
            "sent": self.sent,
            "failed": self.failures.total(),
            "longest": max(self.waits, default=0.0),
            "kinds": self.failures,
        }


async def paced(
    place: dict[str, Any],
    requests: dict[str, str],
    rate: float,
    seconds: float,
    deadline: float,
    kept: bool,
    first: int = 0,
) -> dict[str, Any]:
    """Open loop: `rate` requests a second, of each kind in turn, whatever became of others.

    A request fails when it has no whole 200 within `deadline`. Its wait includes the connect where
    it needs a connection: always, unless they are `kept`. Returns what became of each kind.
    """
    where = Place(**place)
    kinds = {name: Kind(request) for name, request in requests.items()}
    names = list(kinds)
    idle: list[Caller] = []

    async def one(kind: Kind, number: int) -> None:
        request = kind.request.replace(NUMBER, f"{number:09d}").encode()
        kind.sent += 1
        began = monotonic()
        caller = None
        try:
            async with asyncio.timeout(deadline):
                while idle and caller is None:
                    caller = idle.pop()
                    caller = None if caller.lost else caller
                caller = caller or await Caller.connect(where)
                status = await caller.ask(request)
        except (OSError, BrokenError) as error:
            kind.failures[str(error) or type(error).__name__] += 1
            if caller is not None:
                caller.close()
            return
        if status == 200:
            kind.waits.append(monotonic() - began)
        else:
            kind.failures[str(status)] += 1
        if kept:
            idle.append(caller)
        else:
            caller.close()

    begin = monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            await asyncio.sleep(max(0.0, begin + number / rate - monotonic()))
            group.create_task(one(kinds[names[number % len(names)]], first + number))
    for caller in idle:
        caller.close()
    return {name: kind.told() for name, kind in kinds.items()}


class Stream(asyncio.Protocol):
    """An event stream: its first bytes, and when it ended (on the clock of time.monotonic)."""

    def __init__(self) -> None:
        self.first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.over: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self.first.done():
            self.first.set_result(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set_result(monotonic())
        if not self.first.done():
            self.first.set_exception(BrokenError("closed"))


async def streams(
    place: dict[str, Any], request: str, count: int, seconds: float
) -> dict[str, Any]:
    """Open `count` streams, and keep them for `seconds` or until all have ended by themselves."""
    where = Place(**place)
    gate = asyncio.Semaphore(HANDSHAKES)
    opened: list[Stream] = []

    async def one() -> None:
        async with gate:
            stream: Stream = await where.connect(Stream)
            stream.transport.write(request.encode())
            head = await stream.first
        if not head.startswith(b"HTTP/1.1 200 "):
            raise BrokenError(head.partition(b"\r\n")[0].decode("latin-1"))
        opened.append(stream)

    await asyncio.gather(*(one() for _ in range(count)))
    await asyncio.wait([stream.over for stream in opened], timeout=seconds)
    ended = [stream.over.result() for stream in opened if stream.over.done()]
    for stream in opened:
        stream.transport.abort()
    return {"opened": len(opened), "ended": ended}
