"""Recovery: requests keep coming at a steady pace while something breaks; which fail, which wait.

Every fault has its own sshd, relay, target and contenders, so all of them run at the same time.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from bench import processes
from bench.contenders import CONTENDERS, Catalyst, Contender, Direct, Far
from bench.processes import Announced, Generator, JobError
from tests.droplet import Sshd

RATE = 20.0  # requests a second, each on a new connection
BEFORE = 2.0  # seconds of calm before the fault
GRACE = 1.0  # seconds after the service is back in which a 502 may still end


class CatalystPost(Catalyst):
    """The listener again, asked with POSTs that carry a JSON-RPC read."""

    name = "catalyst listener, POST reads"
    method = "POST"


RECOVERING: list[type[Contender]] = [*(kind for kind in CONTENDERS if kind is not Direct)]
RECOVERING.append(CatalystPost)


@dataclass
class Scene:
    """What a fault can lay hands on."""

    sshd: Sshd
    relay: Announced
    target: Announced
    place: Path

    async def kill_session(self, seconds: float) -> None:
        """SIGKILL sshd's processes for the open connections."""
        self.sshd.kill_sessions()
        await asyncio.sleep(seconds)

    async def dead_link(self, seconds: float) -> None:
        """Nothing passes, either way, and nobody is told."""
        await self.relay.tell("stall")
        await asyncio.sleep(seconds)
        await self.relay.tell("resume")

    async def sshd_down(self, seconds: float) -> None:
        """sshd and its sessions end; connections to it are refused."""
        self.sshd.stop()
        await asyncio.sleep(seconds)
        self.sshd.start()

    async def service_restart(self, seconds: float) -> None:
        """The service ends and comes back on its port."""
        await self.target.stop()
        await asyncio.sleep(seconds)
        self.target = processes.target(self.place, self.target.port)
        await self.target.__aenter__()


@dataclass(frozen=True)
class Fault:
    """A scene's fault: how long it lasts, and how long the load goes on after it."""

    name: str
    title: str
    act: Callable[[Scene, float], Awaitable[None]]
    lasts: float
    lasts_quick: float
    after: float
    allows_502: bool = False

    def duration(self, *, quick: bool) -> float:
        return self.lasts_quick if quick else self.lasts


FAULTS = [
    Fault("kill", "SSH session process killed", Scene.kill_session, 0.0, 0.0, 6.0),
    Fault("dead", "link dead {seconds:g} s", Scene.dead_link, 8.0, 8.0, 4.0),
    Fault("down", "sshd down {seconds:g} s", Scene.sshd_down, 60.0, 6.0, 8.0),
    Fault("restart", "service restart, {seconds:g} s", Scene.service_restart, 2.0, 2.0, 4.0, True),
]


async def measure(
    generator: Generator, directory: Path, names: Collection[str], *, quick: bool
) -> list[dict[str, Any]]:
    """Run the named faults at the same time; one row for each, a cell for each contender."""
    faults = [fault for fault in FAULTS if fault.name in names]
    return list(
        await asyncio.gather(*(_scene(generator, directory, fault, quick) for fault in faults))
    )


async def _scene(
    generator: Generator, directory: Path, fault: Fault, quick: bool
) -> dict[str, Any]:
    seconds = fault.duration(quick=quick)
    async with AsyncExitStack() as stack:
        place = directory / f"fault-{fault.name}"
        sshd = stack.enter_context(Sshd(place))
        target = await stack.enter_async_context(processes.target(place))
        relay = await stack.enter_async_context(processes.relay(sshd.port, 0.0, place))
        scene = Scene(sshd, relay, target, place)
        stack.push_async_callback(lambda: scene.target.stop())
        far = Far(sshd, relay.port, target.port, target.port, place)

        cells: dict[str, dict[str, Any]] = {}
        contenders = []
        for kind in RECOVERING:
            if why := kind.missing():
                cells[kind.name] = {"error": why}
                continue
            contender = kind(far)
            stack.push_async_callback(contender.stop)
            contenders.append(contender)
        started = await asyncio.gather(
            *(contender.start(generator) for contender in contenders), return_exceptions=True
        )
        for contender, failure in zip(contenders, started, strict=True):
            if isinstance(failure, JobError):
                cells[contender.name] = {"error": f"did not start: {failure}"}
            elif failure is not None:
                raise failure

        running = [contender for contender in contenders if contender.name not in cells]
        loads = [
            asyncio.create_task(
                generator.run(
                    "steady",
                    port=contender.port,
                    rate=RATE,
                    seconds=BEFORE + seconds + fault.after,
                    deadline=seconds + 30.0,
                    method=getattr(contender, "method", "GET"),
                )
            )
            for contender in running
        ]
        await asyncio.sleep(BEFORE)
        began = monotonic()
        await fault.act(scene, seconds)
        window = (began, monotonic() + GRACE) if fault.allows_502 else None
        for contender, result in zip(running, await asyncio.gather(*loads), strict=True):
            cells[contender.name] = _cell(result, window)
    return {
        "fault": fault.name,
        "title": fault.title.format(seconds=seconds),
        "contenders": {kind.name: cells[kind.name] for kind in RECOVERING},
    }


def _cell(result: dict[str, Any], window: tuple[float, float] | None) -> dict[str, Any]:
    """The result, with the 502s of the time in which the service was away counted apart."""
    excused = [
        what
        for _, ended, what in result.pop("failures")
        if window and what == "502" and window[0] <= ended <= window[1]
    ]
    return result | {"failed": result["failed"] - len(excused), "excused_502": len(excused)}
