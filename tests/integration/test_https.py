"""The https path against the real NGINX and gateway, and against those who are not.

One far side serves the whole module; a test that breaks it mends it again. What needs an event
loop here runs on asyncio's and on uvloop's: they differ in who closes a socket, and when.
"""

import asyncio
import contextlib
import gc
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from gateway.settings import Layout
from gateway.site import Site, find_nginx
from keys import certs
from keys.files import write_private
from tests.droplet import Sshd, free_port
from tests.gatewayserver import Enrolled, GatewayServer
from tests.nginxserver import Nginx
from tunnel import https
from tunnel.demo.nginx import make_certificate
from tunnel.http import HttpConnection
from tunnel.https import connect
from tunnel.problems import ProblemError
from tunnel.settings import Address, Https, load_unchecked
from tunnel.tokens import Clock

ROOT = Path(__file__).parents[2]
DEADLINE = 20.0
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
NOWHERE = Address("", 0)  # where an https connection leads to is the gateway's to know


@dataclass
class Far:
    """The far side, as processes of its own."""

    directory: Path
    sshd: Sshd
    target_port: int
    gateway: GatewayServer
    nginx: Nginx
    ca: Path
    ca_key: Path
    laptop: Enrolled

    @property
    def settings(self) -> Https:
        return https_of(self.laptop)

    @property
    def authority(self) -> certs.Authority:
        layout = Layout(self.gateway.directory)
        return certs.load_authority(layout.ca_certificate.read_bytes(), layout.ca_key.read_bytes())


def https_of(client: Enrolled) -> Https:
    found = load_unchecked(client.config).https
    assert found is not None
    return found


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory, _sshd_program: Path) -> Iterator[Far]:
    if find_nginx() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no nginx on this machine, and CI must have one: apt install nginx-light")
        pytest.skip("no nginx on this machine: apt install nginx-light")
    directory = tmp_path_factory.mktemp("far")
    ca, key = make_certificate(directory)
    with contextlib.ExitStack() as stack:
        sshd = stack.enter_context(Sshd(directory / "droplet"))
        target = subprocess.Popen(
            [sys.executable, "-m", "tests.droplet", "target"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.enter_context(target)
        stack.callback(target.kill)
        assert target.stdout is not None
        target_port = int(target.stdout.readline().rpartition(":")[2])
        port = free_port()
        gateway = GatewayServer(
            directory / "gateway",
            f"http://127.0.0.1:{target_port}",
            https_port=port,
            tls_ca=ca,
        )
        stack.enter_context(gateway)
        site = Site(
            "localhost",
            gateway.directory,
            https_port=port,
            http_port=free_port(),
            tls_certificate=str(ca),
            tls_key=str(key),
            access_log=str(directory / "access.log"),
            ipv6=False,
        )
        nginx = stack.enter_context(Nginx(directory / "nginx", site))
        laptop = gateway.enrol(directory / "laptop", "operator")
        yield Far(directory, sshd, target_port, gateway, nginx, ca, key, laptop)


Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Run]:
    """Run a coroutine on either loop; nothing may be left running, open or unread by then."""

    async def checked(coroutine: Coroutine[Any, Any, Any]) -> Any:
        asyncio.get_running_loop().set_debug(False)
        result = await coroutine
        async with asyncio.timeout(5):
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0.01)
        return result

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            yield lambda coroutine: runner.run(checked(coroutine))
            gc.collect()
        gc.collect()
    said = [str(one.message) for one in caught if one.category is ResourceWarning]
    assert [one for one in said if "socket" in one or "transport" in one] == []
    assert [one for one in caplog.records if one.name == "asyncio"] == []


async def refusal(settings: Https, clock: Clock | None = None, **own: Any) -> tuple[str, str]:
    """The code and the words with which `connect` fails."""
    with pytest.raises(ProblemError) as caught:
        (await connect(settings, clock or Clock(), **own)).abort()
    return caught.value.problem.code, caught.value.problem.message


def connections_to(port: int) -> int:
    """How many connections to a port this process has open."""
    return sum(
        1
        for one in psutil.Process().net_connections("tcp")
        if one.raddr and one.raddr.port == port and one.status == psutil.CONN_ESTABLISHED
    )


def open_files() -> int:
    return psutil.Process().num_fds()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


