"""Dialling, and a proxy in between: real sockets, and a proxy that is told what to answer."""

import asyncio
import base64
import contextlib
import gc
import socket
import traceback
import urllib.request
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from tests.droplet import free_port
from tunnel import dial as module
from tunnel.dial import dial, dial_through_proxy, notice_death
from tunnel.problems import ProblemError

PASSWORD = "hunter2"


@pytest.fixture(autouse=True)
def no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(autouse=True)
def nothing_is_left_open() -> Iterator[None]:
    """A socket that nobody closed warns when it is collected."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(one.message) for one in caught if one.category is ResourceWarning] == []


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


class Proxy:
    """An HTTP proxy that keeps what it is asked, and answers as it is told."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answer: Answer = tunnel
        self.ended = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head)
            await self.answer(reader, writer, head)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.ended.set()


async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
    host, _, port = head.split()[1].decode().rpartition(":")
    there, back = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 tiny\r\n\r\n")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(4096):
                sink.write(data)
            sink.close()

    await asyncio.gather(pump(reader, back), pump(there, writer))


def says(text: bytes, *, stays: bool = False) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: bytes) -> None:
        writer.write(text)
        if stays:
            await reader.read()

    return answer


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    found = Proxy()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{found.port}")
    async with server:
        yield found


@pytest.fixture
async def service() -> AsyncIterator[int]:
    """A service that greets; its port."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def heard(sock: socket.socket) -> bytes:
    with sock:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(sock, 100), 5)


async def refused(attempt: Awaitable[socket.socket]) -> ProblemError:
    with pytest.raises(ProblemError) as caught:
        await attempt
    return caught.value


# Straight.


async def test_a_socket_that_is_connected_and_sends_small_things_at_once(service: int) -> None:
    sock = await dial("127.0.0.1", service)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.gettimeout() == 0
    assert await heard(sock) == b"hello"


async def test_a_name_with_several_addresses_is_raced(service: int) -> None:
    """localhost is ::1 as well on most machines, and nothing listens there."""
    assert await heard(await dial("localhost", service)) == b"hello"


async def test_where_nothing_listens() -> None:
    port = free_port()
    error = await refused(dial("127.0.0.1", port))
    assert error.problem.code == "connect_failed"
    assert f"127.0.0.1:{port}" in error.problem.message
    assert "refused" in error.problem.message


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a..b", "x" * 64 + ".example", "", "-"])
async def test_a_name_that_does_not_resolve(name: str) -> None:
    assert (await refused(dial(name, 443))).problem.code == "dns_failed"


async def test_silence_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIAL", 0.05)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with contextlib.ExitStack() as stack:
            for _ in range(3):  # with its queue full, Linux drops what else comes
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    one.connect(("127.0.0.1", port))
            error = await refused(dial("127.0.0.1", port))
    assert error.problem.code == "connect_timeout"


# Through a proxy.


async def test_the_bytes_behind_the_proxys_answer_are_left_for_tls(
    proxy: Proxy, service: int
) -> None:
    sock = await dial_through_proxy("127.0.0.1", service)
    assert await heard(sock) == b"hello"
    head = proxy.asked[0].decode()
    assert head.startswith(f"CONNECT 127.0.0.1:{service} HTTP/1.1\r\nHost: 127.0.0.1:{service}\r\n")
    assert "authorization" not in head.lower()


async def test_what_comes_with_the_answer_in_one_piece_is_not_swallowed(proxy: Proxy) -> None:
    proxy.answer = says(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert await heard(await dial_through_proxy("droplet.example", 443)) == b"hello"
    assert proxy.asked[0].startswith(b"CONNECT droplet.example:443 ")  # the proxy resolves it


async def test_an_ipv6_literal_has_its_brackets(proxy: Proxy) -> None:
    proxy.answer = says(b"HTTP/1.0 200\r\n\r\n", stays=True)
    (await dial_through_proxy("2001:db8::1", 443)).close()
    assert proxy.asked[0].startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]")


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 3\r\n\r\nno\n", "407"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "502"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "100"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n", "302"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "nothing"),
        (b"HTTP/2 200\r\n\r\n", "nothing"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "nothing"),
        (b"HTTP/1.1 \x1b[3 x\r\n\r\n", "nothing"),
        (b"HTTP/1.1\r\n\r\n", "nothing"),
        (b"\r\n\r\n", "nothing"),
        (b"", "nothing"),
        (b"HTTP/1.1 200 OK\r\nVia: ", "nothing"),  # and then it hangs up
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * (20 << 10) + b"\r\n\r\n", "nothing"),
        (b"\x16\x03\x01\x02\x00\x01\x00", "nothing"),
    ],
)
async def test_a_proxy_that_does_not_let_us_through(
    proxy: Proxy, answer: bytes, shown: str
) -> None:
    proxy.answer = says(answer)
    error = await refused(dial_through_proxy("droplet.example", 443))
    assert error.problem.code == "proxy_refused"
    assert f"127.0.0.1:{proxy.port} answered {shown}" in error.problem.message
    assert error.problem.message.isprintable()
    await asyncio.wait_for(proxy.ended.wait(), 5)


async def test_a_proxy_that_says_nothing(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DIAL", 0.1)
    proxy.answer = says(b"HTTP/1.1 200", stays=True)
    error = await refused(dial_through_proxy("droplet.example", 443))
    assert error.problem.code == "proxy_refused"
    assert "did not answer" in error.problem.message
    await asyncio.wait_for(proxy.ended.wait(), 5)  # it was hung up on


async def test_who_gives_up_waiting_for_a_proxy_leaves_no_connection(proxy: Proxy) -> None:
    proxy.answer = says(b"", stays=True)
    dialling = asyncio.ensure_future(dial_through_proxy("droplet.example", 443))
    async with asyncio.timeout(5):
        while not proxy.asked:
            await asyncio.sleep(0.005)
    dialling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dialling
    await asyncio.wait_for(proxy.ended.wait(), 5)


async def test_a_proxy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", f"http://user:{PASSWORD}@127.0.0.1:{free_port()}")
    error = await refused(dial_through_proxy("droplet.example", 443))
    assert error.problem.code == "connect_failed"
    assert PASSWORD not in everything_said(error)


def everything_said(error: BaseException) -> str:
    """What the log has of an error with -v."""
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("userinfo", "pair"),
    [
        ("user:pw", "user:pw"),
        ("user", "user:"),
        ("us%40er:p%3Aw%2F", "us@er:p:w/"),
        (":pw", ":pw"),
        ("us%C3%A9r:p%C3%BC", "usér:pü"),
        ("user:p%0D%0AX-Evil%3A%201", "user:p\r\nX-Evil: 1"),
    ],
)
async def test_the_proxy_is_told_who_we_are(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, userinfo: str, pair: str
) -> None:
    monkeypatch.setenv("https_proxy", f"http://{userinfo}@127.0.0.1:{proxy.port}")
    proxy.answer = says(b"HTTP/1.1 200 OK\r\n\r\n", stays=True)
    (await dial_through_proxy("droplet.example", 443)).close()
    fields = proxy.asked[0].decode("ascii").split("\r\n")
    [field] = [one for one in fields if one.startswith("Proxy-Authorization: ")]
    scheme, _, said = field.partition(": ")[2].partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(said).decode() == pair
    assert not any(one.startswith("X-Evil") for one in fields)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 407 No\r\n\r\n", b"garbage\r\n\r\n", b""])
async def test_the_password_is_in_no_error(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setenv("https_proxy", f"http://user:{PASSWORD}@127.0.0.1:{proxy.port}")
    proxy.answer = says(answer)
    said = everything_said(await refused(dial_through_proxy("droplet.example", 443)))
    secret = base64.b64encode(f"user:{PASSWORD}".encode()).decode()
    assert not any(one in said for one in (PASSWORD, secret))


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "http://[x]:1",
        "http://127.0.0.1:x",
        "http://127.0.0.1:99999",
        f"http://user:{PASSWORD}@[::1",
        f"http://user:{PASSWORD}@127.0.0.1:x",
        f"http://user:{PASSWORD}/rest@127.0.0.1:80",  # so the port is the password
        "http://",
        "://",
        "http://a..b:1",
    ],
)
async def test_a_proxy_that_is_not_a_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("https_proxy", url)
    error = await refused(dial_through_proxy("droplet.example", 443))
    assert error.problem.code in ("proxy_refused", "dns_failed")
    assert PASSWORD not in everything_said(error)


async def test_a_proxy_may_be_named_without_a_scheme(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, service: int
) -> None:
    monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.port}")
    assert await heard(await dial_through_proxy("127.0.0.1", service)) == b"hello"
    assert len(proxy.asked) == 1


@pytest.mark.parametrize("names", ["127.0.0.1", "*", "example.com,127.0.0.1"])
async def test_no_proxy_where_it_is_not_wanted(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, service: int, names: str
) -> None:
    monkeypatch.setenv("no_proxy", names)
    assert await heard(await dial_through_proxy("127.0.0.1", service)) == b"hello"
    assert proxy.asked == []


async def test_no_proxy_where_none_is_named(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, service: int
) -> None:
    monkeypatch.delenv("https_proxy")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")  # not for this
    assert await heard(await dial_through_proxy("127.0.0.1", service)) == b"hello"
    assert proxy.asked == []


async def test_dial_itself_never_asks_for_a_proxy(proxy: Proxy, service: int) -> None:
    assert urllib.request.getproxies()["https"].endswith(str(proxy.port))
    assert await heard(await dial("127.0.0.1", service)) == b"hello"
    assert proxy.asked == []


# What the kernel is told.


async def test_the_kernel_watches_a_connection(service: int) -> None:
    with await dial("127.0.0.1", service) as sock:
        notice_death(sock, 30)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
        if hasattr(socket, "TCP_KEEPIDLE"):
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 5


async def test_a_system_without_those_options_still_connects(
    service: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows before 1709, where Python takes the names away."""
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT"):
        monkeypatch.delattr(socket, name, raising=False)
    with await dial("127.0.0.1", service) as sock:
        notice_death(sock, 30)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_options_that_are_refused_are_done_without() -> None:
    """macOS refuses them on a connection that the peer has reset."""
    sock = socket.socket()
    sock.close()
    notice_death(sock, 30)
    assert sock.fileno() == -1
