"""The catalogue of refusals, against docs/protocol.md and the RFCs."""

import json
import re
from pathlib import Path

import pytest

from gateway.decision import CATALOGUE, UNAUTHORIZED, DeniedError, body_of

PROTOCOL = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
# RFC 9209, section 2.3.
PROXY_ERRORS = {
    *("connection_refused", "connection_terminated", "http_protocol_error", "http_request_denied"),
    *("http_request_error", "http_response_timeout", "proxy_configuration_error"),
    "proxy_internal_error",
}


def documented() -> set[tuple[int, str]]:
    """Status and error of each line of the table of answers."""
    found = set()
    for statuses, errors in re.findall(r"(?m)^\| ([0-9, ]+) \| ([^|]+) \|", PROTOCOL):
        for status in statuses.split(","):
            found |= {(int(status), error) for error in re.findall(r"`(\w+)`", errors)}
    return found


@pytest.mark.parametrize("code", sorted(set(CATALOGUE) - {"internal_error"}))
def test_every_answer_is_in_the_contract(code: str) -> None:
    entry = CATALOGUE[code]
    assert (entry.status, entry.error) in documented()


def test_errors_have_registered_names_and_json_rpc_codes_of_our_own() -> None:
    for entry in (*CATALOGUE.values(), UNAUTHORIZED):
        assert entry.error in PROXY_ERRORS
        assert -32099 <= entry.rpc <= -32000  # JSON-RPC 2.0, section 5.1
        assert entry.words.endswith(".")


def test_only_an_answer_before_delivery_calls_it_safe_to_call_again() -> None:
    delivered = {"outcome_unknown", "upstream_invalid", "upstream_silent"}
    for code, entry in CATALOGUE.items():
        assert not (code in delivered and "safe" in entry.words), code
        assert ("Look at the service's state" in entry.words) == (code in delivered), code


@pytest.mark.parametrize("code", ["token_expired", "client_revoked", "no such code", ""])
def test_what_is_not_in_the_catalogue_is_told_as_401(code: str) -> None:
    assert DeniedError(code).entry is UNAUTHORIZED


@pytest.mark.parametrize("caller", [None, 7, "a", ""])
def test_401_says_the_same_for_every_cause(caller: int | str | None) -> None:
    codes = ("token_expired", "client_revoked", "certificate_unknown", "key_unknown")
    texts = {body_of(DeniedError(code).entry, code, caller) for code in codes}
    assert len(texts) == 1
    assert not any(code.encode() in text for code in codes for text in texts)


def test_a_refusal_without_anybody_to_answer() -> None:
    content = json.loads(body_of(CATALOGUE["path_denied"], "path_denied", None))
    assert content == {"error": {"code": "path_denied", "message": CATALOGUE["path_denied"].words}}


@pytest.mark.parametrize("caller", [0, 7, -1, "", "a", 'quote"', "\n", "ü"])
def test_a_refusal_of_a_call(caller: int | str) -> None:
    content = json.loads(body_of(CATALOGUE["tool_denied"], "tool_denied", caller))
    assert content["jsonrpc"] == "2.0"
    assert content["id"] == caller
    assert content["error"]["code"] == -32003
    assert content["error"]["data"] == {"code": "tool_denied"}


def test_a_denial_carries_what_the_answer_needs() -> None:
    denied = DeniedError("rate_limited", caller=7, retry_after=2.5)
    assert (denied.code, denied.caller, denied.retry_after) == ("rate_limited", 7, 2.5)
    assert str(denied) == "rate_limited"
