"""The gateway's proxy alone: its server and its client side, with nothing verified in between.

The product has no such switch. ``python -m bench.bareproxy SOCKET URL``
"""

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from aiohttp import web

from gateway.app import Gateway
from gateway.door import Door
from gateway.proxy import Proxy
from tests.faults import fast_runner


class Told:
    """Where a gateway would keep what it knows of a request."""

    status = 0


class Bare:
    """In the gateway's place behind its door; it passes everything on."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy

    def handler(self, way: str) -> Callable[[web.BaseRequest], Any]:
        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            body = await request.read() if request.body_exists else None
            return await self._proxy.forward(request, body, Told())

        return handle


async def serve(socket: Path, upstream: str) -> None:
    """Serve until SIGTERM or SIGINT."""
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    proxy = Proxy(upstream, 300.0)
    door = Door(cast(Gateway, Bare(proxy)), "https")
    listening = await loop.create_unix_server(door, socket)
    print(f"proxy ready on {socket}:0", flush=True)
    await over.wait()
    listening.close()
    await door.shutdown(1.0)
    await proxy.close()


def main() -> None:
    """Run it."""
    with fast_runner() as runner:
        runner.run(serve(Path(sys.argv[1]), sys.argv[2]))


if __name__ == "__main__":
    main()
