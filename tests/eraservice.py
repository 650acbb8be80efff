"""A real MCP service, made with the SDK, that can be of one era only; in the test's event loop.

::

    async with EraService("session") as service:
        ...  # service.port, service.called, service.cancelled; await service.restart()
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import uvicorn
from mcp.server.mcpserver import Context, Elicit, ListRoots, MCPServer, Resolve, Sample
from mcp.types import (
    CreateMessageResult,
    EmptyResult,
    ListRootsResult,
    SamplingMessage,
    SubscribeRequestParams,
    TextContent,
)
from pydantic import BaseModel, Field

from tunnel.bridge.eras import SESSIONS

Era = Literal["session", "stateless", "both"]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Name(BaseModel):
    name: str


class EraService:
    """The service, and what became of its calls.

    `era` may be changed while it runs. `called` are the names of the tools that were called, in
    their order; `cancelled` those that were cancelled; `subscribed` the resources of sessions.
    """

    def __init__(self, era: Era = "both") -> None:
        self.era: Era = era
        self.port = 0
        self.called: list[str] = []
        self.cancelled: list[str] = []
        self.subscribed: list[str] = []
        self.begun = 0
        """Sessions that were asked for."""
        self.refused = 0
        """Requests of the era that is not served."""
        self.let_go = asyncio.Event()
        """What the tool `hold` waits for."""
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self.extra = 0
        self._mcp = self._make()

    def _make(self) -> MCPServer:
        server = MCPServer("eras", instructions="Ask me.")
        called = self.called

        @server.tool()
        def echo(
            text: str,
            region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})] = "",
        ) -> str:
            called.append("echo")
            return f"{text} {region}".strip()

        @server.tool()
        def ask_name(name: Annotated[Name, Resolve(_ask_name)]) -> str:
            called.append("ask_name")
            return f"Hello, {name.name}!"

        @server.tool()
        def ask_all(
            name: Annotated[Name, Resolve(_ask_name)],
            told: Annotated[CreateMessageResult, Resolve(_ask_model)],
            roots: Annotated[ListRootsResult, Resolve(_ask_roots)],
        ) -> str:
            called.append("ask_all")
            assert isinstance(told.content, TextContent)
            return f"{name.name}, {told.content.text}, {len(roots.roots)} roots"

        @server.tool()
        async def steps(ctx: Context) -> str:
            called.append("steps")
            for done in (1, 2, 3):
                await ctx.report_progress(done, 3)
            await ctx.info("at work")
            return "done"

        @server.tool()
        async def hold(ctx: Context) -> str:
            called.append("hold")
            await ctx.report_progress(1, 2)
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.cancelled.append("hold")
                raise
            return "let go"

        @server.tool()
        async def ask_and_hold(name: Annotated[Name, Resolve(_ask_name)], ctx: Context) -> str:
            await hold(ctx)
            return name.name

        @server.tool()
        async def change(ctx: Context) -> str:
            called.append("change")
            self.add_tool()
            await ctx.notify_tools_changed()
            if ctx.protocol_version in SESSIONS:
                await ctx.session.send_tool_list_changed()
            return "changed"

        @server.tool()
        async def touch(ctx: Context) -> str:
            called.append("touch")
            await ctx.notify_resource_updated("test://watched")
            if ctx.protocol_version in SESSIONS:
                await ctx.session.send_resource_updated("test://watched")
            return "touched"

        @server.tool()
        def big(size: int) -> str:
            return "x" * size

        @server.resource("test://watched")
        def watched() -> str:
            return "watched"

        @server.prompt()
        def greet(name: str) -> str:
            return f"Greet {name}."

        async def subscribe(_: Any, params: SubscribeRequestParams) -> EmptyResult:
            self.subscribed.append(str(params.uri))
            return EmptyResult()

        # The SDK's server of sessions has no decorator for it.
        low = server._lowlevel_server
        low.add_request_handler("resources/subscribe", SubscribeRequestParams, subscribe)
        return server

    def add_tool(self) -> None:
        """Have one tool more, without telling anybody."""
        self.extra += 1
        name = f"extra{self.extra}"
        self._mcp.add_tool(lambda: name, name=name)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Serve, on the same port as the last time; sessions of before are not known."""
        # Its own check of Host and Origin would refuse the port that it is reached by.
        app = self._mcp.streamable_http_app(host="0.0.0.0")
        listening = socket.create_server(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        config = uvicorn.Config(
            self._only(app), log_config=None, access_log=False, timeout_graceful_shutdown=0
        )
        self._server = _Server(config)
        self._serving = asyncio.ensure_future(self._server.serve([listening]))
        async with asyncio.timeout(20):
            await self._server.ready.wait()

    async def stop(self) -> None:
        """Stop listening, and end what runs."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = self._server.force_exit = True
            await self._serving
            self._server = None

    async def restart(self) -> None:
        """Stop and start; every session is forgotten."""
        await self.stop()
        extra = self.extra
        self.extra = 0
        self._mcp = self._make()
        for _ in range(extra):
            self.add_tool()
        await self.start()

    async def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        """Wait until `condition()` holds."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.005)

    def _only(self, app: App) -> App:
        """Return the app without the era that this service is not of."""

        async def only(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            fields = dict(scope["headers"])
            version = fields.get(b"mcp-protocol-version", b"").decode()
            modern = version != "" and version not in SESSIONS
            if self.era == "session" and modern:
                await self._refuse(send, 400, -32600, "Bad Request: Unsupported protocol version")
            elif self.era == "stateless" and not modern:
                status = 404 if scope["method"] == "POST" else 405
                await self._refuse(send, status, -32601, "Method not found")
            else:
                new = scope["method"] == "POST" and b"mcp-session-id" not in fields
                self.begun += new and not modern
                await app(scope, receive, send)

        return only

    async def _refuse(self, send: Send, status: int, code: int, words: str) -> None:
        self.refused += 1
        body = f'{{"jsonrpc":"2.0","id":"x","error":{{"code":{code},"message":"{words}"}}}}'
        fields = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": body.encode()})


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # they are the test's


def _ask_name() -> Elicit[Name]:
    return Elicit("What is your name?", Name)


def _ask_model() -> Sample:
    message = SamplingMessage(role="user", content=TextContent(type="text", text="Well?"))
    return Sample([message], max_tokens=100)


def _ask_roots() -> ListRoots:
    return ListRoots()
