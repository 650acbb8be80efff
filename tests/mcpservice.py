"""The demo's service with odd tools besides, as a process; `--old` makes it one of sessions only.

    python -m tests.mcpservice --port 5000 [--old]

An old service is the same behind a door that knows no revision after 2025-11-25: it answers the
newer ones as servers of that time do, with 400.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from typing import Any, Literal

from tests.droplet import free_port
from tunnel.demo.desk import Desk
from tunnel.demo.orchestration import _listen, serve, service

NEW = b"2026-07-28"
STEERING = "\x1b]0;owned\x07\x1b[31mred\x1b[0m \x9b2J \u202etxet"
BINARY = b"\x00\x01\xff\x1b[2J"


def odd_service(desk: Desk) -> Any:
    """The demo's service, and what a terminal has to be careful with."""
    from fastmcp import Context

    server = service(desk)

    @server.tool(annotations={"destructiveHint": True})
    async def typed(
        count: int,
        ratio: float = 1.0,
        on: bool = False,
        names: list[str] | None = None,
        more: dict[str, int] | None = None,
        kind: Literal["a", "b"] = "a",
    ) -> dict[str, Any]:
        """Tell what came."""
        return {"came": [count, ratio, on, names, more, kind]}

    @server.tool
    async def steering() -> str:
        """Answer with what steers a terminal: \x1b[2J."""
        return STEERING

    @server.tool
    async def asking(ctx: Context) -> str:
        """Ask the caller back."""
        answer = await ctx.elicit("Really?", response_type=bool)
        return answer.action

    @server.resource("odd://binary", mime_type="application/octet-stream")
    async def binary() -> bytes:
        return BINARY

    @server.resource("odd://steering")
    async def steers() -> str:
        return STEERING

    @server.resource("odd://of/{name}", description="One by its name.")
    async def by_name(name: str) -> str:
        return f"this is {name}"

    return server


def old(app: Callable[..., Any]) -> Callable[..., Any]:
    """An ASGI app that knows no revision of MCP after 2025-11-25."""

    async def door(scope: Any, receive: Any, send: Any) -> None:
        if (b"mcp-protocol-version", NEW) not in scope.get("headers", ()):
            await app(scope, receive, send)
            return
        error = {"code": -32600, "message": "Bad Request: Unsupported protocol version"}
        body = json.dumps({"jsonrpc": "2.0", "id": "server-error", "error": error}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return door


class Odd:
    """That service in a process of its own."""

    def __init__(self, *arguments: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self._arguments = arguments
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Odd":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it serves."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.mcpservice", f"--port={self.port}", *self._arguments],
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert re.search(rb" ready on ", self._process.stdout.readline())

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def get(self, path: str) -> Any:
        """Return what it answers to a plain GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)

    def executions(self, tool: str) -> int:
        """Return how often a tool was called."""
        count: int = self.get("/system/executions")[tool]
        return count


def main() -> None:
    """Serve until a signal."""
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--old", action="store_true")
    options = parser.parse_args()
    os.environ["FASTMCP_LOG_ENABLED"] = "false"  # as the demo does
    desk = Desk()
    server = odd_service(desk)

    async def performance(_: Request) -> JSONResponse:
        return JSONResponse(desk.performance())

    server.custom_route("/performance", methods=["GET"])(performance)
    app = server.http_app(path="/mcp", transport="http")
    serve(_listen("127.0.0.1", options.port), old(app) if options.old else app)


if __name__ == "__main__":
    main()
