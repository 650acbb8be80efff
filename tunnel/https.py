"""Making the https path: TLS with a client certificate, and a gateway that takes our token.

`connect` returns a `Session`: what a link keeps up, as it keeps an SSH connection up. A session has
no connection of its own to lose; it stands for "requests get through there", proved by one at
the start, and by bytes that keep coming.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import h11

from keys import certs
from keys.errors import KeyFileError
from keys.files import private_file_fault
from keys.keyring import load_token_key
from keys.token import Minter

from .channels import P
from .custody.keyfiles import Made, Stamp, pair_fault, stamp
from .dial import dial, dial_through_proxy, notice_death
from .http import ConnectionGoneError, HttpConnection, Pulse, header
from .problems import ProblemError
from .settings import Address, Https
from .tokens import Clock, Ruling, Tokens

HANDSHAKE = 10.0  # seconds for TLS
ANSWER = 10.0  # seconds for the first answer
LINGER = 30  # seconds of silence after which what still runs on a dead network is given up

ALIVE = b"/health"  # NGINX's own answer, on every site


class Session:
    """The https path while requests get through."""

    def __init__(
        self,
        settings: Https,
        context: ssl.SSLContext,
        tokens: Tokens,
        files: Callable[[], list[Path]],
    ) -> None:
        loop = asyncio.get_running_loop()
        self._settings = settings
        self._context = context
        self._pinging: asyncio.Task[None] | None = None
        self._control: HttpConnection | None = None
        self._made = Made(files)
        self.tokens = tokens
        self.wire = Pulse()
        self.site_ends: float | None = None
        """When NGINX's own certificate ends, seconds since the epoch."""
        self.lost: asyncio.Future[None] = loop.create_future()

    @property
    def alive(self) -> bool:
        """Whether it takes new requests."""
        return not self.lost.done()

    @property
    def replaced(self) -> bool:
        """Whether another certificate or other keys are to be used now."""
        return self._made.outdated

    async def open(self, factory: Callable[[], P], target: Address) -> P:
        """Open a connection for requests; where it leads is the gateway's to know.

        Raises:
            ProblemError: link_lost: where one connection fails, the session is over.
        """
        if self.alive:
            try:
                protocol = await self._connect(factory)
            except ProblemError:
                self.drop()
            else:
                if self.alive:
                    return protocol
                cast(HttpConnection, protocol).abort()
        raise ProblemError("link_lost", "The https path was lost.")

    async def _connect(self, factory: Callable[[], P]) -> P:
        url = self._settings
        sock = await (dial_through_proxy if url.use_proxy else dial)(url.host, url.port)
        notice_death(sock, LINGER)
        where = f"{url.host}:{url.port}"
        try:
            transport, protocol = await asyncio.get_running_loop().create_connection(
                cast(Any, factory),
                sock=sock,
                ssl=self._context,
                server_hostname=url.host,
                ssl_handshake_timeout=HANDSHAKE,
            )
        except ssl.SSLCertVerificationError as exc:
            text = f"The certificate of {where} is not trusted: {exc.verify_message}."
            raise ProblemError("tls_untrusted", text) from exc
        except (OSError, TimeoutError) as exc:  # SSLError among them
            sock.close()
            text = f"No TLS connection to {where} ({type(exc).__name__})."
            raise ProblemError("tls_failed", text) from exc
        except BaseException:
            sock.close()
            raise
        if isinstance(protocol, HttpConnection):
            protocol.pulse = self.wire
        shown = transport.get_extra_info("peercert") or {}
        if "notAfter" in shown:
            self.site_ends = ssl.cert_time_to_seconds(shown["notAfter"])
        del transport
        return cast(P, protocol)

    async def prove(self) -> None:
        """Send a request to the gateway and back.

        Raises:
            ProblemError: why none gets through.
        """
        url = self._settings
        for again in (True, False):
            host = url.authority.encode()
            head = h11.Request(method="GET", target=b"/health", headers=[(b"Host", host)])
            answer = await self._ask(self.tokens.dress(head, url.base, None))
            verdict = self.tokens.judge(answer)
            if verdict.ruling is Ruling.PASS:
                if header(answer.headers, b"proxy-status").startswith(b"nginx"):
                    text = f"NGINX has no gateway at that URL (it answers {answer.status_code})."
                    raise ProblemError("gateway_missing", text)
                return
            problem = verdict.problem
            if problem is not None and problem.code in _BEHIND:
                return  # it is the service that is away; the gateway took us in
            if verdict.ruling is not Ruling.ANEW or not again:
                break
        text = problem.message if problem else "The gateway refused."
        raise ProblemError(problem.code if problem else "gateway_missing", text)

    async def _ask(self, head: h11.Request) -> h11.Response:
        """Return the head of the answer, on a connection that is kept for such questions."""
        control = self._control
        if control is None or not control.reusable:
            if control is not None:
                control.abort()
            control = self._control = await self._connect(lambda: HttpConnection("client"))
        else:
            control.next_message()
        try:
            async with asyncio.timeout(ANSWER):
                control.write(head, h11.EndOfMessage())
                answer: h11.Response | None = None
                while not isinstance(event := await control.receive(), h11.EndOfMessage):
                    if isinstance(event, h11.Response):
                        answer = event
        except TimeoutError as exc:
            text = f"{self._settings.authority} has not answered within {ANSWER:g} s."
            raise ProblemError("upstream_silent", text) from exc
        except (ConnectionGoneError, h11.RemoteProtocolError) as exc:
            text = f"{self._settings.authority} does not speak HTTP/1.1 to us."
            raise ProblemError("tls_failed", text) from exc
        finally:
            if control.state.their_state is not h11.DONE:
                control.abort()
                self._control = None
        if answer is None:
            raise ProblemError("tls_failed", "There was no answer.")
        return answer

    def ping(self) -> None:
        """Make the peer say something soon, if it lives."""
        if self._pinging is None:
            self._pinging = asyncio.ensure_future(self._ping())

    async def _ping(self) -> None:
        host = self._settings.authority.encode()
        try:
            await self._ask(h11.Request(method="GET", target=ALIVE, headers=[(b"Host", host)]))
        except ProblemError as exc:
            if exc.problem.code != "upstream_silent":  # silence is the link's to judge
                self.drop()
        finally:
            self._pinging = None

    def calm(self) -> None:
        """Stop pinging: the peer has spoken."""

    def drop(self) -> None:
        """Take nothing new: requests do not get through here any longer."""
        if not self.lost.done():
            self.lost.set_result(None)

    def retire(self) -> None:
        """Finish what runs; the kernel ends what a dead network leaves hanging."""
        self.abort()

    def abort(self) -> None:
        """End it; the connections with requests on them are the pool's to end."""
        self.drop()
        if self._pinging is not None:
            self._pinging.cancel()
        if self._control is not None:
            self._control.abort()


