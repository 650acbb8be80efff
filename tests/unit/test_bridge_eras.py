"""Each era in the words of the other; header fields as the SDK's own server checks them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.bridge import eras
from tunnel.bridge.message import Json, Message, refusal, request, response

inbound = pytest.importorskip("mcp.shared.inbound", reason="needs the MCP SDK")

HELLO: Json = {
    "protocolVersion": "2025-06-18",
    "capabilities": {"sampling": {}},
    "clientInfo": {"name": "c", "version": "2"},
}
SERVICE = {"name": "s", "version": "3"}


def stateless(method: str, params: Json | None = None, **meta: Any) -> Message:
    return eras.to_stateless(
        request(1, method, {**(params or {}), "_meta": meta} if meta else params), HELLO, None
    )


@pytest.mark.parametrize(
    ("message", "era"),
    [
        (request(1, "initialize", HELLO), "session"),
        (request(1, "tools/list"), "session"),
        (request(1, "tools/list", {"_meta": {"progressToken": 1}}), "session"),
        (request(1, "tools/list", {"_meta": 5}), "session"),
        (stateless("tools/list"), "stateless"),
        (stateless("initialize"), "session"),
    ],
)
def test_the_era_of_a_request(message: Message, era: str) -> None:
    assert eras.era(message) == era


@given(
    st.dictionaries(st.sampled_from(["name", "arguments", "uri"]), st.just({"x": 1})),
    st.dictionaries(st.sampled_from(["progressToken", "own/key"]), st.integers()),
    st.sampled_from([None, "info"]),
)
def test_there_and_back_is_where_it_was(params: Json, meta: Json, level: str | None) -> None:
    asked = request(1, "tools/call", {**params, "_meta": meta} if meta else params)
    there = eras.to_stateless(asked, HELLO, level)
    assert there.params["_meta"].get(eras.LOG_LEVEL) == level
    assert eras.introduction(there) == {**HELLO, "protocolVersion": "2025-11-25"}
    assert eras.to_session(there).content == asked.content


def test_an_answer_there_and_back_is_what_it_was() -> None:
    for method in ("tools/call", "tools/list", "resources/read"):
        answer = response(1, {"content": [], "_meta": {"x": 1}})
        there = eras.from_session(method, answer)
        assert there.content["result"]["resultType"] == "complete"
        assert ("ttlMs" in there.content["result"]) is (method != "tools/call")
        assert eras.from_stateless(there).content == answer.content
    error = refusal(1, -1, "No.")
    assert eras.from_session("a", error) is error
    assert eras.from_stateless(error) is error


def test_what_a_service_says_of_itself_there_and_back() -> None:
    result = {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": SERVICE,
        "instructions": "Ask.",
    }
    there = eras.discovery(result)
    assert there["supportedVersions"] == ["2026-07-28"]
    assert there["_meta"] == {eras.SERVER_INFO: SERVICE}
    assert eras.initialization(there, HELLO) == result
    assert eras.initialization(there, {})["protocolVersion"] == "2025-11-25"
    assert eras.initialization({}, HELLO)["serverInfo"]["name"] == "unknown"


def test_the_sdk_reads_what_is_made_of_either() -> None:
    from mcp.types import DiscoverResult, InitializeResult, InputRequiredResult

    for result in ({"capabilities": {}}, {"capabilities": {}, "serverInfo": SERVICE}):
        DiscoverResult.model_validate(eras.discovery(result))
    InitializeResult.model_validate(eras.initialization({"capabilities": {}}, HELLO))
    params = {"message": "Name?", "requestedSchema": {"type": "object", "properties": {}}}
    asked = request(5, "elicitation/create", params)
    found = InputRequiredResult.model_validate(eras.input_required(asked, "s"))
    assert found.request_state == "s"


def test_what_a_session_asks_and_a_stateless_client_answers() -> None:
    asked = request(5, "roots/list")
    content = response(1, eras.input_required(asked, "state"))
    assert eras.waits(content)
    [(key, wish)] = eras.wanted(content)
    assert wish == {"method": "roots/list", "params": {}}
    second = eras.again(stateless("tools/call", {"name": "a"}), content, {key: {"roots": []}})
    assert eras.state_of(second) == "state"
    assert eras.given(second, asked).content == response(5, {"roots": []}).content
    plain = eras.to_session(second)
    assert plain.params == {"name": "a"}


@pytest.mark.parametrize(
    "answers", [None, {}, [], {"1": 5}, {"2": {}}], ids=["none", "no", "list", "odd", "other"]
)
def test_a_client_that_answers_something_else(answers: object) -> None:
    message = stateless("tools/call", {"inputResponses": answers, "requestState": 5})
    assert eras.given(message, request(5, "roots/list")).content["result"] == {}
    assert eras.state_of(message) is None


@pytest.mark.parametrize(
    "result",
    [{}, {"resultType": "input_required"}, {"resultType": "input_required", "inputRequests": [1]}],
)
def test_a_service_that_wants_nothing_in_particular(result: Json) -> None:
    answer = response(1, result)
    assert eras.wanted(answer) == []
    assert eras.waits(answer) is bool(result)
    assert not eras.waits(refusal(1, -1, "No."))


def test_lists_may_change_where_there_are_some() -> None:
    found = eras.can_change({"capabilities": {"tools": {}, "prompts": 5, "logging": {}}, "x": 1})
    assert found == {
        "capabilities": {"tools": {"listChanged": True}, "prompts": 5, "logging": {}},
        "x": 1,
    }
    assert eras.can_change({"capabilities": None}) == {"capabilities": {}}


@pytest.mark.parametrize(
    ("least", "level", "wanted"),
    [
        (None, "emergency", False),
        ("info", "debug", False),
        ("info", "info", True),
        ("info", "error", True),
        ("loud", "error", False),
        ("info", "loud", False),
    ],
)
def test_logs_that_a_request_wants(least: str | None, level: str, wanted: bool) -> None:
    asked = stateless("tools/call", **({} if least is None else {eras.LOG_LEVEL: least}))
    log = Message({"jsonrpc": "2.0", "method": eras.LOG, "params": {"level": level}})
    assert eras.is_wanted(log, asked) is wanted


def test_marks_of_subscriptions() -> None:
    plain = Message({"jsonrpc": "2.0", "method": "a"})
    marked = eras.on_subscription(plain, "s")
    assert eras.subscription(marked) == "s"
    assert eras.subscription(plain) is None
    assert eras.off_subscription(marked).content == plain.content
    other = Message({**plain.content, "params": {"uri": "u", "_meta": {"x": 1}}})
    assert eras.off_subscription(eras.on_subscription(other, 1)).content == other.content


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        (None, {}),
        (5, {}),
        ({"toolsListChanged": True, "promptsListChanged": 1}, {"toolsListChanged": True}),
        ({"resourceSubscriptions": ["u", 5]}, {"resourceSubscriptions": ["u"]}),
        ({"resourceSubscriptions": "u"}, {}),
    ],
)
def test_what_a_client_listens_to(asked: object, wanted: Json) -> None:
    message = stateless("subscriptions/listen", {"notifications": asked})
    assert eras.filter_of(message) == wanted


# Header fields

VALUES = st.one_of(
    st.text(max_size=40),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    st.sampled_from([" a", "a ", "", "=?base64?YQ==?=", "a\r\nb: c", "\t", "ü", "=?base64??="]),
)
SCHEMA: Json = {
    "type": "object",
    "properties": {
        "plain": {"type": "string", "x-mcp-header": "Plain"},
        "count": {"type": "integer", "x-mcp-header": "Count"},
        "sure": {"type": "boolean", "x-mcp-header": "Sure"},
        "deep": {
            "type": "object",
            "properties": {"er": {"type": "string", "x-mcp-header": "Deeper"}},
        },
        "other": {"type": "string"},
    },
}


def as_received(message: Message, schema: Json | None = SCHEMA) -> dict[str, str]:
    pairs = [
        (name.decode().lower(), value.decode("ascii"))
        for name, value in eras.fields(message, schema)
    ]
    assert len({name for name, _ in pairs}) == len(pairs)
    for _, value in pairs:
        assert value.isprintable()
        assert value == value.strip()
    return dict(pairs)


@given(
    st.sampled_from(["tools/call", "prompts/get", "resources/read", "tools/list"]),
    VALUES,
)
def test_the_sdks_server_lets_every_request_in(method: str, name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:
        return
    key = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}.get(method)
    message = stateless(method, {key: name} if key else {})
    verdict = inbound.classify_inbound_request(message.content, headers=as_received(message))
    assert isinstance(verdict, inbound.InboundModernRoute), verdict


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "plain": st.one_of(VALUES, st.none(), st.lists(st.integers())),
            "count": st.integers(-(10**30), 10**30),
            "sure": st.booleans(),
            "deep": st.one_of(st.none(), st.fixed_dictionaries({}, optional={"er": VALUES})),
            "other": VALUES,
        },
    )
)
def test_the_arguments_that_a_tool_wants_in_its_header(arguments: Json) -> None:
    try:
        json.dumps(arguments, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    message = stateless("tools/call", {"name": "a", "arguments": arguments})
    received = as_received(message)
    expected = inbound.mcp_param_headers(inbound.x_mcp_header_map(SCHEMA), arguments)
    told = {name: value for name, value in received.items() if name.startswith("mcp-param-")}
    assert told == {name.lower(): value for name, value in expected.items()}
    assert inbound.validate_mcp_param_headers(SCHEMA, arguments, received) is None


@pytest.mark.parametrize(
    "schema",
    [
        None,
        {},
        {"properties": 5},
        {"properties": {"a": 5, "b": {"x-mcp-header": 5}, "c": {"x-mcp-header": "a b"}}},
        {"properties": {"d": {"x-mcp-header": "X\r\nEvil"}}},
    ],
)
def test_a_schema_that_names_no_header_makes_none(schema: Json | None) -> None:
    arguments = dict.fromkeys("abcd", "v")
    message = stateless("tools/call", {"name": "a", "arguments": arguments})
    assert not any(name.startswith("mcp-param-") for name in as_received(message, schema))
