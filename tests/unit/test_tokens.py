"""What goes out with a request to a gateway, and what is read in its answer: all of the table."""

import base64
import email.utils
import itertools
import json
from typing import Any

import h11
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from keys.keyring import KeyRing
from keys.token import LIFETIME, Minter, Verifier
from tunnel import tokens as tokens_module
from tunnel.http import header
from tunnel.problems import ProblemError
from tunnel.tokens import FRESH, TOLERANCE, Clock, Ruling, Tokens

NOW = 1_800_000_000.0
KEY = Ed25519PrivateKey.generate()
AUDIENCE = "catalyst-gateway:droplet.example"
THUMBPRINT = "A" * 43


class Wall:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def make(wall: Wall, *, bound: bool = True, clock: Clock | None = None) -> Tokens:
    numbers = itertools.count(1)
    return Tokens(
        Minter(KEY, "laptop", AUDIENCE),
        clock or Clock(wall),
        THUMBPRINT if bound else None,
        lambda size: next(numbers).to_bytes(size, "big"),
    )


def claims(token: str) -> dict[str, Any]:
    middle = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(middle + "=" * (-len(middle) % 4)))
    return found


def date(seconds: float) -> bytes:
    return email.utils.formatdate(seconds, usegmt=True).encode("ascii")


# The clock.


@pytest.mark.parametrize("ahead", [3600.0, -3600.0, TOLERANCE + 1, -TOLERANCE - 1, 40 * 86400.0])
def test_the_clock_follows_the_gateways(ahead: float) -> None:
    wall = Wall()
    clock = Clock(wall)
    assert clock.correct(date(NOW + ahead))
    assert clock.now() == NOW + ahead
    wall.now += 10
    assert clock.now() == NOW + ahead + 10


@pytest.mark.parametrize("ahead", [0.0, TOLERANCE, -TOLERANCE])
def test_a_difference_that_dates_cannot_tell_is_none(ahead: float) -> None:
    clock = Clock(Wall())
    assert not clock.correct(date(NOW + ahead))
    assert clock.offset == 0.0


def test_the_same_correction_twice_is_no_change_and_a_mended_clock_is_noticed() -> None:
    wall = Wall()
    clock = Clock(wall)
    assert clock.correct(date(NOW + 600))
    assert not clock.correct(date(NOW + 600))
    assert not clock.correct(date(NOW + 600 + TOLERANCE))
    assert clock.offset == 600
    wall.now = NOW + 600  # somebody set it
    assert clock.correct(date(NOW + 600))
    assert clock.offset == 0


GARBAGE = [
    b"",
    b"now",
    b",",
    b"\xff\xfe",
    b"Mon, 01 Jan 2026",
    b"Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
    b"Mon, 01 Jan 2026 99999999999999999999999:00:00 GMT",
    b"Thu, 01 Jan 1970 00:00:00 +99999999999999999999",
    b"Mon, 01 Jan 2026 00:00:00 +9999",
    b"Mon, 32 Foo 2026 25:61:61 GMT",
    b"Mon, 01 Jan 2030 00:00:00",  # in which zone?
    b"Mon, 01 Jan 2030 00:00:00 -0000",
    b"9" * 5000,
]


@pytest.mark.parametrize("text", GARBAGE)
def test_a_date_that_is_none_changes_nothing(text: bytes) -> None:
    clock = Clock(Wall())
    assert not clock.correct(text)
    assert clock.offset == 0.0


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)
def test_no_date_whatever_raises(text: bytes) -> None:
    clock = Clock(Wall())
    assert clock.correct(text) == (clock.offset != 0.0)


@given(
    st.sampled_from(["Mon, ", "", "Mon ", "99, "]),
    st.integers(-(10**25), 10**25),
    st.sampled_from(["Jan", "Feb", "Dec", "Xyz", "13"]),
    st.integers(-(10**25), 10**25),
    st.sampled_from(["00:00:00", "23:59:60", "99:99", f"{10**30}:1:1", "-1:0:0", ""]),
    st.sampled_from(["GMT", "+0000", "-0000", "+2400", f"+{10**20}", "EST", ""]),
)
def test_nothing_like_a_date_raises(
    day: str, number: int, month: str, year: int, time: str, zone: str
) -> None:
    clock = Clock(Wall())
    clock.correct(f"{day}{number} {month} {year} {time} {zone}".encode())
    assert isinstance(clock.now(), float)


