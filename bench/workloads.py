"""Speed: the same work through every contender in turn, round after round, medians of the rounds.

The machine is noisy, so contenders take turns within a round (A B C A B C): a slow minute is
shared by all of them, and the ratios hold.
"""

from collections.abc import Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench import processes
from bench.contenders import CONTENDERS, Contender, Far
from bench.processes import Generator, JobError
from tests.droplet import Sshd

DELAYS_MS = (0, 50)
"""Round trips, in milliseconds, that the relay adds; without any there is no relay."""


@dataclass(frozen=True)
class Workload:
    """A job of the load generator, for a full run and for a quick one."""

    name: str
    title: str
    figure: str  # which number of the job's result is compared
    unit: str
    job: dict[str, Any]
    quick: dict[str, Any]

    @property
    def better(self) -> str:
        return "lower" if self.unit == "ms" else "higher"


def _closed(path: str, connections: int, seconds: float, warmup: float) -> dict[str, Any]:
    return {
        **{"job": "closed", "path": path, "connections": connections},
        **{"seconds": seconds, "warmup": warmup},
    }


WORKLOADS = [
    Workload(
        "sequential",
        "1 connection, answer in two segments",
        *("rate", "req/s"),
        _closed("/two", 1, 1.2, 0.6),
        _closed("/two", 1, 0.4, 0.5),
    ),
    Workload(
        "c16",
        "16 connections, answer in one segment",
        *("rate", "req/s"),
        _closed("/one", 16, 0.9, 0.2),
        _closed("/one", 16, 0.3, 0.1),
    ),
    Workload(
        "c64",
        "64 connections, answer in one segment",
        *("rate", "req/s"),
        _closed("/one", 64, 0.9, 0.3),
        _closed("/one", 64, 0.3, 0.2),
    ),
    Workload(
        "bulk",
        "one large answer",
        *("rate", "MB/s"),
        {"job": "bulk", "mebibytes": 96},
        {"job": "bulk", "mebibytes": 24},
    ),
    Workload(
        "fresh",
        "new connection + one request, p50",
        *("p50", "ms"),
        {"job": "fresh", "seconds": 1.2},
        {"job": "fresh", "seconds": 0.4},
    ),
]


Cell = dict[str, Any]
"""One contender's medians in one workload, or {"error": why}."""


async def measure(
    generator: Generator, directory: Path, names: Collection[str], rounds: int, *, quick: bool
) -> list[dict[str, Any]]:
    """Run the named workloads at each delay; one row for each, with a cell for each contender."""
    rows = []
    for delay in DELAYS_MS:
        async with AsyncExitStack() as stack:
            place = directory / f"speed-{delay}"
            far = await _far(stack, place, delay)
            contenders, absent = await _start(stack, generator, far)
            samples: dict[tuple[str, str], list[Cell]] = {}
            for _ in range(rounds):
                for workload in WORKLOADS:
                    if workload.name not in names:
                        continue
                    for contender in contenders:
                        sample = await _sample(generator, workload, contender, quick=quick)
                        samples.setdefault((workload.name, contender.name), []).append(sample)
            rows += [
                {
                    "workload": workload.name,
                    "title": workload.title,
                    "round_trip_ms": delay,
                    "figure": workload.figure,
                    "unit": workload.unit,
                    "contenders": {
                        kind.name: absent.get(kind.name)
                        or _median(samples[workload.name, kind.name])
                        for kind in CONTENDERS
                    },
                }
                for workload in WORKLOADS
                if workload.name in names
            ]
    return rows


async def _far(stack: AsyncExitStack, place: Path, delay_ms: int) -> Far:
    """sshd, target and (with a delay) a relay in front of each of the two."""
    sshd = stack.enter_context(Sshd(place))
    target = await stack.enter_async_context(processes.target(place))
    ssh_port, direct_port = sshd.port, target.port
    if delay_ms:
        one_way = delay_ms / 2000
        to_sshd = processes.relay(sshd.port, one_way, place)
        to_target = processes.relay(target.port, one_way, place)
        ssh_port = (await stack.enter_async_context(to_sshd)).port
        direct_port = (await stack.enter_async_context(to_target)).port
    return Far(sshd, ssh_port, target.port, direct_port, place)


async def _start(
    stack: AsyncExitStack, generator: Generator, far: Far
) -> tuple[list[Contender], dict[str, Cell]]:
    contenders: list[Contender] = []
    absent: dict[str, Cell] = {}
    for kind in CONTENDERS:
        if why := kind.missing():
            absent[kind.name] = {"error": why}
            continue
        contender = kind(far)
        stack.push_async_callback(contender.stop)
        try:
            await contender.start(generator)
        except JobError as error:
            absent[kind.name] = {"error": f"did not start: {error}; see {contender.log}"}
        else:
            contenders.append(contender)
    return contenders, absent


async def _sample(
    generator: Generator, workload: Workload, contender: Contender, *, quick: bool
) -> Cell:
    try:
        job = workload.quick if quick else workload.job
        return await generator.run(**job, port=contender.port)
    except JobError as error:
        return {"error": str(error)}


def _median(samples: list[Cell]) -> Cell:
    """The median of each figure over the rounds; a workload that failed once has failed."""
    for sample in samples:
        if "error" in sample:
            return sample
    return {key: median(sample[key] for sample in samples) for key in samples[0]}
