"""The processes around a measurement: started, waited for, ended with whatever they started."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 10.0


class JobError(Exception):
    """The load generator says that a job failed."""


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started meanwhile keeps to one core, with all its threads; a no-op off Linux."""
    if sys.platform != "linux":
        yield
        return
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(ours)[core % len(ours)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


class Process:
    """A child process in a group of its own, with its output in a log."""

    def __init__(
        self, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.command = [str(part) for part in command]
        self.log = log
        self.env = {**os.environ, **(env or {})}
        self.process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self, *, talks: bool = False) -> None:
        """Start it; with `talks` its stdin and stdout are pipes."""
        pipe = asyncio.subprocess.PIPE if talks else None
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=pipe or asyncio.subprocess.DEVNULL,
                stdout=pipe or log,
                stderr=log,
                cwd=ROOT,
                env=self.env,
                start_new_session=True,
                limit=64 << 20,
            )

    async def line(self) -> str:
        """The next line it prints."""
        assert self.process is not None
        assert self.process.stdout is not None
        return (await asyncio.wait_for(self.process.stdout.readline(), DEADLINE)).decode()

    def write(self, line: str) -> None:
        """Give it a line."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n".encode())

    async def kill(self) -> None:
        """SIGKILL to its whole group, at once."""
        if self.process is not None and self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.stop()

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to what is left of its group."""
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), DEADLINE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        self.process = None

    async def __aenter__(self) -> Self:
        await self.start(talks=True)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()


class Announced(Process):
    """A process that prints ``... ready on HOST:PORT`` first: the relay, the target."""

    port = 0

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            said = await self.line()
            if " ready on " not in said:
                raise RuntimeError(f"{self.command} said {said!r}; see {self.log}")
        except BaseException:
            await self.stop()
            raise
        self.port = int(said.rpartition(":")[2])
        return self

    async def tell(self, word: str) -> None:
        """Give a command and wait for its ``ok``."""
        self.write(word)
        said = (await self.line()).strip()
        if said != f"ok {word}":
            raise RuntimeError(f"{word}: {said}")


def relay(target_port: int, delay: float, directory: Path) -> Announced:
    """A relay with `delay` seconds one way; see tests/faults.py."""
    return Announced(
        [
            *(sys.executable, "-m", "tests.faults", "--target", f"127.0.0.1:{target_port}"),
            *("--delay-ms", str(delay * 1000)),
        ],
        directory / "relay.log",
    )


def target(directory: Path, port: int = 0) -> Announced:
    """The HTTP service; see tests/target.py."""
    return Announced(
        [sys.executable, "-m", "tests.droplet", "target", "--port", str(port)],
        directory / "target.log",
    )


def service(directory: Path, pause: float = 0.0) -> Announced:
    """An MCP service of sorts; see bench/service.py."""
    return Announced(
        [sys.executable, "-m", "bench.service", "--pause-ms", str(pause * 1000)],
        directory / "service.log",
    )


class Generator(Process):
    """The load generator of bench/load.py; any number of jobs at a time."""

    def __init__(self, directory: Path) -> None:
        super().__init__([sys.executable, "-m", "bench.load"], directory / "load.log")
        self._jobs: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._last = 0
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._listening = asyncio.create_task(self._listen())
        return self

    async def run(self, job: str, **arguments: Any) -> dict[str, Any]:
        """Run a job and return its result; raises JobError."""
        self._last += 1
        done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._jobs[self._last] = done
        self.write(json.dumps({"id": self._last, "job": job, **arguments}))
        return await done

    async def _listen(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        while said := await self.process.stdout.readline():
            reply = json.loads(said)
            done = self._jobs.pop(reply["id"])
            if done.done():
                continue
            if "error" in reply:
                done.set_exception(JobError(reply["error"]))
            else:
                done.set_result(reply["result"])
        for done in self._jobs.values():
            if not done.done():
                done.set_exception(JobError(f"the load generator ended; see {self.log}"))

    async def stop(self) -> None:
        await super().stop()
        if self._listening is not None:
            await self._listening
