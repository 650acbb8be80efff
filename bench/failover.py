"""Failover: a tunnel with both paths, each through a relay, and one of the two fails.

`cut` kills the path that requests take, twenty times in all, under mixed requests; `silent` has
it pass nothing and tell nobody. Several tunnels are at it at a time, each with relays of its own.
"""

import asyncio
import contextlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from bench import processes
from bench.front import CALL, READ, Front, front, missing_nginx, request
from bench.gateway import ask_service
from bench.processes import Announced, Generator, JobError, Process
from tests.droplet import Sshd, free_port

Cell = dict[str, Any]
RATE = 20.0
PAUSE = 0.05  # seconds that the service takes for an answer, so that some are always under way
DOWN = 1.0  # seconds in which a path that was killed cannot be made anew
BOTH_UP = 20.0  # seconds that both paths may take to be there
PATHS = ("ssh", "https")


class Laptop:
    """`catalyst-tunnel up` with both paths, each through a relay of its own."""

    def __init__(self, made: Front, sshd: Sshd, name: str, nginx_port: int) -> None:
        self._made = made
        self._sshd = sshd
        self._client = made.enrol(name)
        self._nginx_port = nginx_port
        self.port = free_port()
        self.roads: dict[str, Announced] = {}

    @contextlib.asynccontextmanager
    async def up(self, first: str) -> AsyncIterator[None]:
        """Run it with `first` as the preferred path, until both paths are up."""
        home = self._client.home
        async with AsyncExitStack() as stack:
            for name, port in (("ssh", self._sshd.port), ("https", self._nginx_port)):
                road = processes.relay(port, 0.0, home)
                self.roads[name] = await stack.enter_async_context(road)
            enrolled = self._client.config.read_text().partition("[https]")[2]
            self._client.config.write_text(self._config(first, enrolled))
            command: list[str | Path] = [sys.executable, "-m", "tunnel", "up"]
            command += ["--config", self._client.config]
            process = Process(command, home / "log", {"CATALYST_HOME": str(home)})
            stack.push_async_callback(process.stop)
            await process.start()
            await self.both_up()
            yield

    def _config(self, first: str, enrolled: str) -> str:
        ssh_port, https_port = (self.roads[name].port for name in PATHS)
        known_hosts = self._client.home / "known_hosts"
        known_hosts.write_text(f"[127.0.0.1]:{ssh_port} {self._sshd.host_key}\n")
        paths = [first, *(path for path in PATHS if path != first)]
        lines = [
            line if not line.startswith("url") else f'url = "https://localhost:{https_port}/mcp"'
            for line in enrolled.splitlines()
        ]
        return f"""\
[tunnel]
listen = "127.0.0.1:{self.port}"
paths = {json.dumps(paths)}

[ssh]
host = "127.0.0.1"
port = {ssh_port}
user = "{self._sshd.user}"
identity = "{self._sshd.identity}"
known_hosts = "{known_hosts}"
target = "127.0.0.1:{self._made.gateway.port}"
gateway = true

[https]
""" + "\n".join(lines)

    async def both_up(self) -> str:
        """Wait until a request gets through by either path; returns which one is taken."""
        limit = monotonic() + BOTH_UP
        while True:
            paths = await self._status()
            current = [path["name"] for path in paths if path["current"]]
            if current and all(path["answered"] for path in paths):
                return str(current[0])
            if monotonic() > limit:
                raise JobError(f"not both paths are up: {paths}; see {self._client.home / 'log'}")
            await asyncio.sleep(0.2)

    async def _status(self) -> list[Cell]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tunnel", "status", "--json"),
            *("--config", str(self._client.config)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=processes.ROOT,
        )
        said, _ = await process.communicate()
        paths: list[Cell] = json.loads(said or b"{}").get("paths", [])
        return paths

    def fields(self) -> dict[str, str]:
        """What every request to it carries."""
        return {"Host": f"127.0.0.1:{self.port}", "Accept": "application/json, text/event-stream"}


async def measure(
    generator: Generator,
    directory: Path,
    names: Collection[str],
    say: Callable[[str], None],
    *,
    quick: bool,
) -> Cell:
    """Run `cut`, `silent` or both; {"skipped": why} where a program is missing."""
    if why := missing_nginx():
        return {name: {"skipped": why} for name in names}
    results: Cell = {}
    for name in names:
        say(name)
        try:
            place = directory / f"failover-{name}"
            async with front(place, pause=PAUSE) as made:
                port = free_port()
                with Sshd(place / "sshd") as sshd, made.nginx("nginx", port):
                    laptops = (
                        Laptop(made, sshd, f"laptop{number}", port) for number in itertools.count()
                    )
                    results[name] = await PARTS[name](generator, made, laptops, quick)
        except (JobError, RuntimeError, AssertionError, OSError) as error:
            results[name] = {"error": str(error)}
    return results