# What gets through.


def test_a_session_gets_through_over_tls_1_3(far: Far, run: Run) -> None:
    async def check() -> None:
        session = await connect(far.settings, Clock())
        assert session.alive
        protocol = await session.open(lambda: HttpConnection("client"), NOWHERE)
        assert protocol.transport is not None
        tls = protocol.transport.get_extra_info("ssl_object")
        assert tls.version() == "TLSv1.3"
        assert tls.selected_alpn_protocol() == "http/1.1"
        protocol.abort()
        session.abort()
        assert not session.alive
        await until(lambda: connections_to(far.nginx.https_port) == 0)

    run(check())


def test_sessions_made_and_ended_leave_nothing_open(far: Far, run: Run) -> None:
    async def once() -> None:
        session = await connect(far.settings, Clock())
        ones = [await session.open(lambda: HttpConnection("client"), NOWHERE) for _ in range(3)]
        session.ping()
        await asyncio.sleep(0)
        session.retire()  # in the middle of the ping
        for one in ones:
            one.abort()

    async def check() -> None:
        await once()
        await until(lambda: connections_to(far.nginx.https_port) == 0)
        before = open_files()
        for _ in range(30):
            await once()
        await until(lambda: connections_to(far.nginx.https_port) == 0)
        await until(lambda: open_files() <= before)

    run(check())


def test_a_ping_is_answered_on_the_connection_that_is_kept(far: Far, run: Run) -> None:
    async def check() -> None:
        session = await connect(far.settings, Clock())
        for _ in range(20):
            heard = session.wire.heard
            await asyncio.sleep(0.003)  # uvloop's clock has milliseconds
            session.ping()
            session.ping()  # one is enough
            await until(lambda heard=heard: session.wire.heard > heard)
            await until(lambda: session._pinging is None)
        assert session.alive
        assert connections_to(far.nginx.https_port) == 1
        session.abort()

    run(check())


def test_a_ping_that_fails_ends_the_session_and_says_nothing(far: Far, run: Run) -> None:
    """An exception that nobody asks a task for would be in the log; `run` looks."""

    async def check() -> None:
        session = await connect(far.settings, Clock())
        far.nginx.kill()
        try:
            await asyncio.sleep(0.05)
            session.ping()
            await until(lambda: not session.alive)
            await until(lambda: session._pinging is None)
            with pytest.raises(ProblemError) as caught:
                await session.open(lambda: HttpConnection("client"), NOWHERE)
            assert caught.value.problem.code == "link_lost"
        finally:
            session.abort()
            far.nginx.start()

    run(check())


def test_where_one_connection_fails_the_session_is_over(far: Far, run: Run) -> None:
    async def check() -> None:
        session = await connect(far.settings, Clock())
        far.nginx.kill()
        try:
            with pytest.raises(ProblemError) as caught:
                await session.open(lambda: HttpConnection("client"), NOWHERE)
            assert caught.value.problem.code == "link_lost"
            assert session.lost.done()
        finally:
            session.abort()
            far.nginx.start()

    run(check())


def test_a_clock_that_is_wrong_is_corrected_before_the_first_request(far: Far, run: Run) -> None:
    async def check() -> None:
        clock = Clock(lambda: time.time() - 7200)
        session = await connect(far.settings, clock, lambda: time.time() - 7200)
        assert abs(clock.now() - time.time()) < 5
        session.abort()

    run(check())


# Who is not let in, and why.


def test_another_ca_is_not_trusted(far: Far, run: Run, tmp_path: Path) -> None:
    other, _ = make_certificate(tmp_path)
    code, text = run(refusal(replace(far.settings, ca_file=other)))
    assert code == "tls_untrusted"
    assert f"localhost:{far.nginx.https_port}" in text
    assert run(refusal(replace(far.settings, ca_file=None)))[0] == "tls_untrusted"


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is this machine on Linux")
def test_another_name_is_not_trusted(far: Far, run: Run) -> None:
    code, text = run(refusal(replace(far.settings, host="127.0.0.2")))
    assert code == "tls_untrusted"
    assert "not valid for" in text


