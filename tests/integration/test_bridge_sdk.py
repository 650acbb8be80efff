"""The MCP SDK's own client at the bridge, in each of its modes, with and without an `up`."""

import asyncio
from typing import Any

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.context import ClientRequestContext
from mcp.client.subscriptions import ToolsListChanged
from mcp.types import (
    CreateMessageRequestParams,
    CreateMessageResult,
    ElicitRequestParams,
    ElicitResult,
    ListRootsResult,
    TextContent,
)

from tests.bridges import Laptop, laptop, service
from tests.eraservice import EraService

__all__ = ["laptop", "service"]

MODES = pytest.mark.parametrize("mode", ["legacy", "auto", "2026-07-28"])


def sdk(laptop: Laptop, mode: Any) -> Client:
    async def elicit(_: ClientRequestContext, __: ElicitRequestParams) -> ElicitResult:
        return ElicitResult(action="accept", content={"name": "Ada"})

    async def sample(
        _: ClientRequestContext, __: CreateMessageRequestParams
    ) -> CreateMessageResult:
        content = TextContent(type="text", text="well")
        return CreateMessageResult(role="assistant", content=content, model="m")

    async def roots(_: ClientRequestContext) -> ListRootsResult:
        return ListRootsResult(roots=[])

    return Client(
        StdioServerParameters(**laptop.parameters),
        mode=mode,
        elicitation_callback=elicit,
        sampling_callback=sample,
        list_roots_callback=roots,
    )


async def echo(client: Client, text: str) -> None:
    result = await client.call_tool("echo", {"text": text, "region": "Köln"})
    [content] = result.content
    assert isinstance(content, TextContent)
    assert content.text == f"{text} Köln"


@MODES
@pytest.mark.parametrize("service", ["session", "stateless"], indirect=True)
async def test_all_of_it(laptop: Laptop, service: EraService, mode: str) -> None:
    await laptop.up(service.port)
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with sdk(laptop, mode) as client:
        if mode != "2026-07-28":  # where nobody is asked for them
            assert client.instructions == "Ask me."
        assert "echo" in {one.name for one in (await client.list_tools()).tools}
        await echo(client, "ü")
        result = await client.call_tool("ask_all", {})
        assert isinstance(result.content[0], TextContent)
        assert result.content[0].text == "Ada, well, 0 roots"
        await client.call_tool("steps", {}, progress_callback=on_progress)
        [content] = (await client.read_resource("test://watched")).contents
        assert content.text == "watched"  # type: ignore[union-attr]
        await client.get_prompt("greet", {"name": "Ada"})
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_tunnel_that_comes_and_goes(laptop: Laptop, service: EraService, mode: str) -> None:
    laptop.settings(service.port)
    async with asyncio.timeout(40), sdk(laptop, mode) as client:
        await echo(client, "by itself")
        running = await laptop.up(service.port)
        await echo(client, "through up")
        assert running.tunnel.snapshot().requests > 0
        running.tunnel.stop()
        await running.task
        await echo(client, "by itself")
    assert service.called == ["echo"] * 3


@pytest.mark.parametrize("service", ["session", "stateless"], indirect=True)
async def test_listening_begins_when_the_droplet_comes(laptop: Laptop, service: EraService) -> None:
    laptop.settings(service.port, tunnel="hold = 0.2")
    laptop.relay.refuse()
    async with asyncio.timeout(40), sdk(laptop, "2026-07-28") as client:

        async def listen() -> object:
            async with client.listen(tools_list_changed=True) as events:
                heard.set()
                async for event in events:
                    return event
            return None

        heard = asyncio.Event()
        listening = asyncio.ensure_future(listen())
        with pytest.raises(MCPError, match="safe to call again"):
            await client.call_tool("echo", {"text": "too early"})
        laptop.relay.accept()
        await heard.wait()
        while not listening.done():
            await client.call_tool("change", {})
        assert isinstance(await listening, ToolsListChanged)


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_droplet_that_comes_late(laptop: Laptop, service: EraService, mode: str) -> None:
    laptop.settings(service.port)
    laptop.relay.stall()
    async with asyncio.timeout(40), sdk(laptop, mode) as client:
        assert (await client.list_tools()).tools == []
        laptop.relay.resume()
        await echo(client, "late")
