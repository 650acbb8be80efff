"""Reading one TOML table: every key is taken once, and every fault is kept, not only the first."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

_NAMES: dict[object, str] = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
}


@dataclass(slots=True)
class Table:
    """Takes keys out of `values`; faults are told as "file: [table] key: what is wrong"."""

    where: str
    values: dict[str, Any]
    faults: list[str]
    taken: set[str] = field(default_factory=set)

    def fault(self, key: str, text: str) -> None:
        """Keep a fault of `key`."""
        self.faults.append(f"{self.where} {key}: {text}")

    def take(self, key: str, kind: type, default: T, read: Callable[[Any], T]) -> T:
        """Return `read(value)`, or `default` where the key is missing or at fault.

        `read` raises ValueError with what is wrong in words.
        """
        self.taken.add(key)
        if key not in self.values:
            return default
        value = self.values[key]
        if kind is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                value = math.inf
        if type(value) is not kind:
            self.fault(key, f"must be {_NAMES[kind]}")
            return default
        try:
            return read(value)
        except ValueError as exc:
            self.fault(key, str(exc))
            return default

    def word(self, key: str, *, blanks: bool = False) -> str | None:
        """Take a string that is not empty, without blanks, or with `blanks` inside of it."""

        def read(value: str) -> str | None:
            good = value.isprintable() and value == value.strip() and value
            if not good or (not blanks and len(value.split()) > 1):
                raise ValueError("must be a plain word, not empty")
            return value

        return self.take(key, str, None, read)

    def seconds(self, key: str, default: float, low: float, high: float) -> float:
        """Take a number of seconds between `low` and `high`."""

        def read(value: float) -> float:
            if not low <= value <= high:
                raise ValueError(f"must be between {low:g} and {high:g} seconds")
            return value

        return self.take(key, float, default, read)

    def flag(self, key: str) -> bool:
        """Take true or false; false where it is missing."""
        return self.take(key, bool, False, bool)

    def rest(self) -> None:
        """Keep a fault for every key that nobody took."""
        for key in sorted(self.values.keys() - self.taken):
            self.fault(key, f"unknown key (known here: {', '.join(sorted(self.taken))})")
