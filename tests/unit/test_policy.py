"""What a role may do, and bodies in which two parsers might read two things."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from gateway.decision import CATALOGUE, DeniedError, Wish
from gateway.policy import check_head, check_path, is_message, judge_message, judge_plain
from gateway.settings import Service, Settings
from keys.enrolment import ROLES, Role

SERVICE = Service()
TOOLS = Settings("droplet.example").tools


def body(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


def tool(name: Any, **more: Any) -> bytes:
    return body(id=1, method="tools/call", params={"name": name, **more})


def judge(text: bytes, role: Role = "operator", *pairs: tuple[str, str], **own: Any) -> Wish:
    tools = own.get("tools", TOOLS)
    return judge_message(role, tools, own.get("service", SERVICE), CIMultiDict(pairs), text)


def refusal(text: bytes, role: Role = "operator", *pairs: tuple[str, str], **own: Any) -> str:
    with pytest.raises(DeniedError) as caught:
        judge(text, role, *pairs, **own)
    assert caught.value.code in CATALOGUE
    return caught.value.code


# Paths.


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", "/mcp"), ("GET", "/mcp"), ("DELETE", "/mcp")),
        *(("GET", "/health"), ("HEAD", "/health"), ("GET", "/system/status")),
        *(("GET", "/system/"), ("HEAD", "/system/a/b-c.d~e_f")),
    ],
)
def test_what_is_open(method: str, path: str) -> None:
    check_path(method, path, SERVICE)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "/",
            "*",
            "mcp",
            "/mcp/",
            "/MCP",
            "/mcpx",
            "/mcp/x",
            "/system",
            "/systemx",
            "/healthz",
        ),
        *(
            "/health/",
            "/system/../mcp",
            "/system/..",
            "/system/./a",
            "/system//a",
            "//mcp",
            "/.env",
        ),
        *(
            "/system/.hidden",
            "/%6dcp",
            "/system/%2e%2e/trade",
            "/system/a%00",
            "/mcp;a=b",
            "/mcp?x",
        ),
        *(
            "/mcp#x",
            "/system/a b",
            "/system/ä",
            "/mcp\n",
            "/system/a\r\nX: y",
            "\\mcp",
            "/system\\a",
        ),
        *("http://127.0.0.1:5000/mcp", "127.0.0.1:5000", "/system/a:b", "/system/@"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "CONNECT"])
def test_paths_that_are_closed(method: str, path: str) -> None:
    with pytest.raises(DeniedError, match="path_denied"):
        check_path(method, path, SERVICE)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *((method, "/mcp") for method in ("PUT", "PATCH", "HEAD", "OPTIONS", "TRACE", "post", "")),
        *((method, "/health") for method in ("POST", "PUT", "DELETE", "OPTIONS", "get", "QUERY")),
        *((method, "/system/x") for method in ("POST", "DELETE", "CONNECT")),
    ],
)
def test_methods_that_are_closed(method: str, path: str) -> None:
    with pytest.raises(DeniedError, match="http_method_denied"):
        check_path(method, path, SERVICE)


@given(st.text(max_size=40))
def test_only_plain_paths_below_what_is_listed(path: str) -> None:
    try:
        check_path("GET", path, SERVICE)
    except DeniedError as exc:
        assert exc.code == "path_denied"
    else:
        assert path in {"/mcp", "/health"} or path.startswith("/system/")
        assert ".." not in path and "%" not in path


def test_a_service_of_another_shape() -> None:
    service = Service(endpoint="/v1/mcp", reads=())
    check_path("POST", "/v1/mcp", service)
    assert is_message("POST", "/v1/mcp", service)
    for path in ("/mcp", "/health", "/system/x"):
        with pytest.raises(DeniedError, match="path_denied"):
            check_path("GET", path, service)


def test_what_carries_a_message() -> None:
    assert is_message("POST", "/mcp", SERVICE)
    for method, path in (
        ("GET", "/mcp"),
        ("DELETE", "/mcp"),
        ("POST", "/health"),
        ("post", "/mcp"),
    ):
        assert not is_message(method, path, SERVICE)


def test_only_the_stream_of_the_endpoint_may_stand_for_ever() -> None:
    assert judge_plain("GET", "/mcp", SERVICE) == Wish("GET", standing=True)
    assert judge_plain("DELETE", "/mcp", SERVICE) == Wish("DELETE")
    assert judge_plain("GET", "/system/x", SERVICE) == Wish("GET")


# Heads.


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "application/json",
            "Application/JSON",
            " application/json ",
            "application/json;charset=utf-8",
        ),
        *('application/json; charset="UTF-8"', "application/json ; charset=utf-8 "),
    ],
)
def test_bodies_of_json(kind: str) -> None:
    check_head(CIMultiDict({"Content-Type": kind}))


@pytest.mark.parametrize(
    "kind",
    [
        *(
            "",
            "text/plain",
            "text/json",
            "application/jsonp",
            "application/json-rpc",
            "application/*",
        ),
        *(
            "application/json, text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
        ),
        *(
            "application/json; charset=utf-16",
            "application/json;charset=utf-7",
            "application/json;",
        ),
        *('application/json; charset="utf-8', "application/json; charset=utf-8; charset=utf-7"),
    ],
)
def test_bodies_of_something_else(kind: str) -> None:
    with pytest.raises(DeniedError, match="content_type_refused"):
        check_head(CIMultiDict({"Content-Type": kind}))


def test_the_content_type_is_wanted_once() -> None:
    for pairs in ([], [("Content-Type", "application/json")] * 2):
        with pytest.raises(DeniedError, match="content_type_refused"):
            check_head(CIMultiDict(pairs))


@pytest.mark.parametrize("value", ["gzip", "br", "identity, gzip", "", "x"])
def test_compressed_bodies(value: str) -> None:
    given = CIMultiDict({"Content-Type": "application/json", "Content-Encoding": value})
    with pytest.raises(DeniedError, match="encoding_refused"):
        check_head(given)
    given["Content-Encoding"] = "identity"
    check_head(given)
    given.add("Content-Encoding", value)
    with pytest.raises(DeniedError, match="encoding_refused"):
        check_head(given)


# Roles.

READS = [
    *("initialize", "ping", "tools/list", "resources/list", "resources/templates/list"),
    *("prompts/list", "logging/setLevel", "server/discover", "tasks/get"),
    *("notifications/initialized", "notifications/cancelled", "completion/complete"),
]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("method", READS)
def test_reads_are_for_everybody(role: Role, method: str) -> None:
    assert judge(body(id="a", method=method), role) == Wish(method, caller="a")


@pytest.mark.parametrize("role", ROLES)
def test_a_subscription_is_a_stream_that_stands(role: Role) -> None:
    wish = judge(body(id="a", method="subscriptions/listen"), role)
    assert wish == Wish("subscriptions/listen", caller="a", standing=True)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "method",
    [
        *(
            "tools/Call",
            "tools/list2",
            "TOOLS/LIST",
            "sampling/createMessage",
            "roots/list",
            "shutdown",
        ),
        *("rpc.discover", "notifications/x", "tools", "tasks/result/x", "elicitation/create"),
    ],
)
def test_methods_that_nobody_may_call(role: Role, method: str) -> None:
    assert refusal(body(id=1, method=method), role) == "method_denied"


def test_observers_call_nothing() -> None:
    assert refusal(tool("get_cycle"), "observer") == "tool_denied"
    assert refusal(tool("stop_trading"), "observer") == "tool_denied"
    assert refusal(tool("*"), "observer") == "tool_denied"
    assert refusal(body(id=1, method="tasks/cancel"), "observer") == "method_denied"
    assert judge(body(id=1, method="tasks/cancel")).method == "tasks/cancel"


def test_tools_by_name() -> None:
    tools: dict[Role, frozenset[str]] = {
        "operator": frozenset({"get_cycle", "stop_trading"}),
        "observer": frozenset({"get_cycle"}),
    }
    assert judge(tool("get_cycle"), "observer", tools=tools) == Wish("tools/call", "get_cycle", 1)
    assert judge(tool("stop_trading"), tools=tools).urgent
    for name in ("start_trading_cycle", "Get_cycle", "get_cycle ", "", "get_cycl\u0435", "*"):
        assert refusal(tool(name), tools=tools) == "tool_denied"
    assert refusal(tool("stop_trading"), "observer", tools=tools) == "tool_denied"


def test_only_the_tools_of_the_settings_are_urgent() -> None:
    assert judge(tool("stop_trading")).urgent
    assert not judge(tool("start_trading_cycle")).urgent
    assert not judge(tool("stop_trading"), service=Service(urgent=frozenset())).urgent
    assert not judge(body(id=1, method="prompts/get", params={"name": "stop_trading"})).urgent


# Messages.


def test_an_answer_to_what_the_service_asked() -> None:
    for outcome in ({"result": {}}, {"error": {"code": 1, "message": "no"}}, {"result": None}):
        for role in ROLES:
            assert judge(body(id=1, **outcome), role) == Wish("response")


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"null", b"1", b'"x"', b"\xff", b"{}", b"\xef\xbb\xbf{}", b"[" * 100_000),
        *(b'{"method":"ping","id":1}', b'{"jsonrpc":"1.0","method":"ping","id":1}'),
        b'{"jsonrpc":2.0,"method":"ping","id":1}',
        b'{"jsonrpc":"2.0","method":"ping","method":"tools/call","id":1}',
        b'{"jsonrpc":"2.0","method":"tools/call","id":1,"params":{"name":"a","name":"b"}}',
        b'{"jsonrpc":"2.0","method":"tools/call","id":1,"params":{"name":"a","x":NaN}}',
        b'{"jsonrpc":"2.0","method":"tools/call","id":1,"params":{"name":"\\ud800"}}',
        b'{"jsonrpc":"2.0","method":"ping","id":1}{}',
        body(id=1, method="ping").decode().encode("utf-16"),
        *(body(id=one, method="ping") for one in (None, True, 1.5, [], {})),
        *(body(id=1, method=one) for one in (None, 1, [], {}, "", "a b", "a\n", "x" * 65, "ä")),
        *(body(id=1, method="ping", params=one) for one in (None, [], "x", 1)),
        *(body(id=1, method="tools/call", params=one) for one in ({}, {"Name": "a"})),
        *(tool(one) for one in (None, 1, ["get_cycle"], {"a": 1}, True)),
        *(
            body(id=1, method="resources/read"),
            body(id=1, method="prompts/get", params={"uri": "x"}),
        ),
        *(body(id=1), body(result={}), body(id=None, result={}), body(id=1, result=1, error={})),
        body(id=1, method=None, result={}),
        body(id=1, method="ping", result={}),
        body(id=1, method="tools/list", error={}),
    ],
)
def test_what_is_not_one_message(text: bytes) -> None:
    for role in ROLES:
        assert refusal(text, role) == "message_invalid"


def test_batches() -> None:
    assert refusal(b"[]") == "batch_refused"
    assert refusal(b"[" + tool("stop_trading") + b"]") == "batch_refused"


@given(st.binary(max_size=200))
def test_whatever_the_body_is(text: bytes) -> None:
    assert refusal(text) in {"message_invalid", "batch_refused"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "method", "params"), json_values)))
def test_an_observer_calls_no_tool_whatever_the_members(members: dict[str, Any]) -> None:
    try:
        wish = judge(body(**members), "observer")
    except DeniedError as exc:
        assert exc.code in CATALOGUE
    else:
        assert wish.tool is None


def test_the_refusal_knows_who_waits() -> None:
    with pytest.raises(DeniedError) as caught:
        judge(tool("x"), "observer")
    assert caught.value.caller == 1
    with pytest.raises(DeniedError) as caught:
        judge(body(id=True, method="ping"))
    assert caught.value.caller is None


# Headers that say what the body says.

PING = body(id=1, method="ping")


def in_base64(name: str) -> str:
    return f"=?base64?{base64.b64encode(name.encode()).decode()}?="


def test_headers_that_agree() -> None:
    judge(PING, "operator", ("mcp-method", "ping"), ("MCP-Protocol-Version", "2026-07-28"))
    call = tool("stop_trading")
    judge(call, "operator", ("Mcp-Method", "tools/call"), ("Mcp-Name", "stop_trading"))
    judge(call, "operator", ("Mcp-Name", in_base64("stop_trading")))
    judge(tool("größe"), "operator", ("Mcp-Name", in_base64("größe")))
    read = body(id=1, method="resources/read", params={"uri": "file:///a"})
    judge(read, "operator", ("Mcp-Name", "file:///a"))


@pytest.mark.parametrize(
    "pairs",
    [
        [("Mcp-Method", "tools/list")],
        [("Mcp-Method", "Tools/Call")],
        [("Mcp-Method", "")],
        [("Mcp-Method", "tools/call"), ("mcp-method", "tools/call")],
        [("Mcp-Name", "get_cycle")],
        [("Mcp-Name", "Stop_trading")],
        [("Mcp-Name", "")],
        [("Mcp-Name", "stop_trading"), ("mcp-name", "stop_trading")],
        [("Mcp-Name", in_base64("get_cycle"))],
        [("Mcp-Name", "=?base64?c3RvcF90cmFkaW5?=")],
        [("Mcp-Name", "=?base64?/w==?=")],
        [("Mcp-Name", f"{in_base64('stop_trading')} ")],
        [("MCP-Protocol-Version", "2025-06-18"), ("mcp-protocol-version", "2026-07-28")],
    ],
)
def test_headers_that_say_another_thing(pairs: list[tuple[str, str]]) -> None:
    assert refusal(tool("stop_trading"), "operator", *pairs) == "header_mismatch"


def test_a_name_where_the_message_has_none() -> None:
    """It would choose NGINX's lane for urgent calls."""
    name = ("Mcp-Name", "stop_trading")
    assert refusal(PING, "operator", name) == "header_mismatch"
    assert refusal(body(id=1, result={}), "operator", name) == "header_mismatch"
    assert refusal(body(id=1, result={}), "operator", ("Mcp-Method", "ping")) == "header_mismatch"