# The token.


def test_a_token_is_one_that_the_gateway_takes() -> None:
    for bound in (True, False):
        token = make(Wall(), bound=bound).token()
        read = Verifier(AUDIENCE, KeyRing([KEY.public_key()])).verify(token, NOW)
        assert (read.client, read.bound) == ("laptop", THUMBPRINT if bound else None)
        assert (read.issued, read.expires) == (NOW, NOW + LIFETIME)


def test_a_bound_token_is_used_until_shortly_before_its_end() -> None:
    wall = Wall()
    tokens = make(wall)
    first = tokens.token()
    wall.now = NOW + LIFETIME - FRESH
    assert tokens.token() == first
    wall.now += 0.5
    second = tokens.token()
    assert second != first
    assert claims(second)["iat"] == int(wall.now)
    assert tokens.token() == second


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_a_bound_token_is_always_good_for_a_while(steps: list[float]) -> None:
    wall = Wall()
    tokens = make(wall)
    for step in steps:
        wall.now += step
        said = claims(tokens.token())
        assert said["iat"] <= wall.now
        assert said["exp"] - wall.now >= FRESH - 1  # iat is whole seconds


def test_a_token_from_the_future_is_not_kept() -> None:
    """Our clock was set back: to the gateway, too, the old token may be one of the future."""
    wall = Wall()
    tokens = make(wall)
    first = tokens.token()
    wall.now -= 30
    assert claims(tokens.token())["iat"] == NOW - 30
    assert tokens.token() != first


def test_another_clock_means_another_token() -> None:
    wall = Wall()
    clock = Clock(wall)
    tokens = make(wall, clock=clock)
    first = tokens.token()
    clock.correct(date(NOW + 10))  # within the life of the first
    second = tokens.token()
    assert second != first
    assert claims(second)["iat"] == NOW + 10


def test_an_unbound_token_serves_once() -> None:
    tokens = make(Wall(), bound=False)
    said = [claims(tokens.token()) for _ in range(50)]
    assert len({one["jti"] for one in said}) == 50
    assert not any("cnf" in one for one in said)


def test_no_two_tokens_of_one_laptop_have_the_same_jti() -> None:
    """The default source of randomness: two runs must not meet."""
    clock = Clock(Wall())
    minter = Minter(KEY, "laptop", AUDIENCE)
    said = {claims(Tokens(minter, clock, None).token())["jti"] for _ in range(50)}
    assert len(said) == 50


# The request as it goes out.


def request(target: str | bytes = "/x", *more: tuple[str, str]) -> h11.Request:
    return h11.Request(method="POST", target=target, headers=[("Host", "localhost:5000"), *more])


def authorizations(head: h11.Request) -> list[bytes]:
    return [value for name, value in head.headers.raw_items() if name.lower() == b"authorization"]


NAMES = st.sampled_from(["Authorization", "authorization", "AUTHORIZATION", "aUTHORIZATION", "X-A"])
VALUES = st.sampled_from(["Bearer x", "Basic dTpw", "", "Bearer", "Bearer a, Bearer b", "\xe9"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6), st.booleans())
def test_there_is_exactly_one_authorization_and_it_is_ours(
    sent: list[tuple[str, str]], bound: bool
) -> None:
    wall = Wall()
    tokens = make(wall, bound=bound)
    pairs = [(name, value.encode("latin-1")) for name, value in sent]
    head = h11.Request(method="GET", target="/", headers=[("Host", "h"), *pairs])
    [ours] = authorizations(tokens.dress(head, b"/mcp", None))
    token = ours.removeprefix(b"Bearer ").decode("ascii")
    assert claims(token)["iss"] == "laptop"