def with_certificate(
    settings: Https, directory: Path, authority: certs.Authority, *, begin: float = 0.0
) -> Https:
    """Settings with another certificate for the same key, of `authority`."""
    key = certs.load_private(settings.key.read_bytes())
    now = time.time() + begin
    made = certs.issue(authority, certs.make_request(key), "laptop", now, 1)
    file = directory / "other.crt"
    file.write_bytes(made)
    return replace(settings, cert=file)


def test_an_expired_certificate_is_told_before_it_is_shown(
    far: Far, run: Run, tmp_path: Path
) -> None:
    settings = with_certificate(far.settings, tmp_path, far.authority, begin=-10 * 86400)
    code, text = run(refusal(replace(settings, host="no-such-host.invalid")))
    assert code == "certificate_expired"
    assert str(settings.cert) in text


def test_an_expired_certificate_is_refused_there_too(far: Far, run: Run, tmp_path: Path) -> None:
    settings = with_certificate(far.settings, tmp_path, far.authority, begin=-10 * 86400)
    assert run(refusal(settings, wall=lambda: 0.0))[0] == "certificate_refused"


def test_it_expires_by_the_gateways_clock(far: Far, run: Run) -> None:
    clock = Clock()
    clock.offset = 400 * 86400.0
    assert run(refusal(far.settings, clock))[0] == "certificate_expired"


def test_a_certificate_of_another_ca_is_refused(far: Far, run: Run, tmp_path: Path) -> None:
    foreign = certs.make_authority("catalyst-gateway localhost", time.time())
    settings = with_certificate(far.settings, tmp_path, foreign)
    assert run(refusal(settings))[0] == "certificate_refused"


def test_a_certificate_that_the_registry_does_not_have_is_refused(
    far: Far, run: Run, tmp_path: Path
) -> None:
    settings = with_certificate(far.settings, tmp_path, far.authority)
    assert run(refusal(settings))[0] == "token_refused"


def test_another_audience_or_name_is_refused(far: Far, run: Run) -> None:
    for other in (
        replace(far.settings, audience="catalyst-gateway:elsewhere"),
        replace(far.settings, client="desktop"),
    ):
        assert run(refusal(other))[0] == "token_refused"


def test_a_revoked_client_is_refused(far: Far, run: Run) -> None:
    home = far.directory / f"gone{len(list(far.directory.iterdir()))}"
    gone = far.gateway.enrol(home, "operator")

    async def check() -> None:
        session = await connect(https_of(gone), Clock())
        session.abort()
        with far.gateway.reloading():
            far.gateway.run("client", "revoke", gone.name)
        assert (await refusal(https_of(gone)))[0] == "token_refused"

    run(check())


def test_the_gateway_is_down(far: Far, run: Run) -> None:
    far.gateway.kill()
    try:
        assert run(refusal(far.settings))[0] == "gateway_down"
    finally:
        far.gateway.start()
    run(connected(far.settings))


async def connected(settings: Https) -> None:
    (await connect(settings, Clock())).abort()


def test_nginx_is_down(far: Far, run: Run) -> None:
    far.nginx.kill()
    try:
        assert run(refusal(far.settings))[0] == "connect_failed"
    finally:
        far.nginx.start()
    run(connected(far.settings))


@pytest.mark.parametrize("base", [b"/other", b"", b"/mcpevil", b"/MCP"])
def test_an_url_that_leads_elsewhere(far: Far, run: Run, base: bytes) -> None:
    assert run(refusal(replace(far.settings, base=base)))[0] == "gateway_missing"


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 64])
def test_a_name_that_does_not_resolve(far: Far, run: Run, host: str) -> None:
    assert run(refusal(replace(far.settings, host=host)))[0] == "dns_failed"


# Keys and certificates that cannot be used.


def spoil(path: Path, how: str) -> None:
    match how:
        case "open to others":
            path.chmod(0o644)
        case "missing":
            path.unlink()
        case "garbage":
            path.write_bytes(b"garbage\n")
        case "empty":
            path.write_bytes(b"")
        case "a directory":
            path.unlink()
            path.mkdir()
        case "of another key":
            write_private(
                path, certs.private_pem(ec.generate_private_key(ec.SECP256R1())), replace=True
            )
        case "encrypted":
            key = certs.load_private(path.read_bytes())
            pem = key.private_bytes(
                Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")
            )
            write_private(path, pem, replace=True)


