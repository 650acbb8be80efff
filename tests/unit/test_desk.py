"""The demo's trading desk, as pure code."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunnel.demo.desk import (
    BACKTEST_LIMIT,
    REMEMBERED_LIMIT,
    RUNNING_LIMIT,
    Desk,
    Mode,
)

ACTIONS: dict[str, Callable[[Desk], dict[str, Any]]] = {
    "health": Desk.health,
    "positions": Desk.positions,
    "scan": Desk.scan,
    "sentiment": Desk.sentiment,
    "performance": Desk.performance,
    "conservative": lambda desk: desk.start_trading_cycle("conservative", "a note"),
    "normal": lambda desk: desk.start_trading_cycle("normal"),
    "aggressive": lambda desk: desk.start_trading_cycle("aggressive"),
    "stop": lambda desk: desk.stop_trading("enough"),
}


@given(st.lists(st.sampled_from(sorted(ACTIONS)), max_size=40))
def test_any_history_is_deterministic_and_as_of_never_repeats(history: list[str]) -> None:
    desk, twin = Desk(), Desk()
    answers = [ACTIONS[action](desk) for action in history]
    assert answers == [ACTIONS[action](twin) for action in history]
    assert [answer["as_of"] for answer in answers] == list(range(1, len(history) + 1))
    metrics = desk.performance()
    assert metrics["cycles_running"] <= RUNNING_LIMIT
    assert metrics["cycles_started"] == len(desk.cycles())


@pytest.mark.parametrize(("mode", "count"), [("conservative", 1), ("normal", 2), ("aggressive", 3)])
def test_a_started_cycle_shows_everywhere(mode: Mode, count: int) -> None:
    desk = Desk()
    assert desk.health()["trading"] == "idle"
    started = desk.start_trading_cycle(mode, "for the record")
    cycle_id = started["id"]

    first, second = desk.get_cycle(cycle_id), desk.get_cycle(cycle_id)
    assert (first["note"], first["status"]) == ("for the record", "running")
    assert second["as_of"] == first["as_of"] + 1 == started["as_of"] + 2
    positions = desk.positions()
    assert positions["count"] == count
    assert [position["cycle_id"] for position in positions["positions"]] == [cycle_id] * count
    assert desk.health()["trading"] == "active"
    metrics = desk.performance()
    assert (metrics["cycles_started"], metrics["cycles_running"]) == (1, 1)


def test_every_position_moves_with_every_reading() -> None:
    desk = Desk()
    desk.start_trading_cycle("aggressive")
    before = desk.positions()["positions"]
    for _ in range(200):
        after = desk.positions()["positions"]
        for old, new in zip(before, after, strict=True):
            assert old["symbol"] == new["symbol"]
            assert old["price_cents"] != new["price_cents"]
            assert new["profit_cents"] == new["shares"] * (new["price_cents"] - new["entry_cents"])
        before = after


def test_the_scan_ranks_by_move_and_sentiment_stays_in_its_scale() -> None:
    desk = Desk()
    for _ in range(50):
        moves = [candidate["move_cents"] for candidate in desk.scan()["candidates"]]
        assert len(moves) == 5
        assert moves == sorted(moves, reverse=True)
        scores = desk.sentiment()["sentiment"].values()
        assert all(-100 <= score <= 100 for score in scores)


def test_stopping_closes_every_position_at_its_worth() -> None:
    desk, twin = Desk(), Desk()
    for each in (desk, twin):
        each.start_trading_cycle("normal")
        each.start_trading_cycle("aggressive")
    worth = sum(position["profit_cents"] for position in twin.positions()["positions"])
    assert worth != 0

    answer = desk.stop_trading("circuit breaker")
    assert answer["stopped"] == ["cycle-0001", "cycle-0002"]
    assert desk.positions()["positions"] == []
    metrics = desk.performance()
    assert (metrics["realised_cents"], metrics["unrealised_cents"]) == (worth, 0)
    assert desk.get_cycle("cycle-0001")["status"] == "stopped"
    health = desk.health()
    assert (health["trading"], health["stop_reason"]) == ("stopped", "circuit breaker")

    desk.start_trading_cycle("conservative")
    health = desk.health()
    assert (health["trading"], health["stop_reason"]) == ("active", "")


def test_one_cycle_too_many_completes_the_oldest() -> None:
    desk = Desk()
    for _ in range(RUNNING_LIMIT + 1):
        desk.start_trading_cycle("conservative")
    assert desk.get_cycle("cycle-0001")["status"] == "completed"
    assert desk.get_cycle("cycle-0001")["unrealised_cents"] == 0
    assert desk.get_cycle("cycle-0002")["status"] == "running"
    assert desk.performance()["cycles_running"] == RUNNING_LIMIT


def test_memory_is_bounded() -> None:
    desk = Desk()
    for _ in range(REMEMBERED_LIMIT + 1):
        desk.start_trading_cycle("conservative")
    assert len(desk.cycles()) == REMEMBERED_LIMIT
    with pytest.raises(LookupError, match="cycle-0001"):
        desk.get_cycle("cycle-0001")
    assert desk.performance()["cycles_started"] == REMEMBERED_LIMIT + 1


def test_executions_count_every_tool_and_no_reading() -> None:
    desk = Desk()
    idle = {"start_trading_cycle": 0, "stop_trading": 0, "get_cycle": 0, "run_backtest": 0}
    for read in (desk.health, desk.positions, desk.scan, desk.sentiment, desk.performance):
        read()
    assert desk.executions == idle

    desk.start_trading_cycle("normal", "first")
    desk.start_trading_cycle("normal", "second")
    desk.stop_trading("done")
    desk.begin_backtest(1, 0)
    with pytest.raises(LookupError):
        desk.get_cycle("cycle-9999")
    assert desk.executions == {
        "start_trading_cycle": 2,
        "stop_trading": 1,
        "get_cycle": 1,
        "run_backtest": 1,
    }
    assert [cycle["note"] for cycle in desk.cycles()] == ["first", "second"]


def test_looking_on_is_not_a_reading() -> None:
    desk = Desk()
    desk.start_trading_cycle("normal")
    before = desk.health()["as_of"]
    assert len(desk.cycles()) == 1
    assert sum(desk.executions.values()) == 1
    assert desk.health()["as_of"] == before + 1


def test_backtests_are_bounded_and_counted_by_outcome() -> None:
    desk = Desk()
    desk.begin_backtest(10, BACKTEST_LIMIT / 10)
    with pytest.raises(ValueError, match="600 seconds"):
        desk.begin_backtest(11, BACKTEST_LIMIT / 10)
    desk.end_backtest("finished")
    desk.end_backtest("cancelled")
    desk.end_backtest("cancelled")
    metrics = desk.performance()
    assert (metrics["backtests_finished"], metrics["backtests_cancelled"]) == (1, 2)
