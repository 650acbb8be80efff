"""What a path with a gateway behind it asks of each request, and reads in each answer.

A request gets a token, minted seconds ago. An answer tells who made it, the service, the gateway or
something in between, and so whether the request was delivered. docs/protocol.md is the contract.
"""

import email.utils
import logging
import math
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote_to_bytes

import h11

from keys.token import JTI, LIFETIME, Minter

from .http import header
from .problems import Problem, ProblemError

FRESH = 20  # seconds that a token which is used again must still be good for
RECENT = 10.0  # seconds in which an answer to a token of before may still come
TOLERANCE = 2.0  # seconds: HTTP dates are whole seconds, and on their way for a while

_log = logging.getLogger(__name__)

_VIA = b"1.1 catalyst-gateway"
_ORIGIN = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")  # scheme and authority


class Clock:
    """Our clock as the gateway sees it: a laptop's may be wrong."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self.offset = 0.0
        """Seconds that the gateway's clock is ahead of ours."""
        self._corrected = -math.inf

    def now(self) -> float:
        """Return seconds since the epoch, corrected."""
        return self._wall() + self.offset

    def corrected_within(self, seconds: float) -> bool:
        """Return whether it was corrected so few seconds ago."""
        return time.monotonic() - self._corrected <= seconds

    def correct(self, date: bytes) -> bool:
        """Set ourselves by a Date field (RFC 9110, 6.6.1); return whether that changed it."""
        try:
            theirs = email.utils.parsedate_to_datetime(date.decode("ascii"))
        except (ValueError, OverflowError):
            return False
        if theirs.tzinfo is None:  # it would be read as our own local time
            return False
        offset = theirs.timestamp() - self._wall()
        if abs(offset - self.offset) <= TOLERANCE:
            return False
        self.offset = offset
        self._corrected = time.monotonic()
        _log.warning("clock corrected", extra={"seconds": round(offset)})
        return True


class Ruling(Enum):
    """What an answer means for the request."""

    PASS = "pass"  # noqa: S105  it is for the client
    ANEW = "anew"
    """It was not delivered, and asking once more, with a new token, may help."""
    ELSEWHERE = "elsewhere"
    """It was not delivered, and this path will not."""
    BROKEN = "broken"
    """It may have been delivered; nobody knows."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A ruling, and what to tell where no other path is left."""

    ruling: Ruling
    problem: Problem | None = None


_PASS = Verdict(Ruling.PASS)


class Tokens:
    """Credentials of one client, towards one gateway."""

    def __init__(
        self,
        minter: Minter,
        clock: Clock,
        certificate: str | None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._minter = minter
        self._clock = clock
        self._certificate = certificate
        """Thumbprint of the client certificate that the connection was made with."""
        self._random = random
        self._kept = ""
        self._minted: tuple[float, float] = (0.0, 0.0)  # when, and by which clock

    def token(self) -> str:
        """Return a token: bound to the certificate and used again, or for one request alone."""
        now = self._clock.now()
        if self._certificate is None:
            return self._minter.mint(now, self._random(JTI), None)
        minted, offset = self._minted
        age = now - minted
        if offset != self._clock.offset or not 0 <= age <= LIFETIME - FRESH or not self._kept:
            self._kept = self._minter.mint(now, self._random(JTI), self._certificate)
            self._minted = now, self._clock.offset
        return self._kept

    def dress(self, head: h11.Request, base: bytes, host: bytes | None) -> h11.Request:
        """Return `head` with a token, as it is asked for below `base` at `host`.

        Raises:
            ProblemError: request_invalid: its target is not a path below `base`.
        """
        headers = [
            (name, host if host is not None and name.lower() == b"host" else value)
            for name, value in head.headers.raw_items()
            if name.lower() != b"authorization"
        ]
        headers.append((b"Authorization", b"Bearer " + self.token().encode("ascii")))
        target = base + _origin_form(head.target)
        return h11.Request(method=head.method, target=target, headers=headers)

    def judge(self, answer: h11.Response) -> Verdict:
        """Return what `answer` means."""
        status = answer.status_code
        if header(answer.headers, b"via") == _VIA:
            return _PASS
        who, _, rest = header(answer.headers, b"proxy-status").partition(b"; error=")
        error, _, details = rest.partition(b"; details=")
        if who == b"catalyst-gateway":
            return self._from_gateway(status, error, answer)
        if who == b"nginx":
            return _from_nginx(status, error, details)
        text = f"What answered (with {status}) is not the gateway."
        return Verdict(Ruling.BROKEN, Problem("gateway_missing", text))

    def _from_gateway(self, status: int, error: bytes, answer: h11.Response) -> Verdict:
        if status == 401:
            text = "The gateway does not accept this client's token."
            self._clock.correct(header(answer.headers, b"date"))
            problem = Problem("token_refused", text)
            # Others may have had the clock corrected while this one was on its way.
            late = self._clock.corrected_within(RECENT)
            return Verdict(Ruling.ANEW if late else Ruling.ELSEWHERE, problem)
        if status == 503:
            return Verdict(
                Ruling.ELSEWHERE, Problem("gateway_busy", "The gateway takes no requests now.")
            )
        if error == b"connection_refused":
            text = "Nothing listens where the gateway expects the service."
            return Verdict(Ruling.ELSEWHERE, Problem("target_refused", text))
        if error == b"connection_terminated":
            text = "The service closed the connection before it answered."
            return Verdict(Ruling.BROKEN, Problem("upstream_closed", text))
        return _PASS


def _from_nginx(status: int, error: bytes, details: bytes) -> Verdict:
    if error == b"connection_refused":
        return Verdict(Ruling.ELSEWHERE, Problem("gateway_down", "NGINX cannot reach the gateway."))
    if details == b'"certificate"':
        text = "NGINX does not accept this client's certificate."
        return Verdict(Ruling.ELSEWHERE, Problem("certificate_refused", text))
    if status == 429:
        return Verdict(Ruling.ELSEWHERE, Problem("busy", "NGINX takes no more from here now."))
    if status >= 500 and error != b"http_request_denied":  # 501, 505: it asked nobody
        return Verdict(Ruling.BROKEN, Problem("link_lost", "NGINX lost the gateway."))
    return _PASS  # it is about this request, and would be of any other way through NGINX


def _origin_form(target: bytes) -> bytes:
    """Return the path and query of a target, which may come in absolute form (RFC 9112, 3.2.2).

    Raises:
        ProblemError: request_invalid: it is not a path, or one that leads out above its root.
    """
    if origin := _ORIGIN.match(target):
        target = target[origin.end() :]
        if not target.startswith(b"/"):
            target = b"/" + target
    if not target.startswith(b"/") or _climbs(target.partition(b"?")[0]):
        raise ProblemError("request_invalid", "The request's target is not a path of the service.")
    return target


def _climbs(path: bytes) -> bool:
    """Return whether `path` leads out above its root, as NGINX reads it (RFC 3986, 5.2.4)."""
    depth = 0
    for segment in unquote_to_bytes(path).split(b"/"):
        depth += -1 if segment == b".." else segment not in (b"", b".")
        if depth < 0:
            return True
    return False
