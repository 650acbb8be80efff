"""What the measurements must show: each required figure, found in the results and judged."""

from dataclasses import dataclass
from statistics import median
from typing import Any

PEER = "ssh -L"
RAW = "catalyst raw"
LISTENER = "catalyst listener"
POSTS = "catalyst listener, POST reads"
BRIDGE = "catalyst stdio"
BRIDGE_PEER = "mcp-proxy"

Results = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A required figure: `measured` is None where this run has not got it.

    Without a `must` it is there to be told; without a `reach` the must is all that is asked.
    """

    title: str
    measured: float | None
    must: float | None
    reach: float | None
    unit: str
    at_most: bool = False
    why: str = "not measured"
    """What is said of a figure that is not there."""

    def holds(self, bound: float) -> bool:
        if self.measured is None:
            return False
        return self.measured <= bound if self.at_most else self.measured >= bound

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return self.why
        if self.must is None:
            return "told"
        if not self.holds(self.must):
            return "not met"
        if self.reach is None:
            return "met"
        return "met, reach too" if self.holds(self.reach) else "met"

    def bound(self, value: float | None) -> str:
        if value is None:
            return "-"
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
    rotation = results.get("rotation", {})
    title, why = "keys rotate all, without the drain", _missing(rotation)
    rotated = Figure(title, rotation.get("seconds"), 3, 2, " s", at_most=True, why=why)
    return [
        *found,
        *_gateway(results.get("gateway", {})),
        *_failover(results.get("failover", {})),
        *_bridge(results.get("bridge", {})),
        rotated,
    ]


Cell = dict[str, Any]


def _missing(cell: Cell) -> str:
    if "error" in cell:
        return "failed"
    return str(cell.get("skipped", "not measured"))


def _there(cell: Cell) -> bool:
    return bool(cell) and not {"error", "skipped"} & cell.keys()


def ratio(over: list[float], under: list[float]) -> float:
    """The median of the rounds' ratios."""
    return median(a / b for a, b in zip(over, under, strict=True))


def _added(more: list[float], less: list[float]) -> float:
    """The median of the rounds' differences."""
    return median(a - b for a, b in zip(more, less, strict=True))


def _gateway(parts: Cell) -> list[Figure]:
    found = []

    cell = parts.get("verify", {})
    for key, work in (("call", "tool calls"), ("health", "GET /health")):
        measured = None
        if _there(cell):
            measured = ratio(cell[key]["gateway"]["rate"], cell[key]["proxy"]["rate"])
        title = f"16 connections, {work}, gateway vs its proxy alone"
        found.append(Figure(title, measured, 0.7, 0.9, "x", why=_missing(cell)))

    cell = parts.get("front", {})
    measured = None
    if _there(cell):
        one = cell["c1"]
        measured = _added(one["gateway"]["p50"], one["straight"]["p50"]) * 1000
    title = "gateway's added latency p50, behind NGINX"
    found.append(Figure(title, measured, 1.2, 0.6, " ms", at_most=True, why=_missing(cell)))
    peer = _there(cell) and "haproxy" in cell["c1"]
    why = cell.get("no_haproxy") or _missing(cell)
    for title, row, key in (
        ("16 connections, NGINX + gateway vs HAProxy with jwt_verify", "c16", "rate"),
        ("1 connection, p50, NGINX + gateway vs HAProxy with jwt_verify", "c1", "p50"),
    ):
        told = ratio(cell[row]["gateway"][key], cell[row]["haproxy"][key]) if peer else None
        found.append(Figure(title, told, None, None, "x", why=why))

    cell = parts.get("streams", {})
    title = "500 idle streams + 200 requests/s, "
    errors = cell["errors"] if _there(cell) else None
    found.append(Figure(f"{title}errors", errors, 0, None, "", at_most=True, why=_missing(cell)))
    rss = cell["rss"] / 1e6 if _there(cell) else None
    found.append(Figure(f"{title}RSS", rss, 250, 150, " MB", at_most=True, why=_missing(cell)))

    cell = parts.get("slowloris", {})
    for name in ("headers", "body", "read"):
        p99 = None
        if _there(cell) and cell[name]["p99"] is not None:
            p99 = cell[name]["p99"] * 1000
        title = f"slowloris, {name}: a good client's p99"
        found.append(Figure(title, p99, 50, None, " ms", at_most=True, why=_missing(cell)))
    failed = None
    if _there(cell):
        failed = sum(cell[name]["failed"] for name in ("headers", "body", "read"))
    title = "slowloris: a good client's failed requests"
    found.append(Figure(title, failed, 0, None, "", at_most=True, why=_missing(cell)))

    cell = parts.get("revoke", {})
    seconds = max(cell["seconds"]) if _there(cell) else None
    title = "revocation to the end of the last open stream, slowest"
    found.append(Figure(title, seconds, 2, 0.5, " s", at_most=True, why=_missing(cell)))
    return found