async def cut(generator: Generator, made: Front, laptops: Iterator[Laptop], quick: bool) -> Cell:
    """Reads that failed and calls executed twice, while paths are cut under 20 requests/s each."""
    tunnels, kills = (2, 2) if quick else (4, 5)
    told = await asyncio.gather(
        *(_cut(generator, next(laptops), number, kills) for number in range(tunnels))
    )
    counted = await asyncio.to_thread(ask_service, made.service.port)
    reads = [one[kind] for one in told for kind in ("get", "read")]
    calls = [one["call"] for one in told]
    failures: Counter[str] = Counter()
    for call in calls:
        failures.update(call["kinds"])
    return {
        "kills": dict(sum((one["kills"] for one in told), Counter())),
        "reads": sum(read["sent"] for read in reads),
        "failed_reads": sum(read["failed"] for read in reads),
        "read_failures": dict(sum((Counter(read["kinds"]) for read in reads), Counter())),
        "longest": max(kind["longest"] for one in told for kind in one.values() if "sent" in kind),
        "calls": sum(call["sent"] for call in calls),
        "failed_calls": dict(failures),
        "executed": counted["executed"],
        "executed_twice": counted["twice"],
    }


async def _cut(generator: Generator, laptop: Laptop, number: int, kills: int) -> Cell:
    async with laptop.up("ssh"):
        fields = laptop.fields()
        # Requests come until the last kill is over: in pieces, since nobody knows how long that is.
        requests = {
            "get": request("GET", "/health", fields),
            "read": request("POST", "/mcp", fields, READ),
            "call": request("POST", "/mcp", fields, CALL),
        }
        over = asyncio.Event()
        done: Counter[str] = Counter()

        async def kill() -> None:
            try:
                for _ in range(kills):
                    path = await laptop.both_up()
                    road = laptop.roads[path]
                    await road.tell("refuse")
                    await road.tell("reset")
                    done[path] += 1
                    await asyncio.sleep(DOWN)
                    await road.tell("accept")
                await laptop.both_up()
            finally:
                over.set()

        killing = asyncio.create_task(kill())
        pieces: list[asyncio.Task[Cell]] = []
        try:
            while not over.is_set():
                job = generator.run(
                    "paced",
                    **{"place": {"port": laptop.port}, "requests": requests},
                    **{"rate": RATE, "seconds": 1.5, "deadline": 40.0, "kept": False},
                    first=(number * 1000 + len(pieces)) * 1000,
                )
                # The next piece begins in time, whether or not this one has all its answers.
                pieces.append(asyncio.create_task(job))
                await asyncio.sleep(1.5)
            told = await asyncio.gather(*pieces)
        finally:
            for task in (killing, *pieces):
                task.cancel()
        await killing
    return {"kills": done} | {name: _sum([piece[name] for piece in told]) for name in requests}


def _sum(pieces: list[Cell]) -> Cell:
    kinds: Counter[str] = Counter()
    for piece in pieces:
        kinds.update(piece["kinds"])
    return {
        "sent": sum(piece["sent"] for piece in pieces),
        "failed": sum(piece["failed"] for piece in pieces),
        "longest": max(piece["longest"] for piece in pieces),
        "kinds": kinds,
    }


async def silent(generator: Generator, made: Front, laptops: Iterator[Laptop], quick: bool) -> Cell:
    """The longest wait of a read, 20 a second, when the path that is taken falls silent."""
    waits: dict[str, list[float]] = {name: [] for name in PATHS}
    failed = 0
    for _ in range(1 if quick else 5):
        trials = (_silent(generator, next(laptops), name) for name in PATHS)
        for name, told in zip(PATHS, await asyncio.gather(*trials), strict=True):
            waits[name].append(told["longest"])
            failed += told["failed"]
    return {
        **{name: {"seconds": taken, "median": median(taken)} for name, taken in waits.items()},
        "failed": failed,
    }


async def _silent(generator: Generator, laptop: Laptop, first: str) -> Cell:
    async with laptop.up(first):
        load = asyncio.create_task(
            generator.run(
                "paced",
                **{"place": {"port": laptop.port}, "rate": RATE, "seconds": 3.0},
                requests={"get": request("GET", "/health", laptop.fields())},
                **{"deadline": 15.0, "kept": False},
            )
        )
        try:
            await asyncio.sleep(1.0)
            await laptop.roads[first].tell("stall")
            told: Cell = (await load)["get"]
        finally:
            load.cancel()
        return told


Part = Callable[[Generator, Front, Iterator[Laptop], bool], Awaitable[Cell]]

PARTS: dict[str, Part] = {"cut": cut, "silent": silent}
