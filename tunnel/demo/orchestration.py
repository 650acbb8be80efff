"""A stand-in for the Orchestration Service of the Catalyst Trading System: a real MCP server.

    python -m tunnel.demo.orchestration [--host 127.0.0.1] [--port 5000]

`service` puts FastMCP around a `Desk`; `main` serves that over streamable HTTP at /mcp, with plain
GET routes beside it.
FastMCP is an optional extra and slow to import, so that happens only where the server is made.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from .desk import Desk, Json, Mode

if TYPE_CHECKING:
    from fastmcp import FastMCP


def service(desk: Desk) -> "FastMCP":
    """The MCP server around a desk: five resources, four tools, four plain GET routes.

    Every handler is a coroutine, so that the desk is only ever touched from the event loop.
    """
    from fastmcp import Context, FastMCP
    from fastmcp.exceptions import ToolError
    from pydantic import Field
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    server = FastMCP("Catalyst Orchestration (demo)")

    def publish(uri: str, read: Callable[[], Json]) -> None:
        async def resource() -> str:
            return json.dumps(read())

        server.resource(
            uri,
            name=uri.removeprefix("catalyst://"),
            description=read.__doc__,
            mime_type="application/json",
        )(resource)

    publish("catalyst://system/health", desk.health)
    publish("catalyst://positions/active", desk.positions)
    publish("catalyst://scan/results", desk.scan)
    publish("catalyst://news/sentiment", desk.sentiment)
    publish("catalyst://performance/metrics", desk.performance)

    def route(path: str, read: Callable[[], object]) -> None:
        async def answer(_: Request) -> JSONResponse:
            return JSONResponse(read(), headers={"Cache-Control": "no-store"})

        server.custom_route(path, methods=["GET"])(answer)

    route("/health", lambda: {"status": "ok"})
    route("/system/health", desk.health)
    route("/system/executions", lambda: desk.executions)
    route("/system/cycles", desk.cycles)

    def refusal(fault: Exception) -> ToolError:
        return ToolError(str(fault), log_level=logging.INFO)

    @server.tool
    async def start_trading_cycle(
        mode: Mode, note: Annotated[str, Field(max_length=200)] = ""
    ) -> Json:
        """Start a (simulated) trading cycle; the note is recorded with it."""
        return desk.start_trading_cycle(mode, note)

    @server.tool
    async def stop_trading(reason: Annotated[str, Field(min_length=1, max_length=200)]) -> Json:
        """Stop all (simulated) trading at once and close every position."""
        return desk.stop_trading(reason)

    @server.tool(annotations={"readOnlyHint": True})
    async def get_cycle(cycle_id: str) -> Json:
        """Look up one trading cycle by its id."""
        try:
            return desk.get_cycle(cycle_id)
        except LookupError as unknown:
            raise refusal(unknown) from unknown

    @server.tool
    async def run_backtest(
        steps: Annotated[int, Field(ge=1, le=1_000)],
        seconds_per_step: Annotated[float, Field(ge=0, le=60)],
        ctx: Context,
    ) -> Json:
        """Replay past sessions, reporting progress after each; 600 seconds at most."""
        try:
            desk.begin_backtest(steps, seconds_per_step)
        except ValueError as too_long:
            raise refusal(too_long) from too_long
        outcome: Literal["finished", "cancelled"] = "cancelled"
        try:
            for step in range(1, steps + 1):
                await asyncio.sleep(seconds_per_step)
                await ctx.report_progress(step, steps, f"session {step} of {steps}")
            outcome = "finished"
        finally:
            desk.end_backtest(outcome)
        return {"steps": steps, "profit_cents": steps * 137}

    return server


def serve(listening: socket.socket, app: Callable[..., Awaitable[None]]) -> None:
    """Serve an ASGI app on a listening socket until a signal; one line on stdout when ready."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"orchestration ready on {_url(listening)}", flush=True)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            # Calls that are cut short from now on are no defect; uvicorn would log each as one.
            logging.getLogger("uvicorn.error").disabled = True
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        app, lifespan="on", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    Server(config).run(sockets=[listening])


def main(arguments: list[str] | None = None) -> int:
    """Run the service; returns the exit code: 0 stopped by a signal, 2 could not start."""
    parser = argparse.ArgumentParser("tunnel.demo.orchestration", description="Demo MCP service.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=_port, default=5000, help="0 takes any free port")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        app = _make_app()
    except ImportError as missing:
        return _refuse(f"The demo needs FastMCP: pip install 'catalyst-tunnel[demo]' ({missing})")
    try:
        listening = _listen(options.host, options.port)
    except (OSError, UnicodeError) as fault:
        return _refuse(f"Cannot listen on {options.host} port {options.port}: {_words(fault)}.")
    serve(listening, app)
    return 0


def _make_app() -> Callable[..., Awaitable[None]]:
    os.environ["FASTMCP_LOG_ENABLED"] = "false"  # its own handlers draw boxes; one line is enough
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # Importing FastMCP builds some 600 pydantic models and next to no garbage: without the
    # collector it takes 10 % less, and freezing what it made saves 0.4 s more at exit.
    gc.disable()
    app = service(Desk()).http_app(path="/mcp", transport="http")
    gc.enable()
    gc.freeze()
    return app


def _listen(host: str, port: int) -> socket.socket:
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 65535")
    return int(text)


def _words(fault: OSError | UnicodeError) -> str:
    if isinstance(fault, UnicodeError):
        return "that is not a host name"
    if isinstance(fault, socket.gaierror) or fault.errno is None:
        return str(fault.strerror)
    return os.strerror(fault.errno)  # its own text goes on about the address


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/mcp" if ":" in host else f"http://{host}:{port}/mcp"


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    # While it serves, uvicorn catches both signals, shuts down, puts these handlers back and
    # raises what it caught again; before that, leaving at once is all there is to do.
    raise SystemExit(0)


def _refuse(words: str) -> int:
    print(words, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
