import pytest

from tunnel.guard import check, is_loopback

NONE: frozenset[str] = frozenset()


def code(*headers: tuple[str, str], allowed: frozenset[str] = NONE) -> str | None:
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    problem = check(pairs, allowed)
    return problem.code if problem else None


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:5000",
        "127.0.0.1",
        "127.0.0.1:5000",
        "[::1]",
        "[::1]:80",
        "127.9.9.9",
    ],
)
def test_names_of_this_machine(host: str) -> None:
    assert code(("host", host)) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:5000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "evil.example@127.0.0.1",
        "evil.example#localhost",
        "localhost/evil",
        "localhost?x",
        "localhost:notaport",
        "localhost:99999",
        "localhost evil.example",
        "localhost,evil.example",
        "0.0.0.0",
        "10.0.0.1",
        "[::ffff:10.0.0.1]",
        "[::1",
        "",
        "2130706433",
        "0x7f.1",
    ],
)
def test_other_hosts(host: str) -> None:
    assert code(("host", host)) == "host_forbidden"


def test_host_is_needed_exactly_once() -> None:
    assert code() == "host_forbidden"
    assert code(("host", "localhost"), ("host", "localhost")) == "host_forbidden"


@pytest.mark.parametrize(
    "origin", ["http://localhost:6274", "https://127.0.0.1", "http://[::1]:3000"]
)
def test_pages_of_this_machine(origin: str) -> None:
    assert code(("host", "localhost"), ("origin", origin)) is None


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.example",
        "http://localhost.evil.example",
        "http://localhost@evil.example",
        "http://evil.example\\@localhost",
        "file://localhost",
        "chrome-extension://localhost",
        "//localhost",
        "localhost",
        "http://localhost http://evil.example",
    ],
)
def test_other_pages(origin: str) -> None:
    assert code(("host", "localhost"), ("origin", origin)) == "origin_forbidden"


def test_allowed_pages_are_compared_whole() -> None:
    allowed = frozenset({"https://app.example"})
    host = ("host", "localhost")
    assert code(host, ("origin", "https://app.example"), allowed=allowed) is None
    for other in ("https://app.example:444", "https://app.example.evil", "http://app.example"):
        assert code(host, ("origin", other), allowed=allowed) == "origin_forbidden"


def test_one_bad_origin_of_two_is_enough() -> None:
    pairs = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "https://evil")]
    assert code(*pairs) == "origin_forbidden"


def test_is_loopback() -> None:
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("::")
    assert not is_loopback("0.0.0.0")
