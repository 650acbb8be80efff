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
        "localhost:5000",
        "localhost:",  # RFC 3986 section 3.2.3 lets the port be empty
        "LOCALHOST:5000",
        "LocalHost",
        "127.0.0.1",
        "127.0.0.1:5000",
        "[::1]",
        "[::1]:80",
        "[0:0:0:0:0:0:0:1]:80",
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
        "EVIL.EXAMPLE",
        "localhost.evil.example",
        "evil.example.localhost.",
        "127.0.0.1.evil.example",
        "127.0.0.1.nip.io:5000",
        "127.0.0.1@evil.example",
        "evil.example@127.0.0.1",
        "localhost:5000@evil.example",
        "evil.example:5000@localhost",
        "@localhost",
        "evil.example#localhost",
        "evil.example#@localhost",
        "evil.example\\localhost",
        "evil.example%00localhost",
        "localhost%2eevil.example",
        "localhost\x00.evil.example",
        "localhost/evil",
        "/localhost",
        "//localhost",
        "http://localhost",
        "localhost?x",
        "localhost;evil.example",
        "localhost:notaport",
        "localhost:99999",
        "localhost:-1",
        "localhost:+80",
        "localhost:80:80",
        "localhost:5000 evil.example",
        "localhost evil.example",
        "localhost,evil.example",
        "localhost\tevil.example",
        "local\thost",
        " localhost",
        "localhost\xa0",
        "0.0.0.0",
        "10.0.0.1",
        "192.168.1.1:5000",
        "[::]",
        "[::2]",
        "[fe80::1]",
        "[::ffff:10.0.0.1]",
        "[::1",
        "::1]",
        "[::1]]",
        "[::1]evil.example",
        "[::1].evil.example:5000",
        "evil.example[::1]",
        "evil.example:5000[::1]",
        "[evil.example]",
        "[localhost]",
        "[]",
        "",
        ":5000",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "127.0.0.256",
    ],
)
def test_other_hosts(host: str) -> None:
    assert code(("host", host)) == "host_forbidden"


def test_host_is_needed_exactly_once() -> None:
    assert code() == "host_forbidden"
    assert code(("origin", "http://localhost")) == "host_forbidden"
    for first, second in [
        ("localhost", "localhost"),
        ("localhost", "evil.example"),
        ("evil.example", "localhost"),
    ]:
        assert code(("host", first), ("host", second)) == "host_forbidden"


def test_other_fields_that_carry_a_host_do_not_count() -> None:
    assert code(("x-forwarded-host", "localhost"), ("host", "evil.example")) == "host_forbidden"
    assert code(("x-forwarded-host", "evil.example"), ("host", "localhost")) is None


def test_without_an_origin_no_page_is_behind_it() -> None:
    assert code(("host", "localhost"), ("accept", "*/*")) is None


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost",
        "http://localhost:6274",
        "https://127.0.0.1",
        "http://127.0.0.1:5000",
        "http://[::1]:3000",
    ],
)
def test_pages_of_this_machine(origin: str) -> None:
    assert code(("host", "localhost"), ("origin", origin)) is None


ORIGINS = [
    "null",
    "",
    "*",
    "https://evil.example",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://localhost@evil.example",
    "http://evil.example@localhost",
    "http://evil.example\\@localhost",
    "http://evil.example#localhost",
    "http://evil.example/http://localhost",
    "http://localhost/",
    "http://localhost:99999",
    "http://[::1]evil.example",
    "http://evil.example[::1]",
    "http://evil.example:80[::1]:80",
    "http://",
    "://localhost",
    "http:localhost",
    "http:///localhost",
    "file://localhost",
    "ftp://localhost",
    "chrome-extension://localhost",
    "javascript://localhost",
    "//localhost",
    "localhost",
    "http://0.0.0.0",
    "http://192.168.1.10",
    "http://localhost http://evil.example",
    "http://localhost,http://evil.example",
    "http://local\thost",
]


@pytest.mark.parametrize("origin", ORIGINS)
def test_other_pages(origin: str) -> None:
    assert code(("host", "localhost"), ("origin", origin)) == "origin_forbidden"


@pytest.mark.parametrize("origin", ORIGINS)
def test_an_allowed_page_opens_the_door_to_no_other(origin: str) -> None:
    allowed = frozenset({"https://app.example"})
    assert code(("host", "localhost"), ("origin", origin), allowed=allowed) == "origin_forbidden"


def test_allowed_pages_are_compared_whole() -> None:
    allowed = frozenset({"https://app.example", "http://other.example:8080"})
    host = ("host", "localhost")
    assert code(host, ("origin", "https://app.example"), allowed=allowed) is None
    assert code(host, ("origin", "http://other.example:8080"), allowed=allowed) is None
    for other in (
        "https://app.example:444",
        "https://app.example.evil",
        "http://app.example",
        "https://sub.app.example",
        "http://other.example",
        "https://app.example,http://localhost",
    ):
        assert code(host, ("origin", other), allowed=allowed) == "origin_forbidden"


def test_an_allowed_page_still_has_to_name_this_machine() -> None:
    """A page that rebinds its own name sends that name in Host."""
    allowed = frozenset({"https://app.example"})
    pairs = [("host", "app.example"), ("origin", "https://app.example")]
    assert code(*pairs, allowed=allowed) == "host_forbidden"


def test_one_bad_origin_of_two_is_enough() -> None:
    good, bad = ("origin", "http://localhost"), ("origin", "https://evil")
    assert code(("host", "localhost"), good, bad) == "origin_forbidden"
    assert code(("host", "localhost"), bad, good) == "origin_forbidden"


def test_a_rebound_name_is_told_before_its_page() -> None:
    pairs = [("host", "evil.example:5000"), ("origin", "http://evil.example:5000")]
    assert code(*pairs) == "host_forbidden"


@pytest.mark.parametrize("site", ["cross-site", "Cross-Site", " cross-site "])
def test_a_page_that_sends_no_origin_is_known_by_its_site(site: str) -> None:
    """An image or a link of another site: the browser sends no Origin with those."""
    fetched = ("sec-fetch-site", site)
    assert code(("host", "localhost"), fetched) == "origin_forbidden"
    assert code(fetched, ("host", "localhost")) == "origin_forbidden"


@pytest.mark.parametrize("site", ["none", "same-origin", "same-site"])
def test_a_person_and_a_page_of_this_machine_may_ask(site: str) -> None:
    assert code(("host", "localhost"), ("sec-fetch-site", site)) is None


def test_where_there_is_an_origin_it_decides() -> None:
    host, fetched = ("host", "localhost"), ("sec-fetch-site", "cross-site")
    allowed = frozenset({"https://app.example"})
    assert code(host, fetched, ("origin", "https://app.example"), allowed=allowed) is None
    assert code(host, fetched, ("origin", "http://127.0.0.1:3000")) is None
    other = ("origin", "https://evil.example")
    for site in ("none", "same-origin", "same-site"):
        assert code(host, ("sec-fetch-site", site), other, allowed=allowed) == "origin_forbidden"


def test_the_answer_does_not_repeat_what_the_page_sent() -> None:
    problem = check([(b"host", b"<script>.example")], NONE)
    assert problem is not None
    assert "script" not in str(problem)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "127.0.0.1", "127.255.0.1", "::1"])
def test_is_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["::", "0.0.0.0", "", "[::1]", "localhost.", "10.0.0.1", "a"])
def test_is_not_loopback(host: str) -> None:
    assert not is_loopback(host)
