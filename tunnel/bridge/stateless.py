"""The service as of 2026-07-28: each request stands for itself, and ends with its stream."""

import contextlib

from ..mcp import is_read
from . import eras
from .memory import Memory
from .message import Json, Message
from .service import OnMessage, Service
from .verdict import MismatchError, Post


class Stateless:
    """Asks a service that keeps no sessions."""

    def __init__(self, service: Service, memory: Memory) -> None:
        self._service = service
        self._memory = memory

    async def ask(self, message: Message, on_message: OnMessage) -> Message:
        """Return the response to a request, as `Service.ask` does."""
        name = message.params.get("name")
        schema = self._memory.schema(name) if isinstance(name, str) else None
        try:
            return await self._service.ask(_post(message, schema), on_message)
        except MismatchError as exc:
            if message.method != "tools/call":
                return exc.answer
        await self._learn(message)  # the tool's schema is another by now
        try:
            post = _post(message, self._memory.schema(str(name)))
            return await self._service.ask(post, on_message)
        except MismatchError as exc:
            return exc.answer

    async def _learn(self, message: Message) -> None:
        """Ask for the tools anew."""
        params = {"_meta": message.params.get("_meta", {})}
        asking = Message({**message.content, "method": "tools/list", "params": params})
        with contextlib.suppress(MismatchError):
            answer = await self._service.ask(_post(asking, None), lambda _: None)
            if answer.result is not None:
                self._memory.learn("tools/list", None, answer.result)


def _post(message: Message, schema: Json | None) -> Post:
    headers = eras.fields(message, schema)
    return Post(message, headers, is_read(message.method), described=True)