def test_everything_else_stays_as_the_client_sent_it() -> None:
    sent = [("X-B", "1"), ("x-a", "2"), ("X-B", "3"), ("MCP-Protocol-Version", "2026-07-28")]
    head = make(Wall()).dress(request("/x", *sent), b"", None)
    fields = [(name.decode(), value.decode()) for name, value in head.headers.raw_items()]
    assert fields[:-1] == [("Host", "localhost:5000"), *sent]
    assert fields[-1][0] == "Authorization"
    assert head.method == b"POST"


@pytest.mark.parametrize("name", ["Host", "host", "HOST"])
def test_host_is_the_sites_where_there_is_one(name: str) -> None:
    tokens = make(Wall())
    head = h11.Request(method="GET", target="/", headers=[(name, "localhost:5000")])
    assert header(tokens.dress(head, b"/mcp", b"droplet").headers, b"host") == b"droplet"
    assert header(tokens.dress(head, b"", None).headers, b"host") == b"localhost:5000"


TARGETS = [
    ("/", "/"),
    ("/mcp", "/mcp"),
    ("/x?q=http://y/", "/x?q=http://y/"),
    ("/x?a/../../b", "/x?a/../../b"),
    ("//x", "//x"),
    ("/a/../b", "/a/../b"),
    ("/a/./../b/..", "/a/./../b/.."),
    ("/...", "/..."),
    ("/..a", "/..a"),
    ("/%2e%2ex", "/%2e%2ex"),
    ("http://localhost:5000", "/"),
    ("http://localhost:5000/", "/"),
    ("http://localhost:5000/a/b?c=d", "/a/b?c=d"),
    ("http://localhost?q", "/?q"),
    ("HTTPS://evil.example/x", "/x"),
    ("http://[::1]:5000/x", "/x"),
    ("http://[/x", "/x"),
    ("http:///x", "/x"),
    ("http://user:pw@h/x", "/x"),
]


@pytest.mark.parametrize(("target", "path"), TARGETS)
def test_a_target_is_asked_for_below_the_base(target: str, path: str) -> None:
    tokens = make(Wall())
    assert tokens.dress(request(target), b"/mcp", None).target == b"/mcp" + path.encode()
    assert tokens.dress(request(target), b"", None).target == path.encode()


@pytest.mark.parametrize(
    "target",
    [
        "*",
        "evil",
        "evil?x=http://y/",
        "?q",
        "localhost:5000",
        "/..",
        "/../x",
        "/../health",
        "/a/../../health",
        "//../health",
        "/./../health",
        "/%2e%2e/health",
        "/.%2E/health",
        "/%2E./health",
        "/x%2f..%2f../health",
        "http://h/../health",
        "http://h/%2e%2e/health?q",
    ],
)
def test_a_target_that_is_not_below_the_base_is_refused(target: str) -> None:
    """As /mcp + target, each would be asked of the site and not of the service."""
    with pytest.raises(ProblemError) as caught:
        make(Wall()).dress(request(target), b"/mcp", None)
    assert caught.value.problem.code == "request_invalid"
    assert "evil" not in str(caught.value)


PRINTABLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)
PIECES = st.lists(
    st.sampled_from(["/", "..", ".", "%2e", "%2F", "a", "?", "http://", "[", "%", "#"]),
    min_size=1,
    max_size=12,
).map("".join)


@given(PRINTABLE | PIECES)
def test_every_target_stays_below_the_base_or_is_refused(target: str) -> None:
    try:
        head = make(Wall()).dress(request(target), b"/mcp", None)
    except ProblemError as exc:
        assert exc.problem.code == "request_invalid"
        return
    assert head.target.startswith(b"/mcp/")
    path = head.target.partition(b"?")[0].replace(b"%2e", b".").replace(b"%2E", b".")
    path = path.replace(b"%2F", b"/").replace(b"%2f", b"/")
    stack: list[bytes] = []
    for segment in path.split(b"/"):  # RFC 3986, 5.2.4, with slashes merged as NGINX does
        if segment == b"..":
            stack.pop()
        elif segment not in (b"", b"."):
            stack.append(segment)
    assert stack[0] == b"mcp"


