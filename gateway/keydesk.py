"""`/_catalyst/keys`: what the gateway itself answers about a client's keys.

What is in force it tells from the registry. What shall change it checks, so that the exact reason
is on record, and hands to the registrar, which checks again and decides (docs/protocol.md).
"""

import asyncio
import contextlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from keys import certs, statement, strictjson
from keys.jws import TokenError
from keys.keyring import thumbprint
from keys.sshkey import fingerprint
from keys.statement import Introduction, Retirement, Statement

from . import authority
from .clients import keys_of
from .decision import NAME, DeniedError, Wish
from .identity import Caller
from .registry import Registry
from .settings import Layout

SILENCE = 30.0  # seconds that the registrar may take
_LONGEST = 64 << 10  # bytes of its answer
_SITE = re.compile(r"(?m)^\s*ssl_certificate\s+(\S+);")


class KeyDesk:
    """Tells clients about their keys, and passes on what they say about them."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def wants_body(self, request: web.BaseRequest) -> bool:
        """Return whether the request brings a statement, by its head alone.

        Raises:
            DeniedError: http_method_denied, content_type_refused, request_invalid, body_too_large.
        """
        if request.method == "GET" and not request.body_exists:
            return False
        if request.method != "POST":
            raise DeniedError("http_method_denied")
        if request.headers.getall("Content-Type", []) != [statement.CONTENT_TYPE]:
            raise DeniedError("content_type_refused")
        if request.content_length is None:
            raise DeniedError("request_invalid")
        if request.content_length > statement.SIZE:
            raise DeniedError("body_too_large")
        return True

    def judge(
        self, caller: Caller, body: bytes | None, audience: str, registry: Registry, now: float
    ) -> Wish:
        """Return what the request is about; without a body it asks what is in force.

        Raises:
            DeniedError: statement_invalid, keys_denied.
        """
        if body is None:
            return Wish("keys.status")
        try:
            said = statement.read(body.decode("latin-1"), audience, registry.ring(), now)
        except TokenError as exc:
            raise DeniedError("statement_invalid", reason=exc.code) from None
        if (said.client, said.kid) != (caller.client, caller.kid):
            raise DeniedError("keys_denied", reason="other_key")
        if isinstance(said.wish, Retirement) and caller.certificate in said.wish.certificates:
            raise DeniedError("keys_denied", reason="own_certificate")
        return Wish(said.method, keys=_names(said))

    def status(
        self, caller: Caller, registry: Registry, running: Mapping[str, int]
    ) -> web.Response:
        """Return what is accepted of this client now.

        Args:
            caller: who asks.
            registry: as it is now.
            running: requests that run with each kid.
        """
        client = registry.client(caller.client)
        if client is None:  # removed since it was let in
            raise DeniedError("client_revoked")
        mine = keys_of(self._layout, client)
        for key in mine["keys"]:
            key["open"] = running.get(key["kid"], 0)
        issuers = self._issuers()
        current = issuers[0] if issuers else None
        return _answer(
            {
                "catalyst": "keys",
                "version": 1,
                "client": client.name,
                "role": client.role,
                "generation": registry.generation,
                **mine,
                "client_ca": {
                    "issuers": [one.thumbprint for one in issuers],
                    "current": current and current.thumbprint,
                    "not_after": current and int(current.not_after),
                },
                "site": {"not_after": self._site_end()},
            }
        )

    def _issuers(self) -> list[certs.CertificateFacts]:
        try:
            return [certs.facts(one) for one in authority.trusted(self._layout)]
        except (OSError, ValueError):
            return []

    def _site_end(self) -> int | None:
        """Return when NGINX's certificate ends, where it is one that we may read."""
        with contextlib.suppress(OSError, ValueError):
            site = _SITE.search((self._layout.nginx / "site.conf").read_text())
            if site is not None:
                leaf = certs.split(Path(site[1]).read_bytes())[0]
                return int(certs.facts(leaf).not_after)
        return None

    async def relay(self, body: bytes) -> web.Response:
        """Have the registrar carry out a statement, and return the answer.

        Raises:
            DeniedError: as the registrar says; registrar_unavailable: it says nothing.
        """
        try:
            async with asyncio.timeout(SILENCE):
                told = strictjson.loads(await self._ask(body))
            if not isinstance(told, dict) or not told.keys() & {"answer", "code"}:
                raise ValueError("no answer")
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as exc:
            raise DeniedError("registrar_unavailable", reason=type(exc).__name__) from None
        if "answer" in told:
            return _answer(told["answer"])
        generation = {"generation": told["generation"]} if "generation" in told else None
        raise DeniedError(told["code"], reason=told.get("reason"), told=generation)

    async def _ask(self, body: bytes) -> bytes:
        if sys.platform == "win32":
            raise OSError("the gateway does not run on Windows")
        path = str(self._layout.registrar)
        reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST)
        try:
            writer.write(body + b"\n")
            return await reader.readuntil(b"\n")
        finally:
            writer.close()


def _names(said: Statement) -> str:
    """Return what the statement is about, as the audit log has it."""
    match said.wish:
        case Introduction() as wish:
            names = [thumbprint(wish.token_key)] if wish.token_key else []
            names += ["csr"] if wish.csr else []
            names += [fingerprint(wish.ssh_key)] if wish.ssh_key else []
        case Retirement() as wish:
            names = [*sorted(wish.kids), *sorted(wish.certificates), *sorted(wish.ssh_keys)]
            names += ["compromised"] if wish.compromised else []
        case _:
            names = []
    return " ".join(names)


def _answer(content: dict[str, Any]) -> web.Response:
    headers = {"Proxy-Status": NAME, "Cache-Control": "no-store", "Server": NAME}
    return web.Response(
        body=strictjson.dumps(content), headers=headers, content_type="application/json"
    )
