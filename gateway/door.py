"""The two ways in as aiohttp's server sees them, with our words for what it cannot parse."""

import asyncio
import logging
from typing import Any, cast

from aiohttp import web

from .app import Gateway
from .identity import Way

_log = logging.getLogger(__name__)

CONNECTIONS = 1024  # at a time over ssh, where no NGINX counts them


class Door(web.Server):
    """aiohttp's server for one way in, with our words for what it cannot parse."""

    def __init__(self, gateway: Gateway, way: Way) -> None:
        super().__init__(
            gateway.handler(way),
            handler_cancellation=True,
            access_log=None,
            logger=_log,
            # Also the time for a head. NGINX keeps idle connections for 15 s and has to be the one
            # who closes; what comes over ssh has nobody in front who is patient for us.
            keepalive_timeout=75.0 if way == "https" else 15.0,
            lingering_time=2.0,
            auto_decompress=False,
        )
        self._gateway = gateway
        self._way = way

    def __call__(self) -> web.RequestHandler:
        """Return the protocol for a new connection."""
        return _Connection(self, loop=self._loop, **self._kwargs)

    @property
    def full(self) -> bool:
        """Whether it has more connections than it should."""
        return self._way == "ssh" and len(self._connections) > CONNECTIONS

    def reject(self, request: web.BaseRequest, code: str) -> web.Response:
        """Return the answer to what could not be served, once it is on record."""
        return self._gateway.reject(request, self._way, code)


class _Connection(web.RequestHandler):
    """aiohttp echoes what it could not parse, and logs it with a traceback; this one does not."""

    __slots__ = ("_door",)

    def __init__(self, door: Door, **options: Any) -> None:
        super().__init__(door, **options)
        self._door = door

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a connection, or hang up where there are too many."""
        super().connection_made(transport)
        if self._door.full:
            cast(asyncio.Transport, transport).abort()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is no HTTP, or on which a handler failed."""
        if isinstance(exc, ConnectionError):
            raise exc  # there is nobody to answer, or an answer was begun and has been cut off
        if status != 400:
            self.logger.error("defect", exc_info=exc)
        response = self._door.reject(
            request, "request_invalid" if status == 400 else "internal_error"
        )
        response.force_close()
        return response
