"""Enrolled clients at the gateway's doors: its Unix socket, its loopback port, NGINX in front.

::

    async with open_far(tmp_path) as far:  # a gateway, a service, two operators
        async with far.at("unix").ask(call()) as answer:
            ...
"""

import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp
from yarl import URL

from gateway.settings import Layout
from gateway.verify import verify
from tests.gatewayserver import Enrolled, GatewayServer
from tests.nginxserver import Nginx
from tests.rawservice import RawService

Door = Literal["unix", "loopback", "nginx"]


class Caller:
    """One client at one door. It adds nothing to a request but its identity."""

    def __init__(
        self, client: Enrolled, door: Door, session: aiohttp.ClientSession, base: str
    ) -> None:
        self.client = client
        self.door = door
        self.session = session
        self._base = base

    def identity(self) -> dict[str, str]:
        """Fields of a good request at this door; on the loopback port they serve once."""
        if self.door == "loopback":
            return self.client.over_ssh()
        if self.door == "unix":
            return self.client.over_https()
        return {"Authorization": f"Bearer {self.client.token(bound=True)}"}

    def ask(
        self,
        body: bytes | None = None,
        *,
        path: str = "/mcp",
        method: str | None = None,
        fields: dict[str, str] | None = None,
        chunked: bool | None = None,
    ) -> Any:
        """Send a request: POST where there is a body; return aiohttp's context manager."""
        headers = self.identity() | (fields or {})
        if body is not None:
            headers = {"Content-Type": "application/json"} | headers
        verb = method or ("GET" if body is None else "POST")
        url = URL(f"{self._base}{path}", encoded=True)
        return self.session.request(
            verb, url, data=body, headers=headers, allow_redirects=False, chunked=chunked
        )

    async def status(self, body: bytes | None = None, **more: Any) -> int:
        """Send a request, read the answer to its end and return its status."""
        async with self.ask(body, **more) as answer:
            await answer.read()
            return int(answer.status)

    async def refusal(self, body: bytes | None = None, **more: Any) -> tuple[int, str]:
        """Send a request that the gateway must answer itself; return status and code."""
        async with self.ask(body, **more) as answer:
            assert "Via" not in answer.headers, answer
            assert answer.headers["Proxy-Status"].startswith("catalyst-gateway; error=")
            told = (await answer.json())["error"]
            return answer.status, told.get("data", told)["code"]


class Callers:
    """Makes callers, and ends their connections."""

    def __init__(self, gateway: GatewayServer, nginx: Nginx | None = None) -> None:
        self._gateway = gateway
        self._nginx = nginx
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._exits.aclose()

    def at(self, door: Door, client: Enrolled, gateway: GatewayServer | None = None) -> Caller:
        """Return a caller with connections of its own; at another gateway, if one is given."""
        gateway = gateway or self._gateway
        connector: aiohttp.BaseConnector
        if door == "unix":
            connector, base = aiohttp.UnixConnector(str(gateway.socket)), "http://localhost"
        elif door == "loopback":
            connector, base = aiohttp.TCPConnector(limit=0), f"http://127.0.0.1:{gateway.port}"
        else:
            assert self._nginx is not None
            context = ssl.create_default_context(cafile=self._nginx.site.tls_certificate)
            keys = client.home / "keys"
            context.load_cert_chain(keys / "tls.crt", keys / "tls.key")
            connector = aiohttp.TCPConnector(limit=0, ssl=context)
            base = f"https://localhost:{self._nginx.https_port}/mcp"
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=20),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
        )
        self._exits.push_async_callback(session.close)
        return Caller(client, door, session, base)


@dataclass
class Far:
    """The far side without its two front doors, and who may come in."""

    gateway: GatewayServer
    service: RawService
    callers: Callers
    laptop: Enrolled
    neighbour: Enrolled

    @property
    def layout(self) -> Layout:
        return Layout(self.gateway.directory)

    def at(self, door: Door, client: Enrolled | None = None) -> Caller:
        """Return a caller with connections of its own; the laptop's where no client is given."""
        return self.callers.at(door, client or self.laptop)

    async def about(self, path: str) -> tuple[int, str]:
        """Ask what an operator may see without credentials."""
        url = f"http://127.0.0.1:{self.gateway.port}{path}"
        async with aiohttp.ClientSession() as session, session.get(url) as answer:
            return answer.status, await answer.text()

    def decided(self, code: str, *, after: int = 0) -> list[dict[str, Any]]:
        """Return the lines on record with that code, after that many lines."""
        return [line for line in self.gateway.audit()[after:] if line.get("code") == code]

    async def until_decided(
        self, code: str, count: int = 1, *, after: int = 0
    ) -> list[dict[str, Any]]:
        """Wait until so many lines with that code are on record, after that many others."""
        await self.service.until(lambda: len(self.decided(code, after=after)) >= count)
        return self.decided(code, after=after)


@contextlib.asynccontextmanager
async def open_far(directory: Path, **settings: str) -> AsyncIterator[Far]:
    """Start a gateway and a service in `directory`; `settings` are keys of gateway.toml.

    Afterwards the gateway must have stopped in order, said nothing of a defect, and left an audit
    log that holds.
    """
    async with RawService() as service:
        gateway = GatewayServer(
            directory / "gateway", f"http://127.0.0.1:{service.port}", settings=settings
        )
        laptop = gateway.enrol(directory / "laptop", "operator")
        neighbour = gateway.enrol(directory / "neighbour", "operator")
        with gateway:
            async with Callers(gateway) as callers:
                yield Far(gateway, service, callers, laptop, neighbour)
            if gateway.running:
                assert gateway.stop() == 0
        assert "defect" not in gateway.log.read_text()
        assert "Traceback" not in gateway.log.read_text()
        assert verify([Layout(gateway.directory).audit]).findings == ()