def _failover(parts: Cell) -> list[Figure]:
    found = []
    cell = parts.get("cut", {})
    for title, key in (
        ("a path killed: failed reads", "failed_reads"),
        ("a path killed: tool calls executed twice", "executed_twice"),
    ):
        count = cell[key] if _there(cell) else None
        found.append(Figure(title, count, 0, None, "", at_most=True, why=_missing(cell)))
    cell = parts.get("silent", {})
    for name in ("ssh", "https"):
        seconds = max(cell[name]["seconds"]) if _there(cell) else None
        title = f"{name} silently dead: longest wait of a read"
        found.append(Figure(title, seconds, 6, 2, " s", at_most=True, why=_missing(cell)))
    failed = cell["failed"] if _there(cell) else None
    title = "a path silently dead: failed reads"
    found.append(Figure(title, failed, 0, None, "", at_most=True, why=_missing(cell)))
    return found


def _bridge(parts: Cell) -> list[Figure]:
    def of(part: str, name: str) -> Cell:
        found: Cell = parts.get(part, {}).get("contenders", {}).get(name, {})
        return found

    def why(part: str, *names: str) -> str:
        """What is said of a figure for which one of these has given nothing."""
        cell = parts.get(part, {})
        if any(name in cell.get("missing", {}) for name in names):
            return f"skipped: no {BRIDGE_PEER}"
        failed = "error" in cell or any("error" in of(part, name) for name in names)
        return "failed" if failed else "not measured"

    def against(part: str, key: str) -> float | None:
        ours, theirs = (of(part, name) for name in (BRIDGE, BRIDGE_PEER))
        return ratio(ours[key], theirs[key]) if _there(ours) and _there(theirs) else None

    both = (BRIDGE, BRIDGE_PEER)
    found = []
    for title, key in (("first answer", "initialize"), ("tools/list", "list")):
        must, reach = (0.6, 0.4) if key == "initialize" else (None, None)
        figure = against("stdio-start", key)
        title = f"stdio: start to {title}, vs {BRIDGE_PEER}"
        reason = why("stdio-start", *both)
        found.append(Figure(title, figure, must, reach, "x", at_most=True, why=reason))
    title = f"stdio: added latency p50 of a call, vs {BRIDGE_PEER}"
    figure = against("stdio-latency", "added")
    reason = why("stdio-latency", *both)
    found.append(Figure(title, figure, 0.25, 0.15, "x", at_most=True, why=reason))
    cell = of("stdio-memory", BRIDGE)
    rss = max(cell["rss"]) / 1e6 if _there(cell) else None
    reason = why("stdio-memory", BRIDGE)
    title = "stdio: RSS after 1,000 calls"
    found.append(Figure(title, rss, 45, 38, " MB", at_most=True, why=reason))

    cell = of("scenarios", BRIDGE)
    passed = sum(one["passed"] for one in cell.values()) if _there(cell) else None
    reason = why("scenarios", BRIDGE)
    found.append(Figure("stdio: scenarios passed, of 10", passed, 10, None, "", why=reason))

    cell = of("soak", BRIDGE)
    for title, key in (
        ("ids unanswered", "unanswered"),
        ("reads failed", "failed_reads"),
        ("tool calls executed twice", "executed_twice"),
    ):
        count = cell[key] if _there(cell) else None
        title = f"stdio, 4 copies, links cut: {title}"
        found.append(Figure(title, count, 0, None, "", at_most=True, why=why("soak", BRIDGE)))
    return found
