"""A real redis-server of one's own, in a directory, on a Unix socket and a loopback port.

::

    with RedisServer(tmp_path / "redis") as server:
        ...  # server.url, server.unix_url, server.cli("get", "x")
        server.restart(keep_data=False)
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.droplet import free_port

START_DEADLINE = 10.0


def find_redis() -> Path | None:
    """Where redis-server is; None where it is not installed."""
    found = shutil.which("redis-server")
    return Path(found) if found else None


class RedisServer:
    """redis-server with its data in `directory`; it saves when told to, and at no other time.

    `options` are redis.conf directives, read again at every start. With `password` clients need
    it. Raises RuntimeError, with the server's own words, when it does not come up.
    """

    def __init__(
        self, directory: Path, *, password: str | None = None, options: Sequence[str] = ()
    ) -> None:
        found = find_redis()
        if found is None:
            raise RuntimeError("redis-server is not installed: apt install redis-server")
        self.program = found
        self.directory = directory
        self.password = password
        self.options = list(options)
        self.host = "127.0.0.1"
        self.port = free_port()
        # Unix socket paths are short, and a test's directory may not be: it is named from within.
        self.socket = directory / "s"
        self._log = directory / "redis.log"
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """Over TCP."""
        return f"redis://{self._user}{self.host}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """Over the Unix socket."""
        return f"unix://{self._user}{quote(str(self.socket))}?db=0"

    @property
    def _user(self) -> str:
        return f":{quote(self.password, safe='')}@" if self.password else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, *, ready: bool = True) -> None:
        """Start it on the same port as the last time, and wait until it serves.

        Args:
            ready: False waits only until it accepts; it may still be loading its data.
        """
        secret = [f'requirepass "{self.password}"'] if self.password else []
        config = self.directory / "redis.conf"
        config.write_text(
            "\n".join(
                [
                    f"bind {self.host}",
                    f"port {self.port}",
                    "unixsocket s",
                    "unixsocketperm 700",
                    f'dir "{self.directory}"',
                    "daemonize no",
                    'save ""',
                    *secret,
                    *self.options,
                    "",
                ]
            )
        )
        before = len(self.log())
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [self.program, "redis.conf"],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        awaited = "Ready to accept connections" if ready else "Running mode="
        limit = monotonic() + START_DEADLINE
        while awaited not in (said := self.log()[before:]):
            if self._process.poll() is not None or monotonic() > limit:
                self.stop()
                raise RuntimeError(f"redis-server did not start: {said}")
            sleep(0.005)

    def stop(self, *, keep_data: bool = False) -> None:
        """End it: with its data on the disk, or at once and with nothing kept."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self.resume()
            if keep_data:
                self.cli("save")
            self._process.kill()
            self._process.wait(START_DEADLINE)
        self._process = None
        if not keep_data:
            (self.directory / "dump.rdb").unlink(missing_ok=True)

    def crash(self) -> None:
        """SIGKILL: what it saved last is what it will know."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(START_DEADLINE)
        self._process = None

    def restart(self, *, keep_data: bool) -> None:
        """Stop and start on the same port."""
        self.stop(keep_data=keep_data)
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections are accepted by the kernel, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def cli(self, *arguments: str) -> str:
        """Return what redis-cli answers to a command; RuntimeError where that is an error."""
        environment = {**os.environ, "REDISCLI_AUTH": self.password or ""}
        done = subprocess.run(
            ["redis-cli", "-e", "-h", self.host, "-p", str(self.port), *arguments],
            capture_output=True,
            text=True,
            timeout=START_DEADLINE,
            env=environment if self.password else None,
        )
        if done.returncode:
            raise RuntimeError(f"redis-cli {arguments[0]}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def log(self) -> str:
        """All that it has said since the first start."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""
