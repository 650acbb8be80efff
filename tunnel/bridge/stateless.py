"""The service as of 2026-07-28: each request stands for itself, and ends with its stream."""

from ..mcp import is_read
from . import eras
from .memory import Memory
from .message import Message
from .service import OnMessage, Service
from .verdict import Post

HEADER_MISMATCH = -32020  # MCP 2026-07-28, Transports: what the header says is not in the body


class Stateless:
    """Asks a service that keeps no sessions."""

    def __init__(self, service: Service, memory: Memory) -> None:
        self._service = service
        self._memory = memory

    async def ask(self, message: Message, on_message: OnMessage) -> Message:
        """Return the response to a request, as `Service.ask` does."""
        name = message.params.get("name")
        schema = self._memory.schema(name) if isinstance(name, str) else None
        headers = eras.fields(message, schema)
        post = Post(message, headers, is_read(message.method))
        answer = await self._service.ask(post, on_message)
        mismatch = answer.error is not None and answer.error.get("code") == HEADER_MISMATCH
        if not mismatch or message.method != "tools/call":
            return answer
        await self._learn(message)  # nothing was done; the tool's schema is another by now
        headers = eras.fields(message, self._memory.schema(str(name)))
        return await self._service.ask(Post(message, headers, repeatable=False), on_message)

    async def _learn(self, message: Message) -> None:
        """Ask for the tools anew."""
        params = {"_meta": message.params.get("_meta", {})}
        asking = Message({**message.content, "method": "tools/list", "params": params})
        post = Post(asking, eras.fields(asking, None), repeatable=True)
        answer = await self._service.ask(post, lambda _: None)
        if answer.result is not None:
            self._memory.learn("tools/list", None, answer.result)
