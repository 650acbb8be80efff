"""One request through the gateway: who, what, how much, on record, and only then on to the service.

The order is fixed, and every step refuses by raising: identity, path, body, policy, slots, state,
audit. Nothing is passed on before its line is in the audit log.
"""

import asyncio
import functools
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import HttpVersion10, HttpVersion11, web

from keys import strictjson
from keys.reloadable import Reloadable
from keys.statement import PATH
from keys.token import Verifier

from . import identity, policy
from .audit import LONGEST_TEXT, AuditError, AuditLog, Prepared
from .decision import NAME, UNAUTHORIZED, DeniedError, Wish, body_of
from .identity import Caller, Way
from .keydesk import KeyDesk
from .metrics import Metrics
from .proxy import Proxy, cut
from .rate import Rate
from .registry import Registry
from .scribe import Scribe
from .settings import Settings
from .state import Claim, State, StateError, Verdict

_log = logging.getLogger(__name__)

LARGE = 64 << 10  # bytes of a body that takes no time to judge
ROOM = 4  # large bodies of one client in memory, if all are as large as may be
LARGE_RATE = Rate(4.0, 20)  # of one client

_VERDICTS = {Verdict.REPLAYED: "token_replayed", Verdict.FORGOTTEN: "token_forgotten"}


@dataclass(eq=False, slots=True)
class Visit:
    """A request while it is here."""

    request: web.BaseRequest
    way: Way
    task: asyncio.Task[Any] | None
    caller: Caller | None = None
    wish: Wish | None = None
    status: int = 0
    allowed: int | None = None
    """Number of the audit line that lets it pass."""
    ended: str | None = None
    """Why the gateway itself ended it, where it did."""
    held: int = 0
    """Bytes of a large body that it has room for."""
    without: str | None = None
    """What could not be asked, where it was let through all the same."""
    reason: str | None = None
    """Why it was refused, more exactly than the code says."""
    about_keys: bool = False
    """Whether it changes keys: it gets its answer, though its own may be among them."""

    def end(self, why: str) -> None:
        """End it now, in the middle of whatever it is."""
        self.ended = why
        cut(self.request)
        if self.task is not None:
            self.task.cancel()