ANYTHING = ["missing", "garbage", "empty", "a directory"]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in ("key", "token_key", "cert", "ca_file") for how in ANYTHING),
        *((name, "open to others") for name in ("key", "token_key")),
        *((name, "of another key") for name in ("key", "token_key")),
        ("key", "encrypted"),
    ],
)
def test_a_file_that_cannot_be_used(
    far: Far, run: Run, tmp_path: Path, name: str, how: str
) -> None:
    home = tmp_path / "laptop"
    shutil.copytree(far.laptop.home, home)
    settings = load_unchecked(home / "config.toml").https
    assert settings is not None
    run(connected(settings))
    path: Path = getattr(settings, name)
    spoil(path, how)
    code, text = run(refusal(settings))
    assert code == "key_unusable"
    assert str(path) in text
    assert "PRIVATE" not in text


def test_an_encrypted_key_does_not_ask_the_terminal(far: Far, tmp_path: Path) -> None:
    """OpenSSL would, in the middle of the event loop; with no terminal it reads none."""
    home = tmp_path / "laptop"
    shutil.copytree(far.laptop.home, home)
    spoil(home / "keys" / "tls.key", "encrypted")
    primary, secondary = os.openpty()
    with Up(home, "--path", "https", stdin=secondary) as up:
        up.until(lambda: up.status().get("paths", [{}])[0].get("problem") is not None)
        assert up.problem() == "key_unusable"
        assert "pass phrase" not in up.said()
    os.close(primary)
    os.close(secondary)


def test_the_ssh_path_mints_without_the_tls_key(far: Far, tmp_path: Path) -> None:
    home = tmp_path / "laptop"
    shutil.copytree(far.laptop.home, home)
    settings = load_unchecked(home / "config.toml").https
    assert settings is not None
    mint = https.unbound_tokens(lambda: settings, Clock())
    settings.key.unlink()
    settings.cert.unlink()
    first = mint()
    assert mint() is first
    settings.token_key.chmod(0o644)
    shutil.copy(settings.token_key, home / "copy")
    (home / "copy").replace(settings.token_key)
    with pytest.raises(ProblemError) as caught:
        mint()
    assert caught.value.problem.code == "key_unusable"
    settings.token_key.chmod(0o600)
    assert mint() is not first


# Somebody else where NGINX should be.


class Stranger:
    """A TLS server with NGINX's own certificate, that does as it is told with each connection."""

    def __init__(
        self, far: Far, talk: Callable[[ssl.SSLSocket], object] | None, **limits: ssl.TLSVersion
    ) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(far.ca, far.ca_key)
        for name, value in limits.items():
            setattr(self._context, name, value)
        self._talk = talk
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.port = self._socket.getsockname()[1]
        self.begun = 0
        self.ended = 0
        self.heard = b""

    def __enter__(self) -> "Stranger":
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(DEADLINE)

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._socket.accept()
                self.begun += 1
                self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE)
        with sock, contextlib.suppress(OSError):
            if self._talk is None:  # TCP and no TLS: until the other side leaves
                while sock.recv(4096):
                    pass
            else:
                with self._context.wrap_socket(sock, server_side=True) as tls:
                    self.heard = tls.recv(65536)
                    self._talk(tls)
        self.ended += 1

    def settings(self, far: Far) -> Https:
        return replace(far.settings, port=self.port)


def says(text: bytes, *, stays: bool = False) -> Callable[[ssl.SSLSocket], object]:
    def talk(tls: ssl.SSLSocket) -> object:
        tls.sendall(text)
        return tls.recv(65536) if stays else tls.unwrap()

    return talk


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (OK + b"\r\nok", "gateway_missing"),
        (OK + b"Via: 1.1 squid\r\n\r\nok", "gateway_missing"),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", "gateway_missing"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "gateway_missing"),
        (b"HTTP/1.1 401 No\r\nDate: x\r\nContent-Length: 0\r\n\r\n", "gateway_missing"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>portal</html>", "gateway_missing"),
        (b"", "tls_failed"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "tls_failed"),
        (b"\x00" * 200, "tls_failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\ncut", "tls_failed"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "tls_failed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (80 << 10), "tls_failed"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "tls_failed"),
        (
            b"HTTP/1.1 401 No\r\nProxy-Status: catalyst-gateway; error=http_request_denied\r\n"
            b"Date: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n",
            "token_refused",
        ),
    ],
)
def test_who_is_not_the_gateway_is_not_taken_for_it(
    far: Far, run: Run, text: bytes, code: str
) -> None:
    with Stranger(far, says(text)) as stranger:
        assert run(refusal(stranger.settings(far)))[0] == code
    assert stranger.ended == stranger.begun


