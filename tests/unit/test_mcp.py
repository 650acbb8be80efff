import json

import pytest

from tunnel.mcp import READS, Message, error, parse
from tunnel.problems import CATALOGUE, Problem

PROBLEM = Problem("outcome_unknown", "The link was lost.")


def body(**members: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


def parsed(raw: bytes) -> Message:
    message = parse(raw)
    assert message is not None
    return message


def told(raw: bytes) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(error(PROBLEM, parse(raw)), parse_constant=refuse)


@pytest.mark.parametrize("method", sorted(READS))
def test_reads(method: str) -> None:
    message = parsed(body(id=1, method=method))
    assert message.read
    assert message.name == method
    assert message.ids == (1,)


@pytest.mark.parametrize(
    "method",
    [
        "tools/call",
        "tasks/cancel",
        "sampling/createMessage",
        "elicitation/create",
        "notifications/progress",
        "start_trading_cycle",
        "x",
        "",
        "Tools/List",
        "ping ",
        "tools/list\n",
        "tools/list/../call",
    ],
)
def test_everything_else_may_change_state(method: str) -> None:
    assert not parsed(body(id=1, method=method)).read


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("tools/call", "tools/call"),
        ("start_trading_cycle", "start_trading_cycle"),
        ("rm -rf /", "other"),
        ("ping\n2026-07-28 info link up", "other"),
        ("\x1b[2J", "other"),
        ("Gr\u00fc\u00dfe", "other"),
        ("a" * 10_000, "other"),
        ("", "other"),
        (7, "response"),
    ],
)
def test_the_log_gets_a_name_and_no_free_text(method: object, name: str) -> None:
    assert parsed(body(id=1, method=method)).name == name


def test_what_a_read_is_called_with_does_not_matter() -> None:
    assert parsed(body(id=1, method="resources/read", params={"method": "tools/call"})).read
    assert not parsed(body(id=1, method="tools/call", params={"method": "ping"})).read


@pytest.mark.parametrize("method", [None, 1, ["ping"], {"ping": 1}, True])
def test_a_method_that_is_no_name_is_no_read(method: object) -> None:
    message = parsed(body(id=1, method=method))
    assert not message.read
    assert message.ids == ()


def test_an_answer_of_the_client_is_no_read_and_waits_for_nothing() -> None:
    for answer in ({"result": {}}, {"error": {"code": 1, "message": "no"}}):
        message = parsed(body(id=1, **answer))
        assert (message.read, message.ids) == (False, ())


def test_a_notification_waits_for_nothing() -> None:
    message = parsed(body(method="notifications/initialized"))
    assert (message.read, message.ids) == (True, ())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"1",
        b"[]",
        b"[1]",
        b"[[]]",
        b'"ping"',
        b"{}",
        b"{",
        b'{"jsonrpc":"2.0","id":1,"method":"ping"}{}',
        b"{'jsonrpc':'2.0','id':1,'method':'ping'}",
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":NaN}}',
        b'{"id":1,"method":"ping"}',
        b'{"jsonrpc":"1.0","id":1,"method":"ping"}',
        b'{"jsonrpc":2.0,"id":1,"method":"ping"}',
        b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"id":2,"method":"ping"}]',
        b'[{"jsonrpc":"2.0","id":1,"method":"ping"},null]',
    ],
)
def test_what_is_not_json_rpc_is_nothing(raw: bytes) -> None:
    assert parse(raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}',
        b'{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","\\u006dethod":"tools/call"}',
        b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":1,"a":2}}',
        b'[{"jsonrpc":"2.0","id":1,"method":"ping","method":"ping"}]',
    ],
)
def test_two_members_of_a_name_are_two_messages(raw: bytes) -> None:
    assert parse(raw) is None