class Gateway:
    """Decides on requests and has them passed on."""

    def __init__(
        self,
        settings: Reloadable[Settings],
        registry: Reloadable[Registry],
        state: State,
        audit: AuditLog,
        proxy: Proxy,
        desk: KeyDesk,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._state = state
        self._audit = audit
        self._scribe = Scribe(audit)
        self._proxy = proxy
        self._desk = desk
        self._wall = wall
        self._visits: set[Visit] = set()
        self._slots: Counter[tuple[str, bool]] = Counter()
        self._held: Counter[str] = Counter()
        self._judging = asyncio.Semaphore(1)
        self._state_fault: str | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self.metrics = Metrics()
        self.stopping = False
        self._verifier = self._new_verifier()

    def _new_verifier(self) -> Verifier:
        return Verifier(self._settings.value.audience, self._registry.value.ring())

    # What an operator sees

    def faults(self) -> list[str]:
        """Return what is wrong now, in words; the gateway may still be serving."""
        told = [
            self._settings.fault,
            self._registry.fault,
            self._audit.fault,
            self._state_fault,
            "the gateway is stopping" if self.stopping else None,
        ]
        return [fault for fault in told if fault]

    def _about(self, path: str) -> web.Response:
        match path:
            case "/health":
                return web.Response(text="ok\n")
            case "/ready":
                faults = self.faults()
                text = strictjson.dumps({"ready": not faults, "faults": faults})
                return web.Response(
                    body=text, content_type="application/json", status=503 if faults else 200
                )
            case _:
                text = self.metrics.exposition(len(self._visits), len(self.faults()))
                return web.Response(body=text, content_type="text/plain")

    # What changes while it runs

    def reload(self) -> None:
        """Look again at those files that have changed, and end what is no longer welcome."""
        for file in (self._settings, self._registry):
            if not file.changed():
                continue
            if file.reload():
                _log.info("loaded %s", file.path)
            else:
                _log.error("kept what was loaded before: %s", file.fault)
        self._verifier = self._new_verifier()
        for visit in tuple(self._visits):
            if not visit.caller or visit.about_keys:
                continue
            if not identity.still_welcome(visit.caller, self._registry.value):
                visit.end("client_revoked")

    async def drain(self, seconds: float) -> None:
        """Take nothing new, give what runs `seconds` to finish, and end the rest."""
        self.stopping = True
        for visit in tuple(self._visits):
            if visit.wish is not None and visit.wish.standing:
                visit.end("stopping")
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            for visit in tuple(self._visits):
                visit.end("stopping")
        self._scribe.flush()

    # One request

    def handler(self, way: Way) -> Callable[[web.BaseRequest], Any]:
        """Return the handler for what arrives on one way in."""

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            if way == "ssh" and "Authorization" not in request.headers and request.method == "GET":
                path = request.raw_path
                if path in ("/health", "/ready", "/metrics"):
                    return self._about(path)
            return await self._visit(Visit(request, way, asyncio.current_task()))

        return handle

    async def _visit(self, visit: Visit) -> web.StreamResponse:
        began = time.perf_counter()
        self._visits.add(visit)
        self._empty.clear()
        code = "allow"
        try:
            return await self._serve(visit)
        except DeniedError as exc:
            code, visit.reason = exc.code, exc.reason
            return self._refuse(visit, exc)
        except (asyncio.CancelledError, ConnectionError):
            code = visit.ended or "broken_off"
            raise
        except Exception:  # noqa: BLE001  a defect must cost one request, and tell nobody anything
            code = "internal_error"
            _log.exception("defect")
            cut(visit.request)
            raise ConnectionError("defect") from None
        finally:
            self._visits.discard(visit)
            if visit.held and visit.caller is not None:
                self._held[visit.caller.client] -= visit.held
            if not self._visits:
                self._empty.set()
            self._tell(visit, code, time.perf_counter() - began)

    async def _serve(self, visit: Visit) -> web.StreamResponse:
        request, now = visit.request, self._wall()
        if self.stopping:
            raise DeniedError("stopping")
        settings = self._settings.value
        caller = identity.identify(
            request.headers, visit.way, self._registry.value, self._verifier, now
        )
        visit.caller = caller
        _check_framing(request)
        path = request.raw_path.partition("?")[0]
        body: bytes | None = None
        if path == PATH:
            visit.about_keys = True
            if self._desk.wants_body(request):
                body = await self._body(request, settings)
            visit.wish = self._desk.judge(
                caller, body, settings.audience, self._registry.value, now
            )
            return await self._admitted(visit, caller, visit.wish, body, settings, now)
        policy.check_path(request.method, path, settings.service)
        if policy.is_message(request.method, path, settings.service):
            policy.check_head(request.headers)
            size = request.content_length
            judging = functools.partial(
                policy.judge_message,
                caller.role,
                settings.tools,
                settings.service,
                request.headers,
            )
            if size is not None and size <= LARGE:
                body = await self._body(request, settings)
                visit.wish = judging(body)
            else:
                await self._make_room(visit, caller, size, settings, now)
                body = await self._body(request, settings)
                async with self._judging:
                    visit.wish = await asyncio.to_thread(judging, body)
        elif request.body_exists:
            raise DeniedError("request_invalid")
        else:
            visit.wish = policy.judge_plain(request.method, path, settings.service)
        return await self._admitted(visit, caller, visit.wish, body, settings, now)

    async def _admitted(
        self,
        visit: Visit,
        caller: Caller,
        wish: Wish,
        body: bytes | None,
        settings: Settings,
        now: float,
    ) -> web.StreamResponse:
        """Let pass what may, if there is room, it is new, and on record."""
        slot = (caller.client, wish.urgent)
        limit = settings.limits.urgent_streams if wish.urgent else settings.limits.streams
        if self._slots[slot] >= limit:
            raise DeniedError("too_many_streams", caller=wish.caller, retry_after=1.0)
        self._slots[slot] += 1
        try:
            await self._admit(visit, caller, wish, settings, now)
            await self._record(visit)
            if visit.about_keys:
                return await self._about_keys(visit, caller, body)
            return await self._proxy.forward(visit.request, body, visit)
        except DeniedError as exc:
            exc.caller = wish.caller
            raise
        finally:
            self._slots[slot] -= 1
            if not self._slots[slot]:
                del self._slots[slot]

    async def _about_keys(
        self, visit: Visit, caller: Caller, body: bytes | None
    ) -> web.StreamResponse:
        """Answer about keys; a new one is accepted before its owner hears that it is."""
        if body is None:
            running = Counter(
                one.caller.kid for one in self._visits if one.caller and one is not visit
            )
            response = self._desk.status(caller, self._registry.value, running)
        else:
            response = await self._desk.relay(body)
            if self._registry.changed():
                self.reload()
        visit.status = response.status
        return response

    async def _make_room(
        self, visit: Visit, caller: Caller, size: int | None, settings: Settings, now: float
    ) -> None:
        """Let a client have so many large bodies in memory, and so many judged, and no more.

        They are judged beside the event loop, one at a time: a body that is made to be slow to read
        holds up others like it, and not a `stop_trading`.
        """
        most = settings.limits.body
        size = most if size is None else size
        if size > most:
            raise DeniedError("body_too_large")
        if self._held[caller.client] + size > ROOM * most:
            raise DeniedError("too_many_streams", retry_after=1.0)
        visit.held = size
        self._held[caller.client] += size
        await self._ask_state(visit, f"{caller.client}/large", LARGE_RATE, None, now)

    async def _body(self, request: web.BaseRequest, settings: Settings) -> bytes:
        limits = settings.limits
        if (request.content_length or 0) > limits.body:
            raise DeniedError("body_too_large")
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            if request.content.is_eof():  # it came with the head, as it does from NGINX
                whole = request.content.read_nowait()
                if len(whole) > limits.body:  # in chunks, so that no length was told
                    raise DeniedError("body_too_large")
                return whole
            body = bytearray()
            async with asyncio.timeout(limits.slow):
                async for piece in request.content.iter_any():
                    body += piece
                    if len(body) > limits.body:
                        raise DeniedError("body_too_large")
        except TimeoutError:
            raise DeniedError("body_slow") from None
        except web.RequestPayloadError:
            raise DeniedError("request_invalid") from None
        return bytes(body)

    async def _admit(
        self, visit: Visit, caller: Caller, wish: Wish, settings: Settings, now: float
    ) -> None:
        """Ask the state store: is the token new, and is it within the rate?"""
        limits = settings.limits
        if wish.urgent:
            lane, rate = f"{caller.client}/{wish.tool}", limits.urgent_rate
        else:
            lane, rate = caller.client, limits.rate
        once = caller.single_use
        claim = Claim(once.kid, once.jti, once.issued, once.expires) if once else None
        try:
            await self._ask_state(visit, lane, rate, claim, now)
        except DeniedError as exc:
            spared = wish.urgent and settings.stop_without_state and caller.role == "operator"
            if exc.code != "state_unavailable" or not spared:
                raise
            visit.without = "state"

    async def _ask_state(
        self, visit: Visit, lane: str, rate: Rate, claim: Claim | None, now: float
    ) -> None:
        try:
            admission = await self._state.admit(lane, rate, claim, now)
        except StateError as exc:
            if str(exc) != self._state_fault:
                _log.error("state store: %s", exc)
            self._state_fault = str(exc)
            raise DeniedError("state_unavailable", retry_after=1.0) from exc
        self._state_fault = None
        if admission.verdict is Verdict.LIMITED:
            raise DeniedError("rate_limited", retry_after=admission.retry_after)
        if admission.verdict is not Verdict.ADMITTED:
            raise DeniedError(_VERDICTS[admission.verdict])

    def reject(self, request: web.BaseRequest, way: Way, code: str) -> web.Response:
        """Put on record that something came which is no request, and return the answer to it."""
        visit = Visit(request, way, None)
        response = self._refuse(visit, DeniedError(code))
        self._tell(visit, code, 0.0)
        return response

    # On record

    async def _record(self, visit: Visit) -> None:
        """Put on record that it is let through, before it is."""
        try:
            visit.allowed = await self._scribe.record(_decided("allow", visit))
        except AuditError as exc:
            raise DeniedError("audit_unavailable", retry_after=5.0) from exc

    def _tell(self, visit: Visit, code: str, seconds: float) -> None:
        """Put on record how it ended."""
        ms = round(seconds * 1000, 2)
        if visit.allowed is not None:
            facts = _facts(code=code, reason=visit.reason)
            self._scribe.note(facts, outcome=visit.allowed, status=visit.status, ms=ms)
        else:
            self._scribe.note(_decided("deny", visit, code), status=visit.status, ms=ms)
            self._scribe.flush()  # before the answer leaves
        self.metrics.decided(visit.way, code)
        if visit.wish is None or not visit.wish.standing:
            self.metrics.took(seconds)

    def _refuse(self, visit: Visit, exc: DeniedError) -> web.Response:
        entry = exc.entry
        visit.status = entry.status
        headers = {
            "Proxy-Status": f"{NAME}; error={entry.error}",
            "Cache-Control": "no-store",
            "Server": NAME,
        }
        caller = exc.caller
        if entry is UNAUTHORIZED:
            headers["WWW-Authenticate"] = f'Bearer realm="{NAME}"'
            caller = None
        elif exc.retry_after or entry.status == 503:
            headers["Retry-After"] = str(max(1, round(exc.retry_after)))
        response = web.Response(
            body=body_of(entry, exc.code, caller, exc.told),
            status=entry.status,
            headers=headers,
            content_type="application/json",
        )
        if self.stopping or not visit.request.content.at_eof():
            response.force_close()
        return response


def _check_framing(request: web.BaseRequest) -> None:
    """Refuse what the parser takes though another might read it otherwise (RFC 9112 section 6.1).

    Raises:
        DeniedError: request_invalid.
    """
    codings = [coding.lower() for coding in request.headers.getall("Transfer-Encoding", [])]
    plain = request.version == HttpVersion10 and not codings
    if not plain and (request.version != HttpVersion11 or codings not in ([], ["chunked"])):
        raise DeniedError("request_invalid")


def _decided(decision: str, visit: Visit, code: str | None = None) -> Prepared:
    caller, wish = visit.caller, visit.wish
    tool = wish and wish.tool and wish.tool[: LONGEST_TEXT + 1]  # more is neither told nor kept
    return _facts(
        decision=decision,
        way=visit.way,
        client=caller and caller.client,
        kid=caller and caller.kid,
        method=wish and wish.method,
        tool=tool,
        keys=wish and wish.keys,
        without=visit.without,
        code=code,
        reason=visit.reason,
    )


@functools.lru_cache(maxsize=1024)
def _facts(**facts: str | None) -> Prepared:
    """Return facts as the audit log takes them; most requests are like many before."""
    return Prepared({name: value for name, value in facts.items() if value is not None})
