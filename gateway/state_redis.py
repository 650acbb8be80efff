"""State that several gateways share, in one Redis server (5 or later).

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]
    rediss://...[?ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE]
    unix://[USER:PASSWORD@]/PATH[?db=DB]

Everything is decided in one script, so in one round trip and by one server at a time. It uses the
caller's clock: gateways may differ by the leeway that clients are given too, and no more.

A server may lose what it was told: restarted without its data or with yesterday's, failed over to
a replica that was behind, flushed. So the mark at which the memory begins names the server's
replication id, which a restart and a failover change, and the script compares them every time.
What it cannot see is a server that evicts claims to make room; that one is refused.

The user needs: ~catalyst:* +eval +evalsha +get +set +info.
"""

import asyncio
import contextlib
import hashlib
import itertools
import math
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from redis import exceptions as errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from keys.token import LEEWAY

from .rate import MICROSECONDS, Rate
from .state import FORGOTTEN, Admission, Claim, StateError, Verdict

DEADLINE = 1.0  # seconds for an answer, connecting included
CONNECTIONS = 16
MARGIN = 2 * LEEWAY + DEADLINE
"""Seconds for `state.forgotten`: a token may have been used at a gateway whose clock is ahead, by a
client whose clock is ahead of that; and `now` was read up to a deadline before the script ran."""

# KEYS: mark, lane[, claim]. ARGV: serial, now, interval, burst, skew[, issued, margin, kept].
# Times are whole microseconds, but `kept` is in milliseconds. The serial tells answers apart. The
# lane's part is `rate.gcra`; "%.0f", because Lua would write 14 digits and these have 16.
SCRIPT = """\
local serial, now, interval = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local burst, skew = tonumber(ARGV[4]), tonumber(ARGV[5])

local life = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
if not life then return redis.error_reply('NOREPLID the server does not tell its id') end
local since, of = string.match(redis.call('GET', KEYS[1]) or '', '^(%d+) (%x+)$')
since = tonumber(since)
if of ~= life then
    since = math.max(since or 0, now)
    redis.call('SET', KEYS[1], string.format('%.0f', since) .. ' ' .. life)
end

if KEYS[3] then
    if since > now + skew then return {'ahead', since - now, serial} end
    local taken = redis.call('SET', KEYS[3], '', 'NX', 'PX', ARGV[8])
    if not taken then return {'replayed', 0, serial} end
    if tonumber(ARGV[6]) <= since + tonumber(ARGV[7]) then return {'forgotten', 0, serial} end
end

local full = burst * interval
local due = tonumber(redis.call('GET', KEYS[2]) or 0) or 0
if due > now + full + skew then due = now end
local early = due - now - (full - interval)
if early > 0 then return {'limited', early, serial} end
due = math.max(due, now) + interval
local kept = math.ceil((due - now + skew) / 1000)
redis.call('SET', KEYS[2], string.format('%.0f', due), 'PX', string.format('%.0f', kept))
return {'admitted', 0, serial}
"""
_SHA = hashlib.sha1(SCRIPT.encode(), usedforsecurity=False).hexdigest()  # how EVALSHA names it

_OPTIONS = {
    "redis": frozenset[str](),
    "rediss": frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}),
    "unix": frozenset({"db"}),
}
_CODE = re.compile(r"[A-Z]{3,20}\b")  # the first word of a Redis error

T = TypeVar("T")