# The answer.


def answer(status: int, *fields: tuple[str, str]) -> h11.Response:
    return h11.Response(status_code=status, headers=list(fields))


def gateway(error: str) -> tuple[str, str]:
    return "Proxy-Status", f"catalyst-gateway; error={error}"


def nginx(error: str) -> tuple[str, str]:
    return "Proxy-Status", f"nginx; error={error}"


VIA = ("Via", "1.1 catalyst-gateway")
DENIED, ERROR = "http_request_denied", "http_request_error"
PASS, ANEW, ELSEWHERE, BROKEN = Ruling.PASS, Ruling.ANEW, Ruling.ELSEWHERE, Ruling.BROKEN

TABLE: list[tuple[int, tuple[str, str], Ruling, str | None]] = [
    (200, VIA, PASS, None),
    (204, VIA, PASS, None),
    (401, VIA, PASS, None),  # the service's own
    (404, VIA, PASS, None),
    (500, VIA, PASS, None),
    (502, VIA, PASS, None),
    (503, VIA, PASS, None),
    (401, gateway(DENIED), ELSEWHERE, "token_refused"),
    *(
        (status, gateway(error), PASS, None)
        for status in (400, 403, 408, 411, 413, 415, 429, 431)
        for error in (DENIED, ERROR)
    ),
    (502, gateway("connection_refused"), ELSEWHERE, "target_refused"),
    (502, gateway("connection_terminated"), BROKEN, "upstream_closed"),
    (502, gateway("http_protocol_error"), PASS, None),
    (503, gateway("proxy_internal_error"), ELSEWHERE, "gateway_busy"),
    (503, gateway("proxy_configuration_error"), ELSEWHERE, "gateway_busy"),
    (504, gateway("http_response_timeout"), PASS, None),
    (502, nginx("connection_refused"), ELSEWHERE, "gateway_down"),
    (504, nginx("connection_refused"), ELSEWHERE, "gateway_down"),
    (502, nginx("connection_terminated"), BROKEN, "link_lost"),
    (504, nginx("connection_terminated"), BROKEN, "link_lost"),
    (500, nginx("what we do not know"), BROKEN, "link_lost"),
    (400, nginx(f'{DENIED}; details="certificate"'), ELSEWHERE, "certificate_refused"),
    (403, nginx(f'{DENIED}; details="certificate"'), ELSEWHERE, "certificate_refused"),
    (429, nginx(DENIED), ELSEWHERE, "busy"),
    # The request is at fault, and not who sends it.
    *((status, nginx(DENIED), PASS, None) for status in (400, 404, 405, 413, 414, 431, 501, 505)),
]


@pytest.mark.parametrize(("status", "marker", "ruling", "code"), TABLE)
def test_the_table_of_answers(
    status: int, marker: tuple[str, str], ruling: Ruling, code: str | None
) -> None:
    verdict = make(Wall()).judge(answer(status, ("Content-Length", "0"), marker))
    assert verdict.ruling is ruling
    assert (verdict.problem.code if verdict.problem else None) == code


@pytest.mark.parametrize("status", [200, 204, 301, 302, 401, 403, 404, 407, 500, 502, 503])
@pytest.mark.parametrize(
    "fields",
    [
        [],
        [("Via", "1.1 squid")],
        [("Via", "1.1 catalyst-gateway-2")],
        [("Via", "1.0 catalyst-gateway")],
        [("Via", "1.1 catalyst-gateway, 1.1 squid")],
        [("Via", "")],
        [("X-Via", "1.1 catalyst-gateway")],
        [("Server", "catalyst-gateway")],
        [("Proxy-Status", "squid; error=connection_refused")],
        [("Proxy-Status", "catalyst-gatewayx; error=http_request_denied")],
        [("Proxy-Status", "xcatalyst-gateway; error=http_request_denied")],
        [("Proxy-Status", '"catalyst-gateway"; error=http_request_denied')],
        [("Proxy-Status", "CATALYST-GATEWAY; error=http_request_denied")],
        [("Proxy-Status", "squid, catalyst-gateway; error=http_request_denied")],
        [("Proxy-Status", "")],
        [("Proxy-Status", "error=http_request_denied")],
    ],
)
def test_what_bears_no_mark_of_ours_is_nobodys_answer(
    status: int, fields: list[tuple[str, str]]
) -> None:
    """A captive portal, a proxy in between, a service that is not behind a gateway."""
    clock = Clock(Wall())
    verdict = make(Wall(), clock=clock).judge(answer(status, *fields, ("Date", date(0).decode())))
    assert verdict.ruling is BROKEN
    assert verdict.problem is not None
    assert verdict.problem.code == "gateway_missing"
    assert str(status) in verdict.problem.message
    assert clock.offset == 0.0  # a stranger does not set our clock


