"""What it costs to have: memory after long use and reconnects, and time to the first answer."""

import asyncio
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import psutil

from bench import processes
from bench.contenders import Catalyst, Far
from bench.processes import Generator
from tests.droplet import Sshd

SETTLE = 1.0  # seconds of quiet before memory is read
CONNECTIONS = 16


async def memory(generator: Generator, directory: Path, *, quick: bool) -> dict[str, Any]:
    """RSS (bytes) of `up` after 1,000 requests, and after 10,000 and 50 reconnects."""
    few, many, reconnects = (1_000, 2_000, 4) if quick else (1_000, 10_000, 50)
    place = directory / "memory"
    with Sshd(place) as sshd:
        async with processes.target(place) as target:
            up = Catalyst(Far(sshd, sshd.port, target.port, target.port, place))
            try:
                await up.start(generator)
                assert up.process is not None
                process = psutil.Process(up.process.pid)

                async def ask(requests: int) -> int:
                    done = await generator.run(
                        "closed",
                        **{"port": up.port, "path": "/one", "connections": CONNECTIONS},
                        requests=requests,
                    )
                    return int(done["requests"])

                async def rss() -> int:
                    await asyncio.sleep(SETTLE)
                    return int(process.memory_info().rss)

                asked = await ask(few)
                before = await rss()
                course = []
                for left in range(reconnects, 0, -1):
                    sshd.kill_sessions()
                    # The next request is held until the link is back, so this waits for it too.
                    asked += await ask(-(-(many - asked) // left))
                    course.append(process.memory_info().rss)
                after = await rss()
                files = process.num_fds()
            finally:
                await up.stop()
            logins = sshd.log().count("Accepted publickey")
    return {
        "rss_before": before,
        "rss_after": after,
        "rss_after_each_reconnect": course,
        "growth_percent": (after - before) / before * 100,
        "requests": asked,
        "reconnects": logins - 1,
        "open_files": files,
    }


async def startup(generator: Generator, directory: Path, *, quick: bool) -> dict[str, Any]:
    """Seconds from starting the command to the first answered request; the median of a few."""
    place = directory / "startup"
    times = []
    with Sshd(place) as sshd:
        async with processes.target(place) as target:
            far = Far(sshd, sshd.port, target.port, target.port, place)
            for _ in range(3 if quick else 7):
                up = Catalyst(far)
                up.launch()
                assert up.process is not None
                answer = asyncio.create_task(generator.run("first", port=up.port, deadline=20.0))
                try:
                    began = monotonic()
                    await up.process.start()
                    times.append((await answer)["at"] - began)
                finally:
                    await up.stop()
    return {"seconds": median(times), "slowest": max(times)}