def test_the_token_is_all_that_a_stranger_hears(far: Far, run: Run) -> None:
    """It is bound to our certificate and good for a minute: worth nothing to who has it."""
    with Stranger(far, says(OK + b"\r\nok")) as stranger:
        run(refusal(stranger.settings(far)))
    head = stranger.heard.decode("ascii")
    assert re.fullmatch(
        r"""GET\ /mcp/health\ HTTP/1\.1\r\n
        Host:\ localhost:\d+\r\n
        Authorization:\ Bearer\ [\w.-]+\r\n\r\n""",
        head,
        re.VERBOSE,
    )


def test_tls_1_2_is_not_spoken(far: Far, run: Run) -> None:
    with Stranger(far, says(OK), maximum_version=ssl.TLSVersion.TLSv1_2) as stranger:
        assert run(refusal(stranger.settings(far)))[0] == "tls_failed"
    assert stranger.ended == stranger.begun == 1


def test_silence_after_the_request(far: Far, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "ANSWER", 0.2)
    with Stranger(far, says(b"HTTP/1.1 200 OK\r\n", stays=True)) as stranger:
        assert run(refusal(stranger.settings(far)))[0] == "upstream_silent"
    assert stranger.ended == 1  # it was hung up on


def test_silence_in_the_handshake(far: Far, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "HANDSHAKE", 0.2)

    async def check() -> None:
        assert (await refusal(stranger.settings(far)))[0] == "tls_failed"
        await until(lambda: stranger.ended == 1)
        before = open_files()  # the loop keeps some of its own from now on
        assert (await refusal(stranger.settings(far)))[0] == "tls_failed"
        await until(lambda: stranger.ended == 2)
        await until(lambda: open_files() <= before)

    with Stranger(far, None) as stranger:
        run(check())


def test_a_handshake_that_is_cancelled_leaves_no_socket(far: Far, run: Run) -> None:
    async def check() -> None:
        settings = stranger.settings(far)
        before = 0
        for number in range(1, 12):
            opening = asyncio.ensure_future(connect(settings, Clock()))
            await until(lambda number=number: stranger.begun == number)
            await asyncio.sleep(0.02)
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            await until(lambda number=number: stranger.ended == number)
            before = before or open_files()  # the loop keeps some of its own from the first on
        await until(lambda: open_files() <= before)

    with Stranger(far, None) as stranger:
        run(check())


def test_connecting_cancelled_at_any_moment_leaves_nothing(far: Far, run: Run) -> None:
    async def check() -> None:
        await connected(far.settings)
        await until(lambda: connections_to(far.nginx.https_port) == 0)
        before = open_files()
        for number in range(40):
            opening = asyncio.ensure_future(connect(far.settings, Clock()))
            await asyncio.sleep(number * 0.0005)
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await opening).abort()
        await until(lambda: connections_to(far.nginx.https_port) == 0)
        await until(lambda: open_files() <= before)

    run(check())


def test_another_session_is_wanted_when_files_are_replaced_and_not_when_they_are_gone(
    far: Far, run: Run, tmp_path: Path
) -> None:
    home = tmp_path / "laptop"
    shutil.copytree(far.laptop.home, home)
    settings = load_unchecked(home / "config.toml").https
    assert settings is not None

    async def check() -> None:
        session = await connect(settings, Clock(), files=lambda: [settings.cert, settings.key])
        content = settings.key.read_bytes()
        settings.key.unlink()
        assert not session.replaced
        write_private(settings.key, content, replace=False)
        assert session.replaced
        assert session.alive  # it serves until there is another one
        session.abort()

    run(check())


# As processes.


