import json

import pytest

from tunnel.mcp import READS, error, parse
from tunnel.problems import Problem

PROBLEM = Problem("outcome_unknown", "The link was lost.")


def body(**members: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


@pytest.mark.parametrize("method", sorted(READS))
def test_reads(method: str) -> None:
    message = parse(body(id=1, method=method))
    assert message is not None
    assert message.read
    assert message.name == method


@pytest.mark.parametrize(
    "method", ["tools/call", "tasks/cancel", "sampling/createMessage", "x", "Tools/List", "ping "]
)
def test_everything_else_may_change_state(method: str) -> None:
    message = parse(body(id=1, method=method))
    assert message is not None
    assert not message.read


def test_an_answer_of_the_client_is_no_read_and_waits_for_nothing() -> None:
    message = parse(body(id=1, result={}))
    assert message is not None
    assert (message.read, message.ids) == (False, ())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"[1]",
        b'"ping"',
        b"{",
        b"\xff\xfe",
        b'{"id":1,"method":"ping"}',
        b'{"jsonrpc":"1.0","id":1,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":1,"a":2}}',
        b"[" * 100_000,
        b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"ping"}',
    ],
)
def test_what_cannot_be_trusted_is_nothing(raw: bytes) -> None:
    assert parse(raw) is None


@pytest.mark.parametrize("odd", [None, True, [], {}])
def test_odd_ids_are_not_answered(odd: object) -> None:
    message = parse(body(id=odd, method="ping"))
    assert message is not None
    assert message.ids == ()


def test_a_batch_reads_only_if_all_of_it_does() -> None:
    ping = {"jsonrpc": "2.0", "id": "a", "method": "ping"}
    call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call"}
    reading = parse(json.dumps([ping, ping]).encode())
    mixed = parse(json.dumps([ping, call]).encode())
    assert reading is not None
    assert mixed is not None
    assert reading.read
    assert not mixed.read
    assert mixed.ids == ("a", 2)
    assert [one["id"] for one in json.loads(error(PROBLEM, mixed))] == ["a", 2]


@pytest.mark.parametrize("caller", [0, 7, -1, 2**80, 1.5, "abc", "", "\u2603"])
def test_errors_carry_the_callers_id(caller: object) -> None:
    told = json.loads(error(PROBLEM, parse(body(id=caller, method="tools/call"))))
    assert told["id"] == caller
    assert told["jsonrpc"] == "2.0"
    assert told["error"]["code"] == -32055
    assert told["error"]["data"]["code"] == "outcome_unknown"
    assert PROBLEM.remedy in told["error"]["message"]


def test_without_an_id_the_error_is_plain_json() -> None:
    told = json.loads(error(PROBLEM, None))
    assert told["error"]["code"] == "outcome_unknown"
    assert told["error"]["message"] == PROBLEM.message
