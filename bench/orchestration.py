"""The demo's orchestration service, with what only a bench asks for.

``python -m bench.orchestration --port 0``

=======================  ==========================================================================
echo(text)               the text
blob(size)               so many characters, of a known pattern
trade(note, pause)       a trading cycle is started, and the answer comes `pause` seconds later
bench://slow             a resource that is read in `SLOW_READ` seconds
GET /bench               JSON: executions by tool, backtests finished and cancelled, notes of cycles
=======================  ==========================================================================
"""

import argparse
import asyncio
import json
import logging
import os
import socket

from tunnel.demo.desk import Desk, Json
from tunnel.demo.orchestration import serve, service

SLOW_READ = 0.1

_PATTERN = "0123456789abcdef"


def blob_text(size: int) -> str:
    """What blob(size) answers."""
    return (_PATTERN * (size // len(_PATTERN) + 1))[:size]


def main() -> None:
    """Run the service until a signal."""
    from fastmcp.tools.base import ToolResult
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    parser = argparse.ArgumentParser(prog="python -m bench.orchestration")
    parser.add_argument("--port", type=int, default=0)
    listening = socket.create_server(("127.0.0.1", parser.parse_args().port))
    os.environ["FASTMCP_LOG_ENABLED"] = "false"
    logging.basicConfig(level=logging.WARNING)
    desk = Desk()
    server = service(desk)

    @server.tool
    async def echo(text: str) -> str:
        """Answer with the text."""
        return text

    @server.tool(output_schema=None)
    async def blob(size: int) -> ToolResult:
        """Answer with so many characters, once: a structured copy would double them."""
        return ToolResult(content=blob_text(size))

    @server.tool
    async def trade(note: str, pause: float) -> Json:
        """Start a trading cycle and take one's time to say so."""
        started = desk.start_trading_cycle("normal", note)
        await asyncio.sleep(pause)
        return started

    @server.resource("bench://slow")
    async def slow() -> str:
        await asyncio.sleep(SLOW_READ)
        return json.dumps(desk.health())

    @server.custom_route("/bench", methods=["GET"])
    async def told(_: Request) -> JSONResponse:
        backtests = desk.performance()
        return JSONResponse(
            {
                "executions": desk.executions,
                "finished": backtests["backtests_finished"],
                "cancelled": backtests["backtests_cancelled"],
                "notes": [cycle["note"] for cycle in desk.cycles()],
            }
        )

    serve(listening, server.http_app(path="/mcp", transport="http"))


if __name__ == "__main__":
    main()