class RedisState:
    """`State` in the Redis server at `url`.

    Nothing is sent twice: a claim whose answer was lost may have been taken, and asking again would
    call the first use a replay. The next call connects anew, so a server that is back is used.

    Raises (on construction):
        ValueError: the URL is at fault; says what, without the URL.
    """

    def __init__(self, url: str) -> None:
        self._where = _where(url)
        self._url = url
        self._client: Redis | None = None
        self._pool: BlockingConnectionPool | None = None
        self._serials = itertools.count()
        self._fit = False  # whether this server's settings were looked at

    async def open(self) -> None:
        """See `State.open`. After a StateError `admit` may yet be called; it asks anew."""
        options: dict[str, Any] = {}
        if self._url.startswith("rediss:"):
            options = {"ssl_cert_reqs": "required", "ssl_check_hostname": True}
        self._pool = BlockingConnectionPool.from_url(
            self._url,
            max_connections=CONNECTIONS,
            timeout=None,  # one deadline, in _ask, is over all of it
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # no greeting, no notices pushed between the answers
            **options,
        )
        self._client = Redis(connection_pool=self._pool)
        await self._ask(self._inspect)

    async def admit(self, lane: str, rate: Rate, claim: Claim | None, now: float) -> Admission:
        """See `State.admit`."""
        keys = ["catalyst:since", f"catalyst:lane:{lane}"]
        serial = next(self._serials)
        skew = LEEWAY * MICROSECONDS
        values = [serial, int(now * MICROSECONDS), rate.interval, rate.burst, skew]
        if claim is not None:
            if claim.expires + LEEWAY < now:
                return FORGOTTEN
            # Both are base64url, so no two claims make one key.
            keys.append(f"catalyst:claim:{claim.kid}:{claim.jti}")
            # Twice the leeway: the gateway that asks last may be behind this one.
            kept = math.ceil((claim.expires - now + 2 * LEEWAY) * 1000)
            margin = int(MARGIN * MICROSECONDS)
            values += [claim.issued * MICROSECONDS, margin, kept]

        async def run(client: Redis) -> tuple[str, int]:
            try:
                answer = await client.evalsha(_SHA, len(keys), *keys, *values)
            except errors.NoScriptError:  # a server that is new or restarted; nothing has been run
                await self._inspect(client)
                answer = await client.eval(SCRIPT, len(keys), *keys, *values)
            match answer:
                case [bytes(word), int(wait), int(echo)] if echo == serial:
                    return word.decode(), wait
            # An abandoned call's, left on the connection: it would let a replay pass.
            raise errors.InvalidResponse

        word, wait = await self._ask(run)
        if word == "ahead":
            raise StateError(
                f"{self._where}: its memory begins {wait / MICROSECONDS:.0f} s from now by this "
                "clock. Put the clocks of all gateways right; then DEL catalyst:since"
            )
        return Admission(Verdict(word), wait / MICROSECONDS)

    async def close(self) -> None:
        """See `State.close`."""
        if self._pool is not None:
            await self._drop(self._pool, everything=True)
        self._client = self._pool = None

    async def _inspect(self, client: Redis) -> None:
        memory = await client.info("memory")
        fault = unfit(memory)
        if fault:
            raise StateError(f"{self._where}: {fault}")
        self._fit = True

    async def _ask(self, question: Callable[[Redis], Awaitable[T]]) -> T:
        client, pool = self._client, self._pool
        if client is None or pool is None:
            raise StateError(f"{self._where} is not open.")
        try:
            async with asyncio.timeout(DEADLINE):
                if not self._fit:
                    await self._inspect(client)
                return await question(client)
        except (errors.RedisError, OSError) as exc:  # TimeoutError is an OSError
            fault = _in_words(exc)
        # What else is kept open leads to the same server, or to none any more.
        self._fit = False
        await self._drop(pool, everything=False)
        # Raised out here, without a cause: the library's own words may repeat what it was sent.
        raise StateError(f"{self._where}: {fault}")

    async def _drop(self, pool: BlockingConnectionPool, *, everything: bool) -> None:
        with contextlib.suppress(errors.RedisError, OSError):  # it was gone already
            async with asyncio.timeout(DEADLINE):
                await pool.disconnect(inuse_connections=everything)


def unfit(memory: dict[str, Any]) -> str | None:
    """Return in words why a server with this INFO memory must not keep claims, or None."""
    policy = memory.get("maxmemory_policy")
    if policy == "noeviction" or (policy is not None and memory.get("maxmemory") == 0):
        return None
    return (
        "it may evict used tokens to make room. Set maxmemory-policy to noeviction there "
        f"(now {policy or 'not told'})"
    )


def _where(url: str) -> str:
    """Return what the server is called in messages; ValueError where the URL is at fault."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # What it says may be a piece of a password with a "/" or a "#" in it.
        raise ValueError(
            "the state URL cannot be read; escape what is special in its password"
        ) from None
    if parts.scheme not in _OPTIONS:
        raise ValueError("state must be sqlite, or a redis://, rediss:// or unix:// URL")
    known = _OPTIONS[parts.scheme]
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if parts.fragment or not options.keys() <= known:
        raise ValueError(
            f"a {parts.scheme}:// state URL takes {', '.join(sorted(known)) or 'no options'} after "
            "its path, and nothing else; escape what is special in its password"
        )
    if parts.scheme == "unix":
        if host or not parts.path.startswith("/"):
            raise ValueError("a unix:// state URL has three slashes before its path")
        database, name = options.get("db", "0"), unquote(parts.path)
    else:
        if not host:
            raise ValueError(f"a {parts.scheme}:// state URL names a host")
        database, name = parts.path.removeprefix("/") or "0", f"{host}:{port or 6379}"
    if not re.fullmatch(r"[0-9]{1,5}", database):
        raise ValueError("the database in the state URL must be a number")
    return f"Redis at {name}"


def _in_words(exc: Exception) -> str:
    """Return what went wrong; nothing of what the server said but its code."""
    match exc:
        case errors.AuthenticationError() | errors.AuthorizationError():
            return "it does not accept the URL's user and password"
        case errors.NoPermissionError():
            return "the user may not do all of eval, evalsha, get, set, info on catalyst:*"
        case errors.BusyLoadingError():
            return "it is still loading its data"
        case errors.ReadOnlyError():
            return "it is a read-only replica"
        case errors.OutOfMemoryError():
            return "its memory is full"
        case errors.TimeoutError() | TimeoutError():
            return f"no answer within {DEADLINE:g} s"
        case errors.InvalidResponse():
            return "it answered something else than was asked"
        case errors.ConnectionError() | OSError():
            return "it cannot be reached"
    code = _CODE.match(getattr(exc, "status_code", None) or str(exc))
    return f"it answered with an error ({code[0] if code else 'of no known kind'})"
