"""The make-believe trading desk behind the demo's service: pure, and nothing is traded."""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["conservative", "normal", "aggressive"]
Json = dict[str, Any]

RUNNING_LIMIT = 5
"""Cycles that run at once; one more completes the oldest."""
REMEMBERED_LIMIT = 1_000
"""Cycles that can still be looked up."""
BACKTEST_LIMIT = 600.0
"""Longest backtest, seconds."""

_BASE_CENTS = {"AAPL": 19_000, "AMD": 14_500, "MSFT": 41_000, "NVDA": 12_000, "TSLA": 24_000}
_SYMBOLS = tuple(_BASE_CENTS)
_SIZES: dict[Mode, tuple[int, int]] = {  # positions, shares in each
    "conservative": (1, 10),
    "normal": (2, 25),
    "aggressive": (3, 50),
}
_TOOLS = ("start_trading_cycle", "stop_trading", "get_cycle", "run_backtest")


@dataclass(slots=True)
class Cycle:
    """One trading cycle; its positions and their worth follow from it and the desk's `as_of`."""

    number: int
    mode: Mode
    note: str
    started_as_of: int
    status: Literal["running", "completed", "stopped"] = "running"

    @property
    def id(self) -> str:
        """Stable name, e.g. `cycle-0001`."""
        return f"cycle-{self.number:04d}"

    def to_json(self) -> Json:
        """The cycle as clients see it."""
        return {
            "id": self.id,
            "mode": self.mode,
            "status": self.status,
            "note": self.note,
            "started_as_of": self.started_as_of,
        }

    def positions(self, as_of: int) -> list[Json]:
        """What the cycle holds, valued at `as_of`. Prices and profit in cents."""
        count, shares = _SIZES[self.mode]
        held = []
        for slot in range(count):
            symbol = _SYMBOLS[(self.number + slot) % len(_SYMBOLS)]
            entry, price = _price(symbol, self.started_as_of), _price(symbol, as_of)
            held.append(
                {
                    "cycle_id": self.id,
                    "symbol": symbol,
                    "shares": shares,
                    "entry_cents": entry,
                    "price_cents": price,
                    "profit_cents": shares * (price - entry),
                }
            )
        return held

    def profit(self, as_of: int) -> int:
        """Sum over its positions, cents."""
        return sum(position["profit_cents"] for position in self.positions(as_of))


