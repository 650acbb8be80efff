"""An MCP server with what the official conformance suite asks of one, by the names it uses.

    python -m tests.external.everything

It prints where it listens. It serves both eras, and asks its client back (sampling, elicitation,
input_required): the answers that a tunnel could spoil most easily.
"""

import asyncio
import base64
import socket
from typing import Annotated, Any

import uvicorn
from mcp.server.mcpserver import Context, Elicit, ListRoots, MCPServer, Resolve, Sample
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.types import (
    AudioContent,
    Completion,
    CreateMessageResult,
    EmbeddedResource,
    ImageContent,
    ListRootsResult,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel, Field

from tests.droplet import free_port

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
SILENCE = base64.b64encode(
    b"RIFF\x26\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00"
    b"\x02\x00\x10\x00data\x02\x00\x00\x00\x00\x00"
).decode()

server = MCPServer("everything")


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)


def _image() -> ImageContent:
    return ImageContent(type="image", data=PIXEL, mime_type="image/png")


def _embedded(uri: str) -> EmbeddedResource:
    inside = TextResourceContents(uri=uri, mime_type="text/plain", text="This is in it.")
    return EmbeddedResource(type="resource", resource=inside)


# Tools


@server.tool()
def test_simple_text() -> TextContent:
    """Text."""
    return _text("This is a simple text response for testing.")


@server.tool()
def test_image_content() -> ImageContent:
    """An image."""
    return _image()


@server.tool()
def test_audio_content() -> AudioContent:
    """Sound."""
    return AudioContent(type="audio", data=SILENCE, mime_type="audio/wav")


@server.tool()
def test_embedded_resource() -> EmbeddedResource:
    """A resource."""
    return _embedded("test://embedded-resource")


@server.tool()
def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    """Some of each."""
    return [_text("Several kinds:"), _image(), _embedded("test://mixed-content-resource")]


@server.tool()
async def test_tool_with_logging(ctx: Context) -> TextContent:
    """Log messages before the answer."""
    for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await ctx.info(words)
        await asyncio.sleep(0.05)
    return _text("Logged.")


@server.tool()
async def test_tool_with_progress(ctx: Context) -> TextContent:
    """Progress before the answer."""
    for done in (0, 50, 100):
        await ctx.report_progress(done, 100)
        await asyncio.sleep(0.05)
    return _text("Done.")


@server.tool()
def test_error_handling() -> TextContent:
    """An error."""
    raise ValueError("This tool intentionally returns an error for testing")


class _Answer(BaseModel):
    response: str = Field(description="User's response")


class _Name(BaseModel):
    name: str


class _Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: str = Field(default="active", json_schema_extra={"enum": ["active", "inactive"]})
    verified: bool = True


@server.tool()
async def test_sampling(prompt: str, ctx: Context) -> TextContent:
    """Asks the client's model."""
    message = SamplingMessage(role="user", content=_text(prompt))
    told = await ctx.session.create_message(
        [message], max_tokens=100, related_request_id=ctx.request_id
    )
    return _text(f"LLM response: {told.content}")


@server.tool()
async def test_elicitation(message: str, ctx: Context) -> TextContent:
    """Asks the user."""
    told = await ctx.elicit(message, _Answer)
    return _text(f"User response: {told.action}")


@server.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> TextContent:
    """Asks with a default for everything."""
    told = await ctx.elicit("Please look at these", _Defaults)
    return _text(f"Elicitation completed: {told.action}")


@server.tool()
def test_custom_headers(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})], query: str
) -> TextContent:
    """An argument that is a header field too (2026-07-28)."""
    return _text(f"{query} in {region}")


# input_required (2026-07-28)


def _ask_name() -> Elicit[_Name]:
    return Elicit("What is your name?", _Name)


def _ask_model() -> Sample:
    message = SamplingMessage(role="user", content=_text("What is the capital of France?"))
    return Sample([message], max_tokens=100)


def _ask_roots() -> ListRoots:
    return ListRoots()


@server.tool()
def test_input_required_result_elicitation(
    name: Annotated[_Name, Resolve(_ask_name)],
) -> TextContent:
    """Asks the user, and greets."""
    return _text(f"Hello, {name.name}!")


@server.tool()
def test_input_required_result_sampling(
    told: Annotated[CreateMessageResult, Resolve(_ask_model)],
) -> TextContent:
    """Asks the client's model."""
    return _text(f"Told: {told.content}")


@server.tool()
def test_input_required_result_list_roots(
    roots: Annotated[ListRootsResult, Resolve(_ask_roots)],
) -> TextContent:
    """Asks for the client's roots."""
    return _text(f"{len(roots.roots)} roots")


@server.tool()
def test_input_required_result_multiple_inputs(
    name: Annotated[_Name, Resolve(_ask_name)],
    told: Annotated[CreateMessageResult, Resolve(_ask_model)],
    roots: Annotated[ListRootsResult, Resolve(_ask_roots)],
) -> TextContent:
    """Asks for all of it at once."""
    return _text(f"{name.name}, {told.content}, {len(roots.roots)} roots")


# Resources and prompts


@server.resource("test://static-text", mime_type="text/plain")
def static_text() -> str:
    """Text."""
    return "This is the content of the static text resource."


@server.resource("test://static-binary", mime_type="image/png")
def static_binary() -> bytes:
    """Bytes."""
    return base64.b64decode(PIXEL)


@server.resource("test://template/{id}/data", mime_type="application/json")
def template(id: str) -> str:
    """By number."""
    return f'{{"id": "{id}", "templateTest": true, "data": "Data for ID: {id}"}}'


@server.resource("test://watched-resource", mime_type="text/plain")
def watched() -> str:
    """To subscribe to."""
    return "Watched."


@server.prompt()
def test_simple_prompt() -> str:
    """Text."""
    return "This is a simple prompt for testing."


@server.prompt()
def test_prompt_with_arguments(arg1: str, arg2: str) -> str:
    """Text with two arguments in it."""
    return f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'"


@server.prompt()
def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    """A resource."""
    return [UserMessage(_embedded(resourceUri)), UserMessage("Please process it.")]


@server.prompt()
def test_prompt_with_image() -> list[UserMessage]:
    """An image."""
    return [UserMessage(_image()), UserMessage("Please look at it.")]


@server.completion()
async def complete(*_: Any) -> Completion:
    """The same for everything."""
    return Completion(values=["paris", "park", "party"], total=150, has_more=True)


def main() -> None:
    """Serve until a signal."""
    port = free_port()
    # Its own check of Host and Origin would refuse the port that it is reached by.
    app = server.streamable_http_app(host="0.0.0.0")
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error")

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"everything ready on 127.0.0.1:{port}", flush=True)

    Server(config).run()


if __name__ == "__main__":
    main()