class Up:
    """A running `catalyst-tunnel up` on `home`."""

    def __init__(self, home: Path, *arguments: str, stdin: int = subprocess.DEVNULL) -> None:
        self.home = home
        self._verbose = "-v" in arguments  # which shows where problems came from
        self.url = f"http://127.0.0.1:{listen_somewhere(home / 'config.toml')}"
        self._log = home / "up.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tunnel", "up", *arguments],
                cwd=ROOT,
                env=environment(home),
                stdin=stdin,
                stderr=log,
            )

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert self._process.poll() is None, self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        return self._log.read_text()

    def status(self) -> dict[str, Any]:
        """What `status --json` prints; asking also has the tunnel look again."""
        done = tunnel("status", "--json", home=self.home)
        assert "Traceback" not in done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def problem(self, number: int = 0) -> str | None:
        path = self.status()["paths"][number]
        return path["problem"]["code"] if path["problem"] else None

    def get(self) -> int:
        done = subprocess.run(
            ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"{self.url}/health"],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        return int(done.stdout)

    def ask(self, line: str) -> bytes:
        """Send a request with this method and target, and return all of the answer."""
        host, port = self.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), DEADLINE) as sock:
            head = f"{line} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
            sock.sendall(head.encode("ascii"))
            answer = b""
            while data := sock.recv(65536):
                answer += data
        return answer

    def __enter__(self) -> "Up":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._process.terminate()
        assert self._process.wait(DEADLINE) == 0 or kind is not None
        assert self._verbose or "Traceback" not in self.said()


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "CATALYST_HOME": str(home)}


def tunnel(*arguments: str, home: Path, stdin: bytes = b"") -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "tunnel", *arguments],
        cwd=ROOT,
        env=environment(home),
        input=stdin,
        capture_output=True,
        timeout=DEADLINE,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def listen_somewhere(config: Path) -> int:
    """Give the settings a free port to listen on, and say which."""
    port = free_port()
    text = config.read_text()
    line = f'listen = "127.0.0.1:{port}"\n'
    text, count = re.subn(r'(?m)^listen = "127.0.0.1:\d+"\n', line, text)
    if not count:
        table = "[tunnel]\n"
        text = text.replace(table, table + line) if table in text else f"{table}{line}\n{text}"
    config.write_text(text)
    return port


@pytest.fixture
def home(far: Far, tmp_path: Path) -> Path:
    """A laptop of both paths: what `init` and `keys accept` leave."""
    home = tmp_path / "home"
    shutil.copytree(far.laptop.home, home)
    (home / "known_hosts").write_text(f"[127.0.0.1]:{far.sshd.port} {far.sshd.host_key}\n")
    config = home / "config.toml"
    config.write_text(f"""\
[ssh]
host = "127.0.0.1"
port = {far.sshd.port}
user = "{far.sshd.user}"
identity = "{far.sshd.identity}"
target = "127.0.0.1:{far.target_port}"

{config.read_text()}""")
    return home


@pytest.mark.parametrize(
    ("road", "names"), [("ssh", ["ssh"]), ("https", ["https"]), ("auto", ["ssh", "https"])]
)
def test_up_by_the_paths_that_are_asked_for(home: Path, road: str, names: list[str]) -> None:
    with Up(home, "--path", road) as up:
        up.until(lambda: [one["answered"] for one in up.status().get("paths", [])].count(True))
        # Whichever answers first is taken; the preferred one once it has been good for a while.
        up.until(lambda: up.status()["paths"][0]["current"])
        up.until(lambda: all(one["answered"] for one in up.status()["paths"]))
        assert [one["name"] for one in up.status()["paths"]] == names
        assert up.get() == 200
        shown = tunnel("status", home=home)
        assert shown.returncode == 0
        lines = [line for line in shown.stdout.splitlines() if line.startswith("● ")]
        assert [line.split()[1] for line in lines] == names
        in_use = [line for line in lines if line.endswith(", in use")]
        assert in_use == (lines[:1] if len(lines) > 1 else [])
        assert all("service answers in" in line for line in lines)


def test_status_tells_which_path_is_in_use_once_it_changed(far: Far, home: Path) -> None:
    with Up(home) as up:
        up.until(
            lambda: all(one["answered"] for one in up.status().get("paths", [{"answered": 0}]))
        )
        far.sshd.stop()
        try:
            up.until(lambda: up.get() == 200 and up.status()["paths"][1]["current"])
            shown = tunnel("status", home=home)
            assert shown.returncode == 0  # a request goes through
            ssh, second = [line for line in shown.stdout.splitlines() if line.startswith("● ")]
            assert "in use" not in ssh
            assert second.endswith(", in use")
            assert "[connect_failed]" in shown.stdout
        finally:
            far.sshd.start()
        up.until(lambda: up.status()["paths"][0]["answered"])


