"""The gateway: what verifying costs, what it bears, and how fast it lets go of whom it should.

Contenders take turns within a round here too, and ratios are taken within it: of two pieces that
were measured a second apart.
"""

import asyncio
import json
import shutil
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any

import psutil

from bench.front import (
    FRONT,
    REST,
    Front,
    front,
    missing_nginx,
    post,
    request,
    stream,
    token,
    told,
)
from bench.haproxy import MISSING, haproxy
from bench.processes import Announced, Generator, JobError, Process, pinned
from gateway.clients import revoke
from gateway.settings import Layout
from tests.droplet import free_port
from tests.gatewayserver import Enrolled

Cell = dict[str, Any]
WARMUP = 0.3
STREAMS = 500
ATTACKERS = 500
GOOD_RATE = 20.0
NO_PIDS: Mapping[str, int] = MappingProxyType({})
REVOKED_STREAMS = 20
PIECE = 10.0  # seconds of load with one token, which lives for sixty


async def measure(
    directory: Path, names: Collection[str], say: Callable[[str], None], *, quick: bool
) -> Cell:
    """Run what is named; a cell for each, {"skipped": why} where a program is missing."""
    results: Cell = {}
    with pinned(REST):
        generator = Generator(directory)
        await generator.__aenter__()
    try:
        for name in names:
            say(name)
            needs, act = PARTS[name]
            if why := needs():
                results[name] = {"skipped": why}
                continue
            try:
                async with front(directory / f"gateway-{name}") as made:
                    results[name] = await act(generator, made, quick)
            except (JobError, RuntimeError, AssertionError, OSError, psutil.Error) as error:
                results[name] = {"error": str(error)}
    finally:
        await generator.stop()
    return results


# What verifying costs


async def throughput(generator: Generator, made: Front, quick: bool) -> Cell:
    """The gateway beside its proxy alone, 16 connections on the Unix socket, as NGINX asks."""
    rounds, seconds = (2, 0.5) if quick else (7, 1.2)
    client = made.enrol("laptop")
    bare = made.directory / "bare.sock"
    upstream = f"http://127.0.0.1:{made.service.port}"
    command = [sys.executable, "-m", "bench.bareproxy", str(bare), upstream]
    with pinned(FRONT):
        alone = Announced(command, made.directory / "bareproxy.log")
        await alone.__aenter__()
    try:
        fields = told(client)
        works = {"call": post(fields), "health": request("GET", "/health", fields)}
        return {
            name: await _turns(
                generator,
                {"gateway": (made.socket(), work), "proxy": ({"unix": str(bare)}, work)},
                rounds,
                pids={"gateway": made.gateway.pid, "proxy": alone.pid},
                connections=16,
                seconds=seconds,
            )
            for name, work in works.items()
        }
    finally:
        await alone.stop()


async def behind(generator: Generator, made: Front, quick: bool) -> Cell:
    """NGINX with the gateway, NGINX straight to the service, and HAProxy with `jwt_verify`."""
    rounds, seconds = (1, 0.5) if quick else (5, 1.0)
    client = made.enrol("laptop")
    async with AsyncExitStack() as stack:
        straight = free_port()
        # The configuration is read at the start: the second site may take the place of the first.
        stack.enter_context(made.nginx("straight", straight, made.service.port))
        stack.enter_context(made.nginx("nginx", made.https_port))
        peer = await stack.enter_async_context(haproxy(made))
        work = post(token(client))
        contenders = {
            "gateway": (made.https(client), work),
            "straight": (made.https(client, straight), work),
        }
        if peer is not None:
            contenders["haproxy"] = (made.https(client, peer.port), post(peer.fields))
        cell: Cell = {
            f"c{connections}": await _turns(
                generator, contenders, rounds, connections=connections, seconds=seconds
            )
            for connections in (1, 16)
        }
        return cell if peer is not None else cell | {"no_haproxy": MISSING}


