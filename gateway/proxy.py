"""Passing a request on to the service and its answer back, as it comes; nothing is decided here.

aiohttp's client is told to keep its hands off: no redirects, no decompression, no cookies, no proxy
from the environment, no headers of its own. Hop-by-hop fields follow RFC 9110 section 7.6.1.
"""

import asyncio
from collections.abc import Iterable
from typing import Protocol

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from .decision import NAME, DeniedError
from .identity import CERTIFICATE, VERIFY

CONNECT = 5.0  # seconds
# Below the 5 s after which uvicorn closes: a call must not meet a closing connection.
KEEPALIVE = 2.0
SMALL = 64 << 10  # bytes of an answer that is passed on in one piece

_HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Credentials and identities end here, and so does what others might say in our name.
_INBOUND = _HOP_BY_HOP | {
    "authorization",
    "content-length",
    "cookie",
    "expect",
    "forwarded",
    "host",
    CERTIFICATE.lower(),
    VERIFY.lower(),
}
_INBOUND_PREFIXES = ("x-client-", "x-forwarded-", "x-real-ip", "x-ssl-")
_OUTBOUND = _HOP_BY_HOP | {"content-length", "proxy-status", "set-cookie", "via"}
_VIA = f"1.1 {NAME}"


class Answering(Protocol):
    """Told how an answer goes, for the audit log."""

    status: int


class Proxy:
    """A way to the service."""

    def __init__(self, upstream: str, silence: float) -> None:
        self._upstream = URL(upstream)
        self._host = self._upstream.authority
        self._silence = silence
        self._session = _session(aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE))
        # aiohttp tries DELETE again by itself where a kept connection was closed over it.
        self._once = _session(aiohttp.TCPConnector(limit=0, force_close=True))

    async def close(self) -> None:
        """Close every connection to the service."""
        await self._session.close()
        await self._once.close()

    async def forward(
        self, request: web.BaseRequest, body: bytes | None, told: Answering
    ) -> web.StreamResponse:
        """Send `request` with `body` to the service once, and pass its answer on.

        Args:
            request: what was received.
            body: all of it, or None where there is none.
            told: gets the status as soon as there is one.

        Raises:
            DeniedError: no answer was begun: upstream_refused, outcome_unknown, upstream_invalid,
                upstream_silent.
            ConnectionError: an answer that was begun broke off; ours has been cut off too.
        """
        url = URL(f"{self._upstream}{request.raw_path}", encoded=True)
        session = self._once if request.method == "DELETE" else self._session
        asking = session.request(
            request.method,
            url,
            headers=_inbound(request.raw_headers, self._host),
            data=body,
            allow_redirects=False,
        )
        try:
            async with asyncio.timeout(self._silence):
                answer = await asking
                length = answer.content_length
                small = length is not None and length <= SMALL and request.method != "HEAD"
                content = await answer.read() if small else None
        except TimeoutError as exc:
            if isinstance(exc, aiohttp.ServerTimeoutError):  # of the connect
                raise DeniedError("upstream_refused") from exc
            raise DeniedError("upstream_silent") from exc
        except aiohttp.ClientConnectorError as exc:
            raise DeniedError("upstream_refused") from exc
        except aiohttp.ClientResponseError as exc:
            raise DeniedError("upstream_invalid") from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            raise DeniedError("outcome_unknown") from exc
        if answer.status == 101:  # to what nobody asked for
            answer.close()
            raise DeniedError("upstream_invalid")
        told.status = answer.status
        async with answer:
            return await _pass_on(request, answer, content)


def _session(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT),
        auto_decompress=False,
        trust_env=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    )


async def _pass_on(
    request: web.BaseRequest, answer: aiohttp.ClientResponse, content: bytes | None
) -> web.StreamResponse:
    headers = _outbound(answer.raw_headers)
    if content is not None:
        whole = web.Response(
            body=content, status=answer.status, reason=answer.reason, headers=headers
        )
        await whole.prepare(request)
        await whole.write_eof()
        return whole
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    if answer.content_length is not None:
        response.content_length = answer.content_length
    await response.prepare(request)
    try:
        async for piece in answer.content.iter_any():
            await response.write(piece)
    except (aiohttp.ClientError, OSError) as exc:
        cut(request)  # a part must not look whole
        raise ConnectionError("the answer broke off") from exc
    await response.write_eof()
    return response


def cut(request: web.BaseRequest) -> None:
    """End the connection of `request` at once, so that its other side sees a break."""
    if request.transport is not None:
        request.transport.abort()


def _named(pairs: Iterable[tuple[bytes, bytes]]) -> set[str]:
    """Return the fields that Connection names, in lower case."""
    return {
        token.strip().lower()
        for name, value in pairs
        if name.lower() == b"connection"
        for token in value.decode("latin-1").split(",")
    }


def _inbound(pairs: tuple[tuple[bytes, bytes], ...], host: str) -> CIMultiDict[str]:
    """Return the header fields that the service is given."""
    named = _named(pairs)
    headers: CIMultiDict[str] = CIMultiDict()
    for raw_name, value in pairs:
        name = raw_name.decode("ascii")
        lower = name.lower()
        alike = lower.replace("_", "-")  # to services that read X_Client_Cert as X-Client-Cert
        if alike in _INBOUND or alike.startswith(_INBOUND_PREFIXES):
            continue
        if lower in named and not lower.startswith("mcp-") and lower != "content-type":
            continue
        headers.add(name, value.decode("utf-8", "surrogateescape"))
    headers["Host"] = host
    headers["Via"] = ", ".join([*headers.getall("Via", []), _VIA])
    return headers


def _outbound(pairs: tuple[tuple[bytes, bytes], ...]) -> CIMultiDict[str]:
    """Return the header fields that the client is given."""
    named = _named(pairs)
    headers: CIMultiDict[str] = CIMultiDict()
    for raw_name, value in pairs:
        name = raw_name.decode("ascii", "replace")
        lower = name.lower()
        if lower not in _OUTBOUND and (lower not in named or lower == "content-type"):
            headers.add(name, value.decode("utf-8", "surrogateescape"))
    headers["Via"] = _VIA
    headers.setdefault("Server", NAME)
    return headers