class Desk:
    """The trading desk's whole state. No clock, no randomness, no I/O; one thread.

    `as_of` counts every reading and every change, and prices are a function of it: an answer that
    repeats an earlier `as_of` came out of a cache. `executions` counts how often each tool reached
    the desk, whether the desk then did as asked or refused.
    """

    def __init__(self) -> None:
        self.executions: Counter[str] = Counter(dict.fromkeys(_TOOLS, 0))
        self._as_of = 0
        self._started = 0
        self._cycles: deque[Cycle] = deque(maxlen=REMEMBERED_LIMIT)
        self._stop_reason = ""
        self._realised_cents = 0
        self._backtests: Counter[str] = Counter(finished=0, cancelled=0)

    def health(self) -> Json:
        """Whether the desk trades, and why not."""
        running = len(self._running())
        trading = "stopped" if self._stop_reason else "active" if running else "idle"
        return {
            "as_of": self._tick(),
            "status": "ok",
            "trading": trading,
            "stop_reason": self._stop_reason,
            "cycles_running": running,
        }

    def positions(self) -> Json:
        """Every open position, valued now: prices move with each reading."""
        as_of = self._tick()
        held = [position for cycle in self._running() for position in cycle.positions(as_of)]
        return {"as_of": as_of, "count": len(held), "positions": held}

    def scan(self) -> Json:
        """The watched symbols, the strongest first."""
        as_of = self._tick()
        moves = {symbol: _price(symbol, as_of) - base for symbol, base in _BASE_CENTS.items()}
        ranked = sorted(_SYMBOLS, key=lambda symbol: (-moves[symbol], symbol))
        candidates = [
            {"rank": rank, "symbol": symbol, "move_cents": moves[symbol]}
            for rank, symbol in enumerate(ranked, start=1)
        ]
        return {"as_of": as_of, "candidates": candidates}

    def sentiment(self) -> Json:
        """News sentiment of each watched symbol, from -100 to 100."""
        as_of = self._tick()
        scores = {
            symbol: (as_of * 13 + place * 37) % 201 - 100 for place, symbol in enumerate(_SYMBOLS)
        }
        return {"as_of": as_of, "sentiment": scores}

    def performance(self) -> Json:
        """Counts and profit (cents) since the desk was made."""
        as_of = self._tick()
        running = self._running()
        return {
            "as_of": as_of,
            "cycles_started": self._started,
            "cycles_running": len(running),
            "realised_cents": self._realised_cents,
            "unrealised_cents": sum(cycle.profit(as_of) for cycle in running),
            "backtests_finished": self._backtests["finished"],
            "backtests_cancelled": self._backtests["cancelled"],
        }

    def cycles(self) -> list[Json]:
        """Every remembered cycle, the oldest first. A view for tests: it is not a reading."""
        return [cycle.to_json() for cycle in self._cycles]

    def start_trading_cycle(self, mode: Mode, note: str = "") -> Json:
        """Open a cycle, and trading with it if it had been stopped; `note` is kept as given."""
        self.executions["start_trading_cycle"] += 1
        as_of = self._tick()
        self._stop_reason = ""
        running = self._running()
        if len(running) == RUNNING_LIMIT:
            self._close(running[0], "completed", as_of)
        self._started += 1
        cycle = Cycle(self._started, mode, note, as_of)
        self._cycles.append(cycle)
        return {"as_of": as_of, **cycle.to_json()}

    def stop_trading(self, reason: str) -> Json:
        """Close every running cycle; `reason` stays visible in `health` until the next start."""
        self.executions["stop_trading"] += 1
        as_of = self._tick()
        self._stop_reason = reason
        running = self._running()
        for cycle in running:
            self._close(cycle, "stopped", as_of)
        return {"as_of": as_of, "reason": reason, "stopped": [cycle.id for cycle in running]}

    def get_cycle(self, cycle_id: str) -> Json:
        """One cycle and its profit in cents while it runs. LookupError for an id not remembered."""
        self.executions["get_cycle"] += 1
        for cycle in reversed(self._cycles):
            if cycle.id == cycle_id:
                as_of = self._tick()
                profit = cycle.profit(as_of) if cycle.status == "running" else 0
                return {"as_of": as_of, **cycle.to_json(), "unrealised_cents": profit}
        raise LookupError(f"There is no cycle {cycle_id!r}.")

    def begin_backtest(self, steps: int, seconds_per_step: float) -> None:
        """Count a backtest in. ValueError when it would last longer than `BACKTEST_LIMIT`."""
        self.executions["run_backtest"] += 1
        if steps * seconds_per_step > BACKTEST_LIMIT:
            raise ValueError(f"A backtest may last {BACKTEST_LIMIT:.0f} seconds at most.")

    def end_backtest(self, outcome: Literal["finished", "cancelled"]) -> None:
        """Count it out; both counts show in `performance`."""
        self._backtests[outcome] += 1

    def _tick(self) -> int:
        self._as_of += 1
        return self._as_of

    def _running(self) -> list[Cycle]:
        return [cycle for cycle in self._cycles if cycle.status == "running"]

    def _close(self, cycle: Cycle, status: Literal["completed", "stopped"], as_of: int) -> None:
        self._realised_cents += cycle.profit(as_of)
        cycle.status = status


def _price(symbol: str, as_of: int) -> int:
    """A sawtooth of 101 cents about the base price: no two readings in a row agree."""
    place = _SYMBOLS.index(symbol)
    return _BASE_CENTS[symbol] + (as_of * (7 + place)) % 101 - 50
