"""What the measurements must show: each required figure, found in the results and judged."""

from dataclasses import dataclass
from typing import Any

PEER = "ssh -L"
RAW = "catalyst raw"
LISTENER = "catalyst listener"
POSTS = "catalyst listener, POST reads"

Results = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A required figure: `measured` is None where this run has not got it."""

    title: str
    measured: float | None
    must: float
    reach: float
    unit: str
    at_most: bool = False

    def holds(self, bound: float) -> bool:
        if self.measured is None:
            return False
        return self.measured <= bound if self.at_most else self.measured >= bound

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        if not self.holds(self.must):
            return "not met"
        return "met, reach too" if self.holds(self.reach) else "met"

    def bound(self, value: float) -> str:
        return f"{'<=' if self.at_most else '>='} {value:g}{self.unit}"

    def to_json(self) -> dict[str, Any]:
        return {
            "figure": self.title,
            "measured": self.measured,
            "must": self.bound(self.must),
            "reach": self.bound(self.reach),
            "verdict": self.verdict,
        }


def cell(results: Results, workload: str, round_trip_ms: int, contender: str) -> dict[str, Any]:
    """One contender's figures in one workload; empty where there are none."""
    for row in results.get("workloads", []):
        if (row["workload"], row["round_trip_ms"]) == (workload, round_trip_ms):
            found: dict[str, Any] = row["contenders"].get(contender, {})
            return found
    return {}


def figures(results: Results) -> list[Figure]:
    """All required figures, in the order of the table in the documentation."""

    def ratio(workload: str, round_trip_ms: int, contender: str, key: str = "rate") -> float | None:
        ours = cell(results, workload, round_trip_ms, contender).get(key)
        theirs = cell(results, workload, round_trip_ms, PEER).get(key)
        return ours / theirs if ours and theirs else None

    def added(over: str) -> float | None:
        ours = cell(results, "sequential", 0, LISTENER).get("p50")
        theirs = cell(results, "sequential", 0, over).get("p50")
        return (ours - theirs) * 1000 if ours and theirs else None

    def failed(fault: str, contender: str) -> float | None:
        for row in results.get("recovery", []):
            if row["fault"] == fault:
                count: float | None = row["contenders"].get(contender, {}).get("failed")
                return count
        return None

    found = []
    for contender in (RAW, LISTENER):
        title = f"sequential, two segments, {contender} vs {PEER}"
        found.append(Figure(title, ratio("sequential", 0, contender), 40, 100, "x"))
    title = f"new connection at 50 ms, {LISTENER} vs {PEER}"
    found.append(Figure(title, ratio("fresh", 50, LISTENER, "p50"), 0.55, 0.52, "x", at_most=True))
    for contender in (RAW, LISTENER):
        title = f"bulk at 50 ms, {contender} vs {PEER}"
        found.append(Figure(title, ratio("bulk", 50, contender), 4, 5.5, "x"))
    title = f"bulk on loopback, {RAW} vs {PEER}"
    found.append(Figure(title, ratio("bulk", 0, RAW), 0.8, 1.1, "x"))
    title = f"16 connections on loopback, {RAW} vs {PEER}"
    found.append(Figure(title, ratio("c16", 0, RAW), 0.5, 1, "x"))
    for over in (RAW, "direct"):
        title = f"listener's added latency p50, over {over}"
        found.append(Figure(title, added(over), 0.8, 0.4, " ms", at_most=True))
    for row in results.get("recovery", []):
        for contender in (LISTENER, POSTS):
            title = f"failed: {row['title']}, {contender}"
            measured = failed(row["fault"], contender)
            found.append(Figure(title, measured, 0, 0, "", at_most=True))
    growth = results.get("memory", {}).get("growth_percent")
    found.append(Figure("RSS growth, requests + reconnects", growth, 5, 0, " %", at_most=True))
    seconds = results.get("startup", {}).get("seconds")
    found.append(Figure("start to first answer, loopback", seconds, 1, 0.6, " s", at_most=True))
    return found