@pytest.mark.parametrize("status", [200, 401, 503])
def test_with_both_marks_it_is_the_services(status: int) -> None:
    """The gateway strips both from what the service says, so Via is there by its own word alone."""
    for both in ([VIA, gateway(DENIED)], [nginx("connection_refused"), VIA]):
        assert make(Wall()).judge(answer(status, *both)).ruling is PASS


@pytest.mark.parametrize("name", ["via", "VIA", "Via"])
def test_the_marks_names_are_not_case_sensitive(name: str) -> None:
    assert make(Wall()).judge(answer(200, (name, "1.1 catalyst-gateway"))).ruling is PASS


def test_a_401_with_a_date_is_asked_anew_once_the_clock_is_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wall = Wall()
    tokens = make(wall)
    early = tokens.token()
    told = answer(401, gateway(DENIED), ("Date", date(NOW + 7200).decode()))
    verdict = tokens.judge(told)
    assert verdict.ruling is ANEW
    assert verdict.problem is not None
    assert verdict.problem.code == "token_refused"
    assert tokens.token() != early
    assert claims(tokens.token())["iat"] == NOW + 7200
    assert tokens.judge(told).ruling is ANEW  # the answer to another token of before
    monkeypatch.setattr(tokens_module, "RECENT", -1.0)
    assert tokens.judge(told).ruling is ELSEWHERE  # the clock is not what is wrong


@pytest.mark.parametrize("text", GARBAGE[1:])
def test_a_401_with_a_date_that_is_none_is_final(text: bytes) -> None:
    head = h11.Response(
        status_code=401,
        headers=[gateway(DENIED), ("Date", text.decode("latin-1").encode("latin-1"))],
    )
    assert make(Wall()).judge(head).ruling is ELSEWHERE


@pytest.mark.parametrize("marker", [VIA, nginx(DENIED), ("Via", "1.1 squid")])
def test_a_401_that_is_not_the_gateways_leaves_the_clock_alone(marker: tuple[str, str]) -> None:
    clock = Clock(Wall())
    make(Wall(), clock=clock).judge(answer(401, marker, ("Date", date(NOW + 7200).decode())))
    assert clock.offset == 0.0


@given(
    st.integers(200, 599),
    st.lists(
        st.tuples(
            st.sampled_from(["Via", "Proxy-Status", "Date", "X"]),
            st.sampled_from(
                [
                    "1.1 catalyst-gateway",
                    "catalyst-gateway; error=http_request_denied",
                    "catalyst-gateway",
                    "nginx; error=connection_terminated",
                    "nginx",
                    "",
                    "; error=",
                ]
            )
            | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=30),
        ),
        max_size=5,
    ),
)
def test_an_answer_without_a_mark_never_passes(status: int, fields: list[tuple[str, str]]) -> None:
    verdict = make(Wall()).judge(answer(status, *fields))
    vias = [value for name, value in fields if name == "Via"]
    told = [value for name, value in fields if name == "Proxy-Status"]
    by_service = vias[:1] == ["1.1 catalyst-gateway"]
    ours = [
        one for one in told[:1] if one.partition("; error=")[0] in ("catalyst-gateway", "nginx")
    ]
    if not by_service and not ours:
        assert verdict.ruling is BROKEN
    if verdict.ruling is not PASS:
        assert verdict.problem is not None