@pytest.mark.parametrize("depth", [10_000, 100_000])
def test_nesting_too_deep_to_read_is_nothing(depth: int) -> None:
    deep = b"[" * depth + b"]" * depth
    assert parse(deep) is None
    assert parse(b"[" * depth) is None
    assert parse(b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + deep + b"}") is None


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfe",
        b'{"jsonrpc":"2.0","id":1,"method":"ping\xff"}',
        '{"jsonrpc":"2.0","id":1,"method":"ping"}'.encode("utf-16"),
        '{"jsonrpc":"2.0","id":1,"method":"ping"}'.encode("utf-16-le"),
        '{"jsonrpc":"2.0","id":1,"method":"ping"}'.encode("utf-32"),
    ],
    ids=["no text", "one byte", "utf-16", "utf-16-le", "utf-32"],
)
def test_json_on_a_wire_is_utf_8(raw: bytes) -> None:
    """RFC 8259 section 8.1: what a service makes of another encoding, nobody knows."""
    assert parse(raw) is None


def test_an_id_of_thousands_of_digits_is_nothing() -> None:
    assert parse(b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"ping"}') is None


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999"])
def test_a_number_that_json_cannot_say_is_not_answered_with(number: bytes) -> None:
    answer = told(b'{"jsonrpc":"2.0","id":' + number + b',"method":"ping"}')
    assert isinstance(answer, dict)
    assert "id" not in answer
    assert answer["error"]["code"] == "outcome_unknown"


@pytest.mark.parametrize("odd", [None, True, False, [], {}])
def test_odd_ids_are_not_answered(odd: object) -> None:
    message = parsed(body(id=odd, method="ping"))
    assert message.ids == ()
    assert "id" not in json.loads(error(PROBLEM, message))


@pytest.mark.parametrize(
    "caller", [0, 7, -1, 2**63, 2**80, 1.5, -0.25, "abc", "", "7", "\u2603", "\U0001f600", '"\n']
)
def test_errors_carry_the_callers_id(caller: object) -> None:
    answer = told(body(id=caller, method="tools/call"))
    assert isinstance(answer, dict)
    assert answer["id"] == caller
    assert type(answer["id"]) is type(caller)
    assert answer["jsonrpc"] == "2.0"
    assert answer["error"]["code"] == CATALOGUE["outcome_unknown"].rpc
    assert answer["error"]["data"] == {"code": "outcome_unknown", "remedy": PROBLEM.remedy}
    assert answer["error"]["message"] == str(PROBLEM)


PING = {"jsonrpc": "2.0", "id": "a", "method": "ping"}
CALL = {"jsonrpc": "2.0", "id": 2, "method": "tools/call"}
NOTE = {"jsonrpc": "2.0", "method": "notifications/cancelled"}
ANSWER = {"jsonrpc": "2.0", "id": 9, "result": {}}


@pytest.mark.parametrize(
    ("batch", "read", "ids"),
    [
        ([PING], True, ("a",)),
        ([PING, PING], True, ("a", "a")),
        ([PING, NOTE], True, ("a",)),
        ([PING, CALL], False, ("a", 2)),
        ([CALL, PING], False, (2, "a")),
        ([PING, ANSWER], False, ("a",)),
        ([ANSWER], False, ()),
    ],
)
def test_a_batch_reads_only_if_all_of_it_does(
    batch: list[object], read: bool, ids: tuple[object, ...]
) -> None:
    message = parsed(json.dumps(batch).encode())
    assert (message.batch, message.read, message.ids) == (True, read, ids)


def test_each_of_a_batch_is_answered() -> None:
    answer = told(json.dumps([PING, NOTE, CALL]).encode())
    assert isinstance(answer, list)
    assert [one["id"] for one in answer] == ["a", 2]
    assert all(one["error"]["data"]["code"] == "outcome_unknown" for one in answer)


def test_a_batch_of_one_is_answered_with_a_batch() -> None:
    answer = told(json.dumps([CALL]).encode())
    assert isinstance(answer, list)
    assert len(answer) == 1


@pytest.mark.parametrize(
    "raw", [b"not json", body(method="notifications/initialized"), json.dumps([NOTE]).encode()]
)
def test_without_an_id_the_error_is_plain_json(raw: bytes) -> None:
    assert told(raw) == {
        "error": {
            "code": "outcome_unknown",
            "message": PROBLEM.message,
            "remedy": PROBLEM.remedy,
        }
    }