async def _turns(
    generator: Generator,
    contenders: dict[str, tuple[Cell, str]],
    rounds: int,
    *,
    connections: int,
    seconds: float,
    pids: Mapping[str, int] = NO_PIDS,
) -> Cell:
    """Rates (1/s), p50, p99 (s) by contender: a list each, with an entry for each round.

    For those of `pids` also the CPU time (s) that a request took there, which a noisy machine
    changes less than the rate.
    """
    samples: dict[str, list[Cell]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (place, work) in contenders.items():
            job = {"place": place, "request": work, "connections": connections}
            process = psutil.Process(pids[name]) if name in pids else None
            before = _cpu(process)
            try:
                sample = await generator.run("repeat", **job, seconds=seconds, warmup=WARMUP)
            except JobError as error:
                raise JobError(f"{name}: {error}") from error
            sample["cpu"] = (_cpu(process) - before) / sample["answers"]
            samples[name].append(sample)
    return {
        name: {
            key: [sample[key] for sample in taken]
            for key in ("rate", "p50", "p99", *(("cpu",) if name in pids else ()))
        }
        for name, taken in samples.items()
    }


def _cpu(process: psutil.Process | None) -> float:
    times = process.cpu_times() if process else None
    return float(times.user + times.system) if times else 0.0


# What it bears


async def streams(generator: Generator, made: Front, quick: bool) -> Cell:
    """Idle event streams through NGINX, and requests beside them; the gateway on one core."""
    seconds = 10.0 if quick else 60.0
    client = made.enrol("laptop")
    with made.nginx("nginx", made.https_port):
        place = made.https(client)
        process = psutil.Process(made.gateway.pid)
        most = process.memory_info().rss
        waiting = asyncio.create_task(
            generator.run(
                "streams",
                **{"place": place, "request": stream(token(client))},
                **{"count": STREAMS, "seconds": seconds + 60.0},
            )
        )
        errors, sent, p99 = 0, 0, 0.0
        kinds: dict[str, int] = {}
        try:
            await _until_streams(made, STREAMS, waiting)
            for start in range(0, int(seconds), int(PIECE)):
                load = asyncio.create_task(
                    generator.run(
                        "paced",
                        **{"place": place, "requests": {"call": post(token(client))}},
                        **{"rate": 200.0, "seconds": PIECE, "deadline": 5.0, "kept": True},
                        first=start * 200,
                    )
                )
                try:
                    while not (await asyncio.wait([load], timeout=0.25))[0]:
                        most = max(most, process.memory_info().rss)
                    piece = (await load)["call"]
                finally:
                    load.cancel()
                errors, sent = errors + piece["failed"], sent + piece["sent"]
                p99 = max(p99, piece["p99"] or 0.0)
                for what, count in piece["kinds"].items():
                    kinds[what] = kinds.get(what, 0) + count
            lost = STREAMS - (await _bench(made))["streams"]
        finally:
            waiting.cancel()
        return {
            **{"streams": STREAMS, "sent": sent, "errors": errors + lost, "lost_streams": lost},
            **{"kinds": kinds, "rss": most, "p99": p99},
        }


async def slowloris(generator: Generator, made: Front, quick: bool) -> Cell:
    """slowhttptest's slow headers, bodies and reads, and a good client beside each."""
    seconds = 3.0 if quick else 12.0
    client = made.enrol("laptop")
    cell: Cell = {}
    with made.nginx("nginx", made.https_port) as nginx:
        await _taken(generator, made, client)
        for name, mode in (("none", None), ("headers", "-H"), ("body", "-B"), ("read", "-X")):
            attack = None
            if mode is not None:
                command = ["slowhttptest", mode, "-c", str(ATTACKERS), "-r", "250", "-i", "2"]
                url = f"https://localhost:{nginx.https_port}/mcp"
                command += ["-l", str(int(seconds + 5)), "-p", "3", "-u", url]
                attack = Process(command, made.directory / f"slowhttptest-{name}.log")
                with pinned(REST):
                    await attack.start()
            try:
                most = asyncio.create_task(_most_connections(nginx.https_port))
                try:
                    load = await generator.run(
                        "paced",
                        **{"place": made.https(client), "requests": {"call": post(token(client))}},
                        **{"rate": GOOD_RATE, "seconds": seconds, "deadline": 10.0, "kept": False},
                    )
                finally:
                    most.cancel()
                open_most = await most
            finally:
                if attack is not None:
                    await attack.stop()
            cell[name] = {**load["call"], "connections": open_most}
    return cell


async def _most_connections(port: int) -> int:
    """The most connections at a time to `port`, until cancelled."""
    most = 0
    try:
        while True:
            most = max(most, await asyncio.to_thread(_connections, port))
            await asyncio.sleep(0.5)
    except asyncio.CancelledError:
        return most


def _connections(port: int) -> int:
    """Established connections whose local end is `port`; /proc/net/tcp, proc(5)."""
    ours = f":{port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(ours) and line.split()[3] == "01" for line in lines)


# Whom it lets go


async def revocation(generator: Generator, made: Front, quick: bool) -> Cell:
    """From the start of writing the registry to the end of the last stream, at the client."""
    times = []
    layout = Layout(made.gateway.directory)
    with made.nginx("nginx", made.https_port):
        for number in range(2 if quick else 5):
            client = made.enrol(f"laptop{number}")
            await _taken(generator, made, client)
            held = asyncio.create_task(
                generator.run(
                    "streams",
                    **{"place": made.https(client), "request": stream(token(client))},
                    **{"count": REVOKED_STREAMS, "seconds": 10.0},
                )
            )
            try:
                await _until_streams(made, REVOKED_STREAMS, held)
                began = monotonic()
                await asyncio.to_thread(revoke, layout, client.name)
                ended = (await held)["ended"]
            finally:
                held.cancel()
            if len(ended) < REVOKED_STREAMS:
                raise JobError(f"{REVOKED_STREAMS - len(ended)} streams outlived the revocation")
            times.append(max(ended) - began)
    return {"seconds": times, "streams": REVOKED_STREAMS}


async def _taken(generator: Generator, made: Front, client: Enrolled) -> None:
    """Wait until the gateway knows a client that was just enrolled."""
    for _ in range(50):
        load = await generator.run(
            "paced",
            **{"place": made.https(client), "requests": {"call": post(token(client))}},
            **{"rate": 20.0, "seconds": 0.05, "deadline": 5.0, "kept": False},
        )
        if not load["call"]["failed"]:
            return
        await asyncio.sleep(0.05)
    raise JobError(f"the gateway does not let {client.name} in: {load['call']['kinds']}")


async def _until_streams(made: Front, count: int, opening: asyncio.Task[Cell]) -> None:
    async with asyncio.timeout(30):
        while (await _bench(made))["streams"] < count:
            if opening.done():
                opening.result()
                raise JobError("the streams ended")
            await asyncio.sleep(0.02)


async def _bench(made: Front) -> Cell:
    return await asyncio.to_thread(ask_service, made.service.port)


def ask_service(port: int) -> Cell:
    """What the service has counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/bench", timeout=10) as answer:
        told: Cell = json.load(answer)
    return told


def missing_slowhttptest() -> str | None:
    if shutil.which("slowhttptest") is None:
        return "skipped: no slowhttptest"
    return missing_nginx()


Part = Callable[[Generator, Front, bool], Awaitable[Cell]]

PARTS: dict[str, tuple[Callable[[], str | None], Part]] = {
    "verify": (lambda: None, throughput),
    "front": (missing_nginx, behind),
    "streams": (missing_nginx, streams),
    "slowloris": (missing_slowhttptest, slowloris),
    "revoke": (missing_nginx, revocation),
}
