"""The near side of the droplet: a real nginx with the rendered site, and an upstream that tells.

::

    with Nginx(tmp_path / "nginx", Site(...)) as nginx:
        async with Upstream(nginx.socket) as upstream:
            ...  # https://127.0.0.1:{nginx.https_port}
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Self

import h11
import psutil

from gateway.site import Site, find_nginx, render

START_DEADLINE = 10.0

# What Debian's nginx.conf says around a site, as far as it matters, within one directory.
CONFIG = """\
{user}daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/error.log notice;
events {{ worker_connections 2048; }}
http {{
    default_type application/octet-stream;
    access_log {directory}/other.log;
    client_body_temp_path {directory}/temp/body;
    proxy_temp_path {directory}/temp/proxy;
    fastcgi_temp_path {directory}/temp/fastcgi;
    uwsgi_temp_path {directory}/temp/uwsgi;
    scgi_temp_path {directory}/temp/scgi;
    gzip on;
    gzip_types *;
    gzip_proxied any;
    include {site}/nginx/site.conf;
}}
"""


class Nginx:
    """A real nginx on loopback ports, with `site` rendered into `site.directory`/nginx.

    The TLS files and client-ca.pem have to be there. It runs as who runs it; root's workers stay
    root, so that they reach into directories of mode 0700. Raises RuntimeError, with nginx's own
    words, when it does not come up.
    """

    def __init__(self, directory: Path, site: Site) -> None:
        found = find_nginx()
        if found is None:
            raise RuntimeError("nginx is not installed: apt install nginx-light")
        self.program = found
        self.directory = directory
        self.site = site
        self.host = "127.0.0.1"
        self.https_port = site.https_port
        self.http_port = site.http_port
        self.socket = site.directory / "run" / "gateway.sock"
        self._config = directory / "nginx.conf"
        self._process: subprocess.Popen[bytes] | None = None

        (directory / "temp").mkdir(parents=True, exist_ok=True)
        self.socket.parent.mkdir(parents=True, exist_ok=True)
        snippets = site.directory / "nginx"
        snippets.mkdir(exist_ok=True)
        for name, text in render(site).items():
            (snippets / name).write_text(text)
        user = "user root;\n" if os.geteuid() == 0 else ""
        self._config.write_text(CONFIG.format(user=user, directory=directory, site=site.directory))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.kill()

    def check(self) -> str:
        """Return what `nginx -t` says; RuntimeError with it where the test fails."""
        done = subprocess.run(
            [*self._command(), "-t", "-q"], capture_output=True, text=True, timeout=START_DEADLINE
        )
        if done.returncode:
            raise RuntimeError(f"nginx -t: {done.stderr}")
        return done.stderr

    def start(self) -> None:
        """Start it and wait until it accepts on both ports."""
        with (self.directory / "stderr.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        limit = monotonic() + START_DEADLINE
        for port in (self.https_port, self.http_port):
            while not _accepts(self.host, port):
                if self._process.poll() is not None or monotonic() > limit:
                    self.kill()
                    raise RuntimeError(f"nginx did not start: {self.log()}")
                sleep(0.005)

    def stop(self) -> None:
        """Let it finish what it does, as `nginx -s quit` would, and wait for that."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(START_DEADLINE)
            self._process = None

    def kill(self) -> None:
        """End it at once, connections and all; the master sees to its workers."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_DEADLINE)
            self._process = None

    def reload(self) -> None:
        """Read the configuration again, and wait until new workers serve and old ones are leaving.

        Raises RuntimeError where nginx refused it and went on with the old one.
        """
        assert self._process is not None
        self.check()
        old = {worker.pid for worker in self.workers()}
        before = self.log().count("gracefully shutting down")
        self._process.send_signal(signal.SIGHUP)
        limit = monotonic() + START_DEADLINE
        while (
            self.log().count("gracefully shutting down") == before
            or not {worker.pid for worker in self.workers()} - old
        ):
            if monotonic() > limit:
                raise RuntimeError(f"nginx did not reload: {self.log()}")
            sleep(0.005)

    def workers(self) -> list[psutil.Process]:
        """Its worker processes, those that are leaving included."""
        if self._process is None:
            return []
        children: list[psutil.Process] = psutil.Process(self._process.pid).children()
        return children

    def log(self) -> str:
        """Return the error log so far, and what was said before it was open."""
        logs = [self.directory / "stderr.log", self.directory / "error.log"]
        return "".join(log.read_text(errors="replace") for log in logs if log.exists())

    def _command(self) -> list[str]:
        return [str(self.program), "-p", str(self.directory), "-c", str(self._config)]


def _accepts(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


@dataclass
class Seen:
    """One request as it came out of nginx."""

    method: str
    path: str
    headers: list[tuple[str, str]]
    """Names in lower case, in their order, duplicates kept."""
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        """Return the values of every field of that name."""
        return [value for key, value in self.headers if key == name]


@dataclass
class Upstream:
    """In the gateway's place on its Unix socket: it records what arrives, byte for byte.

    `/die` hangs up when the request has arrived, `/stream` sends one event, waits for `release` and
    sends another, `/cut` does not send the other; `/answer/STATUS` answers with that status, as the
    gateway does. All else is echoed as JSON: method, path, headers, length.
    """

    path: Path
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    """Opened so far."""
    release: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nginx hung up on a stream."""

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_unix_server(self._accept, self.path)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        self.path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (seen := await _read(reader)) is not None:
                self.seen.append(seen)
                if not await self._answer(seen, reader, writer):
                    break
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async def _answer(
        self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer; False ends the connection."""
        if seen.path == "/die":
            return False
        if seen.path in {"/cut", "/stream"}:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            writer.write(head + b"transfer-encoding: chunked\r\n\r\n" + _chunk(b"data: 1\n\n"))
            await writer.drain()
            if seen.path == "/stream":
                await self._until_released(reader)
                if self.left.is_set():
                    return False
                writer.write(_chunk(b"data: 2\n\n") + b"0\r\n\r\n")
            else:
                await self.release.wait()
                return False
        elif seen.path.startswith("/answer/"):
            body = b'{"error":{"code":"of_the_gateway","message":"as it is"}}'
            status = seen.path.removeprefix("/answer/").encode()
            writer.write(
                b"HTTP/1.1 " + status + b" Words\r\ncontent-type: application/json\r\n"
                b"date: Thu, 01 Jan 2026 00:00:00 GMT\r\nlocation: http://catalyst_gateway/x\r\n"
                b"proxy-status: catalyst-gateway; error=http_request_denied\r\n"
                b"x-accel-redirect: /health\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
        else:
            about = {"method": seen.method, "path": seen.path, "headers": seen.headers}
            body = json.dumps({**about, "length": len(seen.body)}).encode()
            writer.write(
                b"HTTP/1.1 200 OK\r\nvia: 1.1 catalyst-gateway\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
                % (len(body), body)
            )
        await writer.drain()
        return True

    async def _until_released(self, reader: asyncio.StreamReader) -> None:
        gone = asyncio.ensure_future(reader.read(1))
        released = asyncio.ensure_future(self.release.wait())
        await asyncio.wait({gone, released}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.left.set()
        for task in (gone, released):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _read(reader: asyncio.StreamReader) -> Seen | None:
    """Read one request with h11's strictness; None at the end of the connection."""
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 16)
    seen: Seen | None = None
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(1 << 16)
            if not data and seen is None:
                return None
            parser.receive_data(data)
        elif isinstance(event, h11.Request):
            headers = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
            seen = Seen(event.method.decode(), event.target.decode("latin-1"), headers)
        elif isinstance(event, h11.Data):
            assert seen is not None
            seen.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return seen
        else:
            return None


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