@pytest.mark.parametrize("road", ["ssh", "https"])
def test_a_path_without_its_table_is_a_fault_of_the_settings(home: Path, road: str) -> None:
    config = home / "config.toml"
    other = "https" if road == "ssh" else "ssh"
    start = config.read_text().index(f"[{other}]")
    text = config.read_text()
    config.write_text(text[start:] if road == "ssh" else text[: text.index("[https]")])
    done = tunnel("up", "--path", road, home=home)
    assert done.returncode == 2
    assert f"[{road}]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_path_that_there_is_not(home: Path) -> None:
    assert tunnel("up", "--path", "carrier-pigeon", home=home).returncode == 2


@pytest.mark.parametrize("name", ["tls.key", "token.key"])
@pytest.mark.parametrize("how", ["open to others", "missing"])
def test_up_refuses_keys_that_are_not_private(home: Path, name: str, how: str) -> None:
    spoil(home / "keys" / name, how)
    done = tunnel("up", "--path", "https", home=home)
    assert done.returncode == 2
    assert name in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gateway_that_went_away_is_told_and_comes_back(far: Far, home: Path) -> None:
    with Up(home, "--path", "https") as up:
        up.until(lambda: up.status().get("up"))
        far.gateway.kill()
        try:
            up.until(lambda: up.problem() == "gateway_down")
            shown = tunnel("status", home=home)
            assert shown.returncode == 4
            assert "[gateway_down]" in shown.stdout
        finally:
            far.gateway.start()
        up.until(lambda: up.status()["up"])
        assert up.get() == 200


def test_nginx_that_went_away_is_told_and_comes_back(far: Far, home: Path) -> None:
    with Up(home, "--path", "https") as up:
        up.until(lambda: up.status().get("up"))
        far.nginx.kill()
        try:
            up.until(lambda: up.problem() == "connect_failed")
        finally:
            far.nginx.start()
        up.until(lambda: up.status()["up"])


@pytest.mark.parametrize("what", ["expired", "foreign", "mode", "mismatch"])
def test_credentials_that_were_mended_are_taken_without_a_restart(
    far: Far, home: Path, what: str
) -> None:
    keys = home / "keys"
    good = {name: (keys / name).read_bytes() for name in ("tls.crt", "tls.key")}
    authority = far.authority
    if what == "foreign":
        authority = certs.make_authority("other", time.time())
    begin = -10 * 86400 if what == "expired" else 0
    bad = with_certificate(https_of(far.laptop), home, authority, begin=begin).cert
    if what in ("expired", "foreign"):
        bad.replace(keys / "tls.crt")
    elif what == "mismatch":
        spoil(keys / "tls.key", "of another key")
    with Up(home, "--path", "https") as up:
        expected = {"expired": "certificate_expired", "foreign": "certificate_refused"}
        code = expected.get(what, "key_unusable")
        if what == "mode":  # `up` would not have started with it, but keeps what it has
            up.until(lambda: up.status().get("up"))
            write_private(keys / "tls.key", good["tls.key"], replace=True)
            (keys / "tls.key").chmod(0o640)
            up.until(lambda: "kept the old keys" in up.said())
            assert "[key_unusable]" in up.said()
            assert up.get() == 200
            write_private(keys / "tls.key", good["tls.key"], replace=True)
            up.until(lambda: up.status()["paths"][0]["connects"] == 2)
            assert up.get() == 200
            return
        up.until(lambda: up.status().get("paths") and up.problem() == code)
        # Not "waiting": no second try is made by itself, but `status` has it look.
        assert up.status()["paths"][0]["state"] in ("failed", "connecting")
        for name, content in good.items():
            write_private(keys / name, content, replace=True)
        up.until(lambda: up.status()["up"])
        assert up.get() == 200


