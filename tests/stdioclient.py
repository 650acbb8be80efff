"""A client of a stdio MCP server that sees every line: requests, answers, and what is neither.

::

    async with StdioClient(command) as client:
        await client.initialize()
        answer = await client.ask("tools/call", {"name": "echo", "arguments": {"text": "a"}})
        ...
    assert not client.noise
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Self

import psutil

Json = dict[str, Any]

LONGEST_LINE = 64 << 20
"""Bytes."""
REVISION = "2025-06-18"
MODERN = "2026-07-28"
LEAVING = 5.0  # seconds that a server may take to end, before it is killed

DISCOVER = {
    "_meta": {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "stdioclient", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
}
"""Parameters of server/discover (MCP 2026-07-28)."""


class GoneError(Exception):
    """The server has ended, or closed its stdout; requests in flight will not be answered."""


class StdioClient:
    """One server process.

    `notifications` are those that came, in their order, `noise` the lines that were no JSON-RPC,
    `lines` the number of all lines, `waiting` the requests without an answer by their id. What the
    server asks is kept in `asked` and answered by `answers`, which has a result for each method, or
    refused. What the server says on stderr goes to `log`, or nowhere.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
    ) -> None:
        self.command = [str(part) for part in command]
        self.env = {**os.environ, **(env or {})}
        self.log = log
        self.notifications: list[Json] = []
        self.noise: list[bytes] = []
        self.asked: list[Json] = []
        self.answers: dict[str, Json] = {}
        self.capabilities: Json = {}
        self.answering = True
        self.lines = 0
        self.waiting: dict[int, asyncio.Future[Json]] = {}
        self.began = 0.0  # monotonic time of its start
        self._last = 0
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        # An unnamed log is no pipe: nobody would read it, and a full one stops the server.
        with (self.log or Path(os.devnull)).open("ab") as log:
            self.began = monotonic()
            self._process = await asyncio.create_subprocess_exec(
                *self.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self.env,
                start_new_session=sys.platform != "win32",
                limit=LONGEST_LINE,
            )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        children = self.family()[1:]
        self.end_input()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._running.wait(), LEAVING)
        for one in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        with contextlib.suppress(ProcessLookupError):
            if sys.platform == "win32":
                self._running.kill()
            else:
                os.killpg(self._running.pid, signal.SIGKILL)
        await self._running.wait()
        if self._reading is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reading, LEAVING)

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def alive(self) -> bool:
        """Whether the process runs and its stdout is open."""
        return (
            self._running.returncode is None
            and self._reading is not None
            and not self._reading.done()
        )

    def family(self) -> list[psutil.Process]:
        """Its process and that one's children of all ages; empty when it has ended."""
        try:
            process = psutil.Process(self._running.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def request(self, method: str, params: Json | None = None) -> tuple[int, asyncio.Future[Json]]:
        """Send a request; its id, and the future of its whole answer."""
        self._last += 1
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        answer.add_done_callback(_seen)
        if not self.alive:
            answer.set_exception(GoneError("it has ended"))
            return self._last, answer
        self.waiting[self._last] = answer
        self._write({"id": self._last, "method": method, "params": params or {}})
        return self._last, answer

    async def ask(self, method: str, params: Json | None = None, *, within: float = 30.0) -> Json:
        """Send a request and return its whole answer; TimeoutError, GoneError."""
        return await asyncio.wait_for(self.request(method, params)[1], within)

    async def call(self, tool: str, arguments: Json, *, within: float = 30.0) -> Json:
        """Call a tool and return the whole answer."""
        return await self.ask("tools/call", {"name": tool, "arguments": arguments}, within=within)

    def notify(self, method: str, params: Json | None = None) -> None:
        """Send a notification."""
        self._write({"method": method, "params": params or {}})

    async def initialize(self, *, within: float = 30.0) -> Json:
        """Open the session as hosts do it; returns the whole answer to initialize."""
        hello = {
            "protocolVersion": REVISION,
            "capabilities": self.capabilities,
            "clientInfo": {"name": "stdioclient", "version": "1"},
        }
        answer = await self.ask("initialize", hello, within=within)
        self.notify("notifications/initialized")
        return answer

    async def notified(self, count: int, *, within: float = 30.0) -> None:
        """Wait until there are so many notifications; TimeoutError."""
        await self.until(lambda: len(self.notifications) >= count, within=within)

    async def until(self, condition: Callable[[], bool], *, within: float = 30.0) -> None:
        """Wait until something that came makes `condition()` hold; TimeoutError."""
        async with asyncio.timeout(within):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def write(self, line: bytes) -> None:
        """Send a line, whatever it is."""
        assert self._running.stdin is not None
        self._running.stdin.write(line + b"\n")

    def end_input(self) -> None:
        """Close its stdin: the client has gone."""
        if self._running.stdin is not None:
            self._running.stdin.close()

    async def ended(self, *, within: float) -> float:
        """Wait until the process has ended, and return the seconds it took; TimeoutError."""
        began = monotonic()
        await asyncio.wait_for(self._running.wait(), within)
        return monotonic() - began

    def _write(self, message: Json) -> None:
        text = json.dumps({"jsonrpc": "2.0", **message}, separators=(",", ":"))
        self.write(text.encode())

    async def _read(self) -> None:
        stdout = self._running.stdout
        assert stdout is not None
        try:
            while line := await stdout.readline():
                self._take(line)
        except ValueError:
            self.noise.append(b"a line of more than %d bytes" % LONGEST_LINE)
        for answer in self.waiting.values():
            if not answer.done():
                answer.set_exception(GoneError("it ended without an answer"))

    def _take(self, line: bytes) -> None:
        self.lines += 1
        self._news.set()
        try:
            message = json.loads(line.decode("utf-8"))
        except ValueError:
            message = None
        if (
            not isinstance(message, dict)
            or message.get("jsonrpc") != "2.0"
            or not line.endswith(b"\n")
            or line.endswith(b"\r\n")
        ):
            self.noise.append(line)
        elif "method" not in message:
            answer = self.waiting.pop(message.get("id"), None)
            if answer is None:
                self.noise.append(line)  # an answer to nothing, or a second one
            elif not answer.done():
                answer.set_result(message)
        elif "id" in message:
            self.asked.append(message)
            refusal = {"code": -32601, "message": "not served by this client"}
            result = self.answers.get(message["method"])
            answered = {"error": refusal} if result is None else {"result": result}
            if self.answering:
                self._write({"id": message["id"], **answered})
        else:
            self.notifications.append(message)


def _seen(answer: asyncio.Future[Json]) -> None:
    """Whoever sends a request need not wait for its answer; asyncio would say that one is lost."""
    if not answer.cancelled():
        answer.exception()
