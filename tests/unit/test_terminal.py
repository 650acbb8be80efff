"""What the exit codes promise, for every code that either half can answer with."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gateway.decision import CATALOGUE as GATEWAY
from tunnel import cli_asking, control
from tunnel.problems import CATALOGUE as TUNNEL
from tunnel.problems import Problem
from tunnel.status import told
from tunnel.terminal import conversation, exit_code

SAFE = (
    "safe to call again",
    "was not delivered",
    "It was not passed on",
)


@pytest.mark.parametrize("code", TUNNEL)
def test_codes_of_the_tunnel(code: str) -> None:
    entry = TUNNEL[code]
    error = {"code": entry.rpc, "message": entry.remedy, "data": {"code": code}}
    found = exit_code(error, repeatable=False)
    if code in ("outcome_unknown", "upstream_silent", "upstream_invalid", "internal_error"):
        assert found == 5
        assert exit_code(error, repeatable=True) == 1
    elif code == "settings_faulty":
        assert found == 2
    elif any(words in entry.remedy for words in SAFE) or entry.rpc == -32013:
        assert found == 4
    else:
        assert found == (4 if code in ("target_prohibited", "gateway_missing") else 1)


KEYS = {"ca_unavailable", "registrar_unavailable"}  # said of keys, never of a call


@pytest.mark.parametrize("code", sorted(GATEWAY.keys() - KEYS))
def test_codes_of_the_gateway(code: str) -> None:
    entry = GATEWAY[code]
    error = {"code": entry.rpc, "message": entry.words, "data": {"code": code}}
    found = exit_code(error, repeatable=False)
    if entry.status >= 500 and "safe to call again" not in entry.words:
        assert found == 5
    else:
        assert found == (4 if entry.status >= 500 else 1)


@pytest.mark.parametrize(
    ("status", "found"), [(500, 5), (502, 5), (503, 5), (504, 5), (404, 1), (403, 1)]
)
def test_a_bare_status_of_a_stranger_proves_nothing(status: int, found: int) -> None:
    error = {"code": -32013, "message": "?", "data": {"status": status}}
    assert exit_code(error, repeatable=False) == found
    assert exit_code(error, repeatable=True) == 1


def test_an_error_without_anything() -> None:
    assert exit_code({}, repeatable=False) == 1
    assert exit_code({"data": "text"}, repeatable=False) == 1


async def test_what_is_in_the_way_is_told_once_and_promises_nothing_of_the_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    problem = told(Problem("target_refused", "Nothing listens there."))
    path: dict[str, Any] = {"current": False, "state": "up", "since": 0.0, "connects": 1}
    path |= {"answered": False, "latency": None, "problem": problem}
    facts: dict[str, Any] = dict.fromkeys(
        ("pid", "started", "requests", "running", "held", "answered"), 0
    )
    facts |= {"version": "1", "listen": [], "target": "x", "forwards": [], "problems": {}}
    facts |= {"paths": [{**path, "name": name} for name in ("ssh", "https")], "notices": []}

    async def ask(home: Path, command: str) -> dict[str, Any]:
        return facts

    monkeypatch.setattr(control, "ask", ask)
    async with conversation(tmp_path / "config.toml") as talk:
        words = await talk.tunnel_obstacle()
    assert words is not None
    assert words.count("Nothing listens there.") == 1
    assert "safe to call" not in words


class Stuck:
    """A conversation that has no path."""

    def __init__(self) -> None:
        self.asked = 0
        self.looked = 0
        self.enough = asyncio.Event()

    async def tunnel_obstacle(self) -> str | None:
        self.asked += 1
        return "The key is not let in."

    @property
    def obstacle(self) -> str | None:
        self.looked += 1
        if self.looked == 5:
            self.enough.set()
        return None if self.looked < 3 else "No such name."


async def test_a_tunnel_without_a_path_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Being asked makes it try again, and sshd shuts out who tries too often."""
    monkeypatch.setattr(cli_asking, "PATIENCE", 0.001)
    stuck = Stuck()
    async with cli_asking.patience("Asking...", stuck):  # type: ignore[arg-type]
        await asyncio.wait_for(stuck.enough.wait(), 10)
    assert stuck.asked == 1
    assert capsys.readouterr().err.splitlines() == [
        "Asking...",
        "No path is up yet. The key is not let in.",
        "No path is up yet. No such name.",
    ]