_BEHIND = frozenset({"target_refused", "upstream_closed"})


async def connect(
    settings: Https,
    clock: Clock,
    wall: Callable[[], float] = time.time,
    files: Callable[[], list[Path]] = list,
) -> Session:
    """Load keys and certificate, and prove that a request gets through with them.

    Args:
        settings: where, and with which keys.
        clock: the gateway's, as far as it is known.
        wall: seconds since the epoch, as this machine counts them.
        files: returns the key files that are to be used now, whenever it is asked.

    Raises:
        ProblemError: why not.
    """
    if fault := pair_fault(settings.cert, settings.key, settings.unlock):
        raise ProblemError("key_unusable", fault)
    facts = _facts(settings.cert)
    tokens = load_tokens(settings, clock, facts.thumbprint)
    if facts.not_after < wall() + clock.offset:
        text = f"The client certificate {settings.cert} has expired."
        raise ProblemError("certificate_expired", text)
    session = Session(settings, _context(settings), tokens, files)
    try:
        await session.prove()
    except BaseException:
        session.abort()
        raise
    return session


def load_tokens(settings: Https, clock: Clock, certificate: str | None) -> Tokens:
    """Return credentials from the token key that the settings name.

    Args:
        settings: which key, and in whose name.
        clock: the gateway's, as far as it is known.
        certificate: thumbprint of the one that tokens are bound to, or None.

    Raises:
        ProblemError: key_unusable.
    """
    if fault := private_file_fault(settings.token_key):
        raise ProblemError("key_unusable", fault)
    try:
        key = load_token_key(settings.token_key, settings.unlock)
    except KeyFileError as exc:
        raise ProblemError("key_unusable", str(exc)) from exc
    except OSError as exc:
        text = f"{settings.token_key} cannot be read ({exc.strerror})."
        raise ProblemError("key_unusable", text) from exc
    return Tokens(Minter(key, settings.client, settings.audience), clock, certificate)


def _facts(path: Path) -> certs.CertificateFacts:
    try:
        return certs.facts(path.read_bytes())
    except OSError as exc:
        raise ProblemError("key_unusable", f"{path} cannot be read ({exc.strerror}).") from exc
    except ValueError as exc:
        raise ProblemError("key_unusable", f"{path} is not a certificate.") from exc


def _context(settings: Https) -> ssl.SSLContext:
    """Return what TLS is done with: 1.3, the gateway's certificate checked, ours shown."""
    try:
        context = ssl.create_default_context(
            cafile=str(settings.ca_file) if settings.ca_file else None
        )
        # With no password given, OpenSSL would ask the terminal for that of an encrypted key.
        password = settings.unlock or ""
        context.load_cert_chain(settings.cert, settings.key, password=password)
    except (OSError, ssl.SSLError) as exc:  # SSLError is an OSError
        names = f"{settings.cert}, {settings.key} or {settings.ca_file}"
        text = (
            f"One of {names} cannot be used ({exc.strerror or exc.reason})."
            if isinstance(exc, ssl.SSLError)
            else f"{exc.filename or names} cannot be read ({exc.strerror})."
        )
        raise ProblemError("key_unusable", text) from exc
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    return context


def unbound_tokens(settings: Callable[[], Https], clock: Clock) -> Callable[[], Tokens]:
    """Return what gives the credentials for a way without TLS of ours, as their files are now.

    What is returned raises ProblemError: key_unusable.
    """
    seen: tuple[Path, Stamp] | None = None
    tokens: Tokens | None = None

    def current() -> Tokens:
        nonlocal seen, tokens
        https = settings()
        now = https.token_key, stamp(https.token_key)
        if tokens is None or now != seen:
            tokens = load_tokens(https, clock, None)
            seen = now
        return tokens

    return current