def test_a_portal_in_nginx_place_is_never_what_the_client_sees(far: Far, home: Path) -> None:
    """It has NGINX's own certificate, which is more than a real one would have."""
    portal = OK + b"X-Portal: yes\r\n\r\nok"
    with Stranger(far, says(portal, stays=True)) as stranger:
        config = home / "config.toml"
        port = str(far.nginx.https_port)
        config.write_text(config.read_text().replace(port, str(stranger.port)) + "\n")
        text = config.read_text()
        config.write_text(text.replace("[ssh]", "[tunnel]\nhold = 1\n[ssh]", 1))
        with Up(home, "--path", "https") as up:
            up.until(lambda: up.status().get("paths") and up.problem() == "gateway_missing")
            for method in ("GET", "POST"):
                done = subprocess.run(
                    ["curl", "-si", "-X", method, f"{up.url}/mcp"],
                    capture_output=True,
                    text=True,
                    timeout=DEADLINE,
                )
                assert "gateway_missing" in done.stdout or "not the gateway" in done.stdout
                assert "portal" not in done.stdout.lower()
                assert int(done.stdout.split()[1]) >= 500


def test_a_proxy_is_used_only_when_asked_for(
    far: Far, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://user:hunter2@127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    with Up(home, "--path", "https") as up:
        up.until(lambda: up.status().get("up"))
    config = home / "config.toml"
    config.write_text(config.read_text().replace("[https]", "[https]\nuse_proxy = true"))
    with Up(home, "--path", "https", "-v") as up:
        up.until(lambda: up.status().get("paths") and up.problem() == "connect_failed")
        assert "hunter2" not in up.said() + json.dumps(up.status())


@pytest.mark.parametrize("target", ["evil", "/../health", "/%2e%2e/health", "*", "http://[/../x"])
def test_a_target_that_leads_out_of_the_service_is_told_and_ends_no_session(
    far: Far, home: Path, target: str
) -> None:
    with Up(home, "--path", "https") as up:
        up.until(lambda: up.status().get("up"))
        answer = up.ask(f"GET {target}")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"request_invalid" in answer
        assert up.status()["paths"][0]["connects"] == 1


@pytest.mark.parametrize("line", ["GET /%", "GET /%00", "get /health", "M!X /health", "TRACE /x"])
def test_a_request_that_nginx_refuses_is_told_and_ends_no_session(
    far: Far, home: Path, line: str
) -> None:
    """Such a request once took the path down, twenty times over."""
    with Up(home, "--path", "https") as up:
        up.until(lambda: up.status().get("up"))
        assert up.ask(line).split()[1] in (b"400", b"405")
        assert up.status()["paths"][0]["connects"] == 1


def test_keys_request_and_accept(far: Far, tmp_path: Path) -> None:
    place = tmp_path / "fresh"
    asked = tunnel("keys", "request", home=place)
    assert (asked.returncode, asked.stderr) == (0, "")
    assert tunnel("keys", "request", home=place).returncode == 0
    name = f"fresh{len(far.gateway.audit())}"
    with far.gateway.reloading():
        answer = far.gateway.run("client", "add", name, "--role", "observer", stdin=asked.stdout)
    (tmp_path / "answer").write_text(answer.stdout)
    done = tunnel("keys", "accept", str(tmp_path / "answer"), home=place)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{name} may come in as observer" in done.stdout
    with Up(place) as up:
        up.until(lambda: up.status().get("up"))


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\xff\xfe", b"{}", b"[" * 40_000, b" " * 100_000, b"null", b"1e999"],
)
def test_keys_accept_refuses_in_words(tmp_path: Path, content: bytes) -> None:
    done = tunnel("keys", "accept", "-", home=tmp_path, stdin=content)
    assert done.returncode == 2
    assert done.stderr.strip()
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_keys_accept_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("missing", "."):
        done = tunnel("keys", "accept", str(tmp_path / name), home=tmp_path)
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr
    assert tunnel("keys", "accept", home=tmp_path).returncode == 2


@pytest.mark.parametrize("blocked", ["keys", "keys/new", "keys/new/token.key", "keys/new/tls.key"])
def test_keys_request_where_something_is_in_the_way(tmp_path: Path, blocked: str) -> None:
    path = tmp_path / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"something else\n")
    done = tunnel("keys", "request", home=tmp_path)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert path.read_bytes() == b"something else\n"
