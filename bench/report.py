"""The results as plain aligned text."""

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from bench.scenarios import TITLES
from bench.verdict import PEER, Figure, ratio


def render(results: dict[str, Any], required: Iterable[Figure]) -> str:
    """All tables that there are results for."""
    parts = []
    if rows := results.get("workloads"):
        parts.append(_workloads(rows))
    if rows := results.get("recovery"):
        parts.append(_recovery(rows))
    if "memory" in results:
        parts.append(_memory(results["memory"]))
    if "startup" in results:
        parts.append(_startup(results["startup"]))
    if "gateway" in results:
        parts += _gateway(results["gateway"])
    if "failover" in results:
        parts += _failover(results["failover"])
    if "bridge" in results:
        parts += _bridge(results["bridge"])
    if "rotation" in results:
        parts.append(_rotation(results["rotation"]))
    parts.append(_figures(required))
    return "\n\n".join(parts)


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A title, a head and rows, the first column to the left and the others to the right."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [
        "  ".join(
            part.rjust(width) if column else part.ljust(width)
            for column, (part, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([title, rule, text[0], rule, *text[1:]])


def _workloads(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["contenders"])
    lines = []
    for row in rows:
        figure, unit = row["figure"], row["unit"]
        cells = row["contenders"]
        peer = cells.get(PEER, {}).get(figure)
        line = [f"{row['title']}, {row['round_trip_ms']} ms", unit]
        for name in names:
            value = cells[name].get(figure)
            if value is None:
                line.append("n/a")
                continue
            ratio = f" ({value / peer:.2f}x)" if peer else ""
            line.append(f"{_number(value * 1000 if unit == 'ms' else value)}{ratio}")
        lines.append(line)
    notes = _errors(rows, "workload")
    title = f"Speed (in brackets: against {PEER}; medians of the rounds)"
    return table(title, ["workload, added round trip", "unit", *names], lines) + notes


def _recovery(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        for name, cell in row["contenders"].items():
            if "error" in cell:
                lines.append([row["title"], name, "n/a", "", "", "", ""])
                continue
            kinds = ", ".join(f"{count} {what}" for what, count in cell["kinds"].items())
            counts = [str(cell[key]) for key in ("sent", "failed", "excused_502")]
            lines.append([row["title"], name, *counts, f"{cell['longest']:.2f}", kinds])
    head = ["fault", "contender", "sent", "failed", "502", "longest s", "not answered with 200"]
    title = "Recovery (20 requests/s, each on a new connection; 502: while the service was away)"
    return table(title, head, lines) + _errors(rows, "fault")


def _memory(memory: dict[str, Any]) -> str:
    before, after = (memory[key] / 2**20 for key in ("rss_before", "rss_after"))
    return (
        f"Memory of `up`: {before:.1f} MiB, then {after:.1f} MiB after {memory['requests']} "
        f"requests and {memory['reconnects']} reconnects ({memory['growth_percent']:+.1f} %), "
        f"{memory['open_files']} open files"
    )


def _startup(startup: dict[str, Any]) -> str:
    return (
        f"From `up` to the first answered request: {startup['seconds']:.2f} s "
        f"(slowest {startup['slowest']:.2f} s)"
    )


def _gateway(parts: dict[str, Any]) -> list[str]:
    told = []
    lines: list[list[str]] = []
    cell = parts.get("verify", {})
    for key, work in (("call", "MCP call"), ("health", "GET /health")):
        if key in cell:
            lines += _rates(f"{work}, 16, Unix socket", cell[key], "proxy")
    cell = parts.get("front", {})
    for row in ("c1", "c16"):
        if row in cell:
            lines += _rates(f"MCP call, {row[1:]}, TLS", cell[row], "straight")
    if lines:
        head = [
            "work, connections, way in",
            "contender",
            "req/s",
            "p50 ms",
            "p99 ms",
            "CPU ms",
            "x",
        ]
        title = "Gateway (x: req/s against the proxy alone, or NGINX straight to the service)"
        told.append(table(title, head, lines))
    cell = parts.get("streams", {})
    if "rss" in cell:
        told.append(
            f"{cell['streams']} idle streams: {cell['sent']:,} requests beside them, "
            f"{cell['errors']} errors{_kinds(cell['kinds'])}, p99 {cell['p99'] * 1000:.1f} ms, "
            f"RSS of the gateway {cell['rss'] / 1e6:.0f} MB"
        )
    cell = parts.get("slowloris", {})
    if "none" in cell:
        rows = [
            [
                name,
                *(str(one[key]) for key in ("connections", "sent", "failed")),
                *("-" if one[key] is None else _number(one[key] * 1000) for key in ("p50", "p99")),
            ]
            for name, one in cell.items()
        ]
        head = ["attack", "connections", "sent", "failed", "p50 ms", "p99 ms"]
        told.append(table("A good client beside slowhttptest", head, rows))
    cell = parts.get("revoke", {})
    if "seconds" in cell:
        times = ", ".join(f"{one:.2f}" for one in cell["seconds"])
        told.append(f"Revocation to the end of the last of {cell['streams']} streams: {times} s")
    return [*told, *_untold(parts)]


def _rates(title: str, cells: dict[str, Any], base: str) -> list[list[str]]:
    return [
        [
            title,
            name,
            _number(median(cell["rate"])),
            *(_number(median(cell[key]) * 1000) for key in ("p50", "p99")),
            _number(median(cell["cpu"]) * 1000) if "cpu" in cell else "-",
            f"{ratio(cell['rate'], cells[base]['rate']):.2f}",
        ]
        for name, cell in cells.items()
    ]


def _failover(parts: dict[str, Any]) -> list[str]:
    told = []
    cell = parts.get("cut", {})
    if "kills" in cell:
        kills = ", ".join(f"{name} {count}" for name, count in cell["kills"].items())
        told.append(
            f"Paths killed ({kills}): {cell['reads']} reads, {cell['failed_reads']} failed"
            f"{_kinds(cell['read_failures'])}, longest {cell['longest']:.2f} s; {cell['calls']} "
            f"calls, not answered with 200:{_kinds(cell['failed_calls']) or ' none'}, "
            f"executed {cell['executed']}, twice {cell['executed_twice']}"
        )
    cell = parts.get("silent", {})
    for name in ("ssh", "https"):
        if name in cell:
            times = ", ".join(f"{one:.2f}" for one in cell[name]["seconds"])
            told.append(f"{name} silently dead, longest wait of a read: {times} s")
    return [*told, *_untold(parts)]


def _bridge(parts: dict[str, Any]) -> list[str]:
    told = []
    lines: dict[str, list[str]] = {}
    columns = (
        ("stdio-start", "initialize", 1e3),
        ("stdio-start", "list", 1e3),
        ("stdio-latency", "p50", 1e3),
        ("stdio-latency", "added", 1e3),
        ("stdio-memory", "rss", 1e-6),
    )
    for part, key, scale in columns:
        for name, cell in parts.get(part, {}).get("contenders", {}).items():
            lines.setdefault(name, ["-"] * len(columns))
            if key in cell:
                value = _number(median(cell[key]) * scale)
                lines[name][columns.index((part, key, scale))] = value
    if lines:
        head = ["bridge", "initialize ms", "tools/list ms", "call p50 ms", "added ms", "RSS MB"]
        title = "Stdio (from the start of the process; added: to the same calls over HTTP; medians)"
        told.append(table(title, head, [[name, *line] for name, line in lines.items()]))
    cells = parts.get("scenarios", {}).get("contenders", {})
    if cells:
        rows = [
            [title, *("pass" if cell[key]["passed"] else "FAIL" for cell in cells.values())]
            for key, title in TITLES.items()
        ]
        rows.append(
            [
                "passed",
                *(str(sum(one["passed"] for one in cell.values())) for cell in cells.values()),
            ]
        )
        notes = [
            f"\n  {name}: {key}: {'' if one['passed'] else 'FAIL: '}{one['words']}"
            for name, cell in cells.items()
            for key, one in cell.items()
        ]
        told.append(table("Scenarios", ["scenario", *cells], rows) + "".join(notes))
    for name, cell in parts.get("soak", {}).get("contenders", {}).items():
        if "error" not in cell:
            sent = " and ".join(f"{count} {kind}s" for kind, count in cell["sent"].items())
            told.append(
                f"Soak, {name}, {cell['cuts']} cuts: {sent}; {cell['unanswered']} unanswered, "
                f"{cell['failed_reads']} reads failed{_kinds(cell['read_failures'])}, "
                f"calls told an error:{_kinds(cell['call_failures']) or ' none'}, "
                f"executed {cell['executed']}, twice {cell['executed_twice']}, "
                f"answered and not executed {cell['not_executed']}, "
                f"longest {cell['longest']:.2f} s"
            )
    for part, cell in parts.items():
        told += [f"{part}: {name}: {why}" for name, why in cell.get("missing", {}).items()]
        told += [
            f"{part}: {name}: {one['error']}"
            for name, one in cell.get("contenders", {}).items()
            if "error" in one
        ]
    return [*told, *_untold(parts)]


def _rotation(cell: dict[str, Any]) -> str:
    if "seconds" not in cell:
        return f"keys rotate all: {cell.get('skipped') or cell['error']}"
    steps = [f"{name} {median(one['steps'][name] for one in cell['rounds']):.2f}"
             for name in cell["rounds"][0]["steps"] if name != "drain"]  # fmt: skip
    return f"keys rotate all: {cell['seconds']:.2f} s without the drain ({', '.join(steps)})"


def _kinds(kinds: dict[str, int]) -> str:
    return f" ({', '.join(f'{count} {what}' for what, count in kinds.items())})" if kinds else ""


def _untold(parts: dict[str, Any]) -> list[str]:
    return [
        f"{name}: {cell.get('skipped') or cell['error']}"
        for name, cell in parts.items()
        if {"skipped", "error"} & cell.keys()
    ]


def _figures(required: Iterable[Figure]) -> str:
    lines = [
        [
            figure.title,
            "-" if figure.measured is None else f"{_plain(figure.measured)}{figure.unit}",
            figure.bound(figure.must),
            figure.bound(figure.reach),
            figure.verdict,
        ]
        for figure in required
    ]
    return table("Required", ["figure", "measured", "must", "reach", "verdict"], lines)


def _errors(rows: list[dict[str, Any]], key: str) -> str:
    told = {
        f"\n  {name}: {row[key]}: {cell['error']}"
        for row in rows
        for name, cell in row["contenders"].items()
        if "error" in cell
    }
    return "".join(sorted(told))


def _plain(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3f}"
