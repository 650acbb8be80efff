"""The load generator, a process of its own so that its work is counted against nobody.

It reads one job a line on stdin, as JSON (``{"id": 1, "job": "fresh", "port": 5000, ...}``), runs
jobs side by side, and answers each with one line: ``{"id": 1, "result": {...}}`` or
``{"id": 1, "error": "..."}``. Times are seconds; `port` is one of 127.0.0.1.
"""

import asyncio
import json
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from bench.client import BrokenError, Client, Place, ask, connect, get, post_read
from bench.traffic import paced, spread, streams
from tests.faults import fast_runner

MIB = 1 << 20
RETRY = 0.002  # seconds between the tries of `first`


class Closed:
    """Keep-alive connections that each ask again as soon as they are answered."""

    def __init__(self, place: Place, request: bytes) -> None:
        self.place = place
        self.request = request
        self.times: list[float] = []
        self.answers = 0  # those of the warm-up included
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.measuring = False
        self.most: float = float("inf")

    async def run(
        self, connections: int, seconds: float, warmup: float, requests: int | None
    ) -> float:
        """Returns the seconds measured; raises BrokenError where a connection or answer fails."""
        loop = asyncio.get_running_loop()
        clients = [await self._client() for _ in range(connections)]
        try:
            if requests is None:
                loop.call_later(warmup + seconds, self._finish)
                await asyncio.wait([self.finished], timeout=warmup)
            else:
                self.most = requests
            self.measuring = True
            began = monotonic()
            await self.finished
            return monotonic() - began
        finally:
            self._finish()
            for client in clients:
                client.transport.abort()

    async def _client(self) -> Client:
        sent = 0.0

        def answered(status: int) -> None:
            nonlocal sent
            now = monotonic()
            if status != 200:
                return lost(f"status {status}")
            self.answers += 1
            if self.measuring:
                self.times.append(now - sent)
            if len(self.times) >= self.most:
                return self._finish()
            sent = now
            client.transport.write(self.request)
            return None

        def lost(why: str) -> None:
            if not self.finished.done():
                self.finished.set_exception(BrokenError(why))

        client = await connect(self.place, answered, lost)
        sent = monotonic()
        client.transport.write(self.request)
        return client

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


async def closed(
    port: int,
    path: str,
    connections: int,
    seconds: float = 0.0,
    warmup: float = 0.0,
    requests: int | None = None,
) -> dict[str, Any]:
    """Closed loop for `seconds` after `warmup`, or until there are `requests` answers."""
    return await _closed(Place(port), get(port, path), connections, seconds, warmup, requests)


async def repeat(
    place: dict[str, Any], request: str, connections: int, seconds: float, warmup: float
) -> dict[str, Any]:
    """The same for any place and any request, as it goes on the wire."""
    return await _closed(Place(**place), request.encode(), connections, seconds, warmup, None)


async def _closed(
    place: Place,
    request: bytes,
    connections: int,
    seconds: float,
    warmup: float,
    requests: int | None,
) -> dict[str, Any]:
    load = Closed(place, request)
    took = await load.run(connections, seconds, warmup, requests)
    return {**spread(load.times), "rate": len(load.times) / took, "answers": load.answers}


async def bulk(port: int, mebibytes: int) -> dict[str, Any]:
    """One large answer: MB/s (10^6 bytes) from the request to its last byte."""
    began = monotonic()
    status = await ask(Place(port), get(port, f"/bulk/{mebibytes}"))
    took = monotonic() - began
    if status != 200:
        raise BrokenError(f"status {status}")
    return {"rate": mebibytes * MIB / 1e6 / took}


async def fresh(port: int, seconds: float) -> dict[str, Any]:
    """A new connection for each request, one after another."""
    request = get(port, "/one")
    times = []
    end = monotonic() + seconds
    while (began := monotonic()) < end:
        status = await ask(Place(port), request)
        if status != 200:
            raise BrokenError(f"status {status}")
        times.append(monotonic() - began)
        # A breath, so that what a tunnel prepares for the next client is not part of this one.
        await asyncio.sleep(0.001)
    return spread(times)


async def first(port: int, deadline: float) -> dict[str, Any]:
    """Ask until the first 200; tells when it came, on the clock of time.monotonic."""
    end = monotonic() + deadline
    request = get(port, "/one")
    last = "refused"
    while monotonic() < end:
        try:
            async with asyncio.timeout(end - monotonic()):
                status = await ask(Place(port), request)
            if status == 200:
                return {"at": monotonic()}
            last = f"status {status}"
        except (OSError, BrokenError, TimeoutError) as error:
            last = f"{type(error).__name__} {error}".strip()
        await asyncio.sleep(RETRY)
    raise BrokenError(f"no answer within {deadline:g} s: {last}")


async def steady(
    port: int, rate: float, seconds: float, deadline: float, method: str = "GET"
) -> dict[str, Any]:
    """Open loop: `rate` requests a second, each on a new connection, whatever became of others.

    A request fails when it has no whole 200 within `deadline`. Each failure is told as
    [sent at, ended at, what]; the times are on the clock of time.monotonic.
    """
    request = get(port, "/one") if method == "GET" else post_read(port, "/one")
    waits: list[float] = []
    failures: list[tuple[float, float, str]] = []

    async def one() -> None:
        began = monotonic()
        try:
            async with asyncio.timeout(deadline):
                status = await ask(Place(port), request)
        except (OSError, BrokenError) as error:
            what = str(error) if isinstance(error, BrokenError) else type(error).__name__
            failures.append((began, monotonic(), what))
        else:
            if status == 200:
                waits.append(monotonic() - began)
            else:
                failures.append((began, monotonic(), str(status)))

    begin = monotonic()
    async with asyncio.TaskGroup() as group:
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, begin + number / rate - monotonic()))
            group.create_task(one())
    return {
        "sent": int(rate * seconds),
        "failed": len(failures),
        "longest": max(waits, default=0.0),
        "failures": failures,
        "kinds": Counter(what for _, _, what in failures),
    }


JOBS: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
    "closed": closed,
    "repeat": repeat,
    "paced": paced,
    "streams": streams,
    "bulk": bulk,
    "fresh": fresh,
    "first": first,
    "steady": steady,
}


async def answer(order: dict[str, Any]) -> None:
    """Run one job and say what came of it."""
    number, name = order.pop("id"), order.pop("job")
    try:
        reply = {"id": number, "result": await JOBS[name](**order)}
    except (OSError, BrokenError, TimeoutError) as error:
        reply = {"id": number, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(reply), flush=True)


async def serve() -> None:
    """Take jobs until stdin ends."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with asyncio.TaskGroup() as group:
        while line := await lines.readline():
            group.create_task(answer(json.loads(line)))


def main() -> None:
    """Run the generator."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with fast_runner() as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()
