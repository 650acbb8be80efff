import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnel.problems import CATALOGUE, PERMANENT, Entry, Problem, ProblemError

SOURCES = sorted((Path(__file__).parents[2] / "tunnel").rglob("*.py"))
LINK = {
    "dns_failed",
    "connect_failed",
    "connect_timeout",
    "handshake_timeout",
    "handshake_failed",
    "link_lost",
    "auth_denied",
    "host_key_changed",
    "host_key_unknown",
    "key_unusable",
}


def told_in_the_source() -> Iterator[tuple[str, str]]:
    """Yield file name and code of each `Problem("code", ...)` and `ProblemError("code", ...)`."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name(id="Problem" | "ProblemError"), args=[ast.Constant(str(code)), *_]
                ):
                    yield source.name, code


def test_every_code_that_is_told_is_in_the_catalogue_and_every_entry_is_told() -> None:
    told = list(told_in_the_source())
    assert [(file, code) for file, code in told if code not in CATALOGUE] == []
    assert CATALOGUE.keys() - {code for _, code in told} == set()


@pytest.mark.parametrize(("code", "entry"), CATALOGUE.items())
def test_each_entry(code: str, entry: Entry) -> None:
    assert code.isidentifier()
    assert code == code.lower()
    assert 400 <= entry.status <= 599
    assert entry.remedy == entry.remedy.strip()
    assert entry.remedy.endswith(".")
    assert entry.remedy.isprintable()


def test_json_rpc_codes_are_those_left_to_implementations() -> None:
    """MCP 2026-07-28 keeps -32020 to -32099 for itself; its SDK uses -32000 to -32002."""
    outside = {code for code, entry in CATALOGUE.items() if not -32019 <= entry.rpc <= -32003}
    assert outside == set()


def test_what_keeps_the_link_down_is_a_503() -> None:
    assert CATALOGUE.keys() >= LINK
    assert {CATALOGUE[code].status for code in LINK} == {503}
    assert len({CATALOGUE[code].rpc for code in LINK}) == 1


def test_a_json_rpc_code_means_one_thing() -> None:
    """A client that sees only the number can still tell the unknown outcome from the rest."""
    unknown = CATALOGUE["outcome_unknown"].rpc
    assert [code for code, entry in CATALOGUE.items() if entry.rpc == unknown] == [
        "outcome_unknown"
    ]
    not_sent = {entry.rpc for entry in CATALOGUE.values() if "It was not sent" in entry.remedy}
    may_have_run = {CATALOGUE[code].rpc for code in ("outcome_unknown", "upstream_silent")}
    assert not not_sent & may_have_run


def test_only_what_somebody_must_mend_is_permanent() -> None:
    mended_by_hand = {
        "auth_denied",
        "certificate_expired",
        "certificate_refused",
        "host_key_changed",
        "host_key_unknown",
        "key_unusable",
        "tls_untrusted",
        "token_refused",
    }
    assert mended_by_hand == PERMANENT
    for code in CATALOGUE:
        assert Problem(code, "").permanent is (code in PERMANENT)


def test_a_problem_says_what_happened_and_what_to_do() -> None:
    problem = Problem("dns_failed", "The name droplet does not resolve.")
    assert (problem.status, problem.entry) == (503, CATALOGUE["dns_failed"])
    assert str(problem) == f"The name droplet does not resolve. {CATALOGUE['dns_failed'].remedy}"
    error = ProblemError(problem.code, problem.message)
    assert error.problem == problem
    assert str(error) == str(problem)


@pytest.mark.parametrize("code", CATALOGUE)
def test_in_general_nothing_is_said_of_a_request(code: str) -> None:
    """It is told while a call runs, too, which may have been delivered."""
    told = Problem(code, "So it is.").in_general
    assert told.startswith("So it is.")
    assert "safe to call" not in told
    assert "not delivered" not in told
    assert Problem("auth_denied", "No.").in_general == str(Problem("auth_denied", "No."))


def test_a_code_that_nobody_knows_is_a_defect() -> None:
    with pytest.raises(KeyError):
        _ = Problem("no_such_code", "").status
    with pytest.raises(KeyError):
        ProblemError("no_such_code", "")
