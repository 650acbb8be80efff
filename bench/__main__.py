"""`python -m bench`: measure side by side, print the tables."""

import argparse
import asyncio
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from time import monotonic
from typing import Any

from bench import bridge, failover, gateway, recovery, report, rotation, upkeep, verdict, workloads
from bench.processes import Generator
from tests.droplet import find_sshd

SPEED = [workload.name for workload in workloads.WORKLOADS]
FAULTS = [fault.name for fault in recovery.FAULTS]
GATEWAY = list(gateway.PARTS)
FAILOVER = list(failover.PARTS)
BRIDGE = list(bridge.PARTS)
ALL = [*SPEED, *FAULTS, "memory", "startup", *GATEWAY, *FAILOVER, *BRIDGE, "rotate"]


async def measure(directory: Path, names: Collection[str], *, quick: bool) -> dict[str, Any]:
    """Measure what is named. What is compared for speed has the machine to itself."""
    results: dict[str, Any] = {"machine": machine(), "quick": quick}
    began = monotonic()
    async with Generator(directory) as generator:
        if parts := [name for name in GATEWAY if name in names]:
            results["gateway"] = await gateway.measure(directory, parts, say, quick=quick)
        if parts := [name for name in FAILOVER if name in names]:
            made = failover.measure(generator, directory, parts, say, quick=quick)
            results["failover"] = await made
        if parts := [name for name in BRIDGE if name in names]:
            results["bridge"] = await bridge.measure(directory, parts, say, quick=quick)
        if "rotate" in names:
            say("rotate")
            results["rotation"] = await rotation.measure(directory, quick=quick)
        if "startup" in names:
            say("startup")
            results["startup"] = await upkeep.startup(generator, directory, quick=quick)
        if speed := [name for name in SPEED if name in names]:
            say(", ".join(speed))
            rounds = 1 if quick else 3
            rows = await workloads.measure(generator, directory, speed, rounds, quick=quick)
            results["workloads"] = rows
        faults = [name for name in FAULTS if name in names]
        # Fifty reconnects are mostly waiting, between retries: they run beside the faults.
        with_memory = "memory" in names
        if faults or with_memory:
            say(", ".join([*faults, *(["memory"] if with_memory else [])]))
        async with asyncio.TaskGroup() as group:
            if faults:
                acting = recovery.measure(generator, directory, faults, quick=quick)
                recovered = group.create_task(acting)
            if with_memory:
                used = group.create_task(upkeep.memory(generator, directory, quick=quick))
        if faults:
            results["recovery"] = recovered.result()
        if with_memory:
            results["memory"] = used.result()
    return results | {"seconds": monotonic() - began}


def say(what: str) -> None:
    """Tell whoever waits what is being measured."""
    print(f"measuring: {what}", file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    version = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=False)
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "ssh": version.stderr.strip(),
    }


def main() -> int:
    """Run what is asked for; 2 where there is no sshd, 1 where a figure could not be taken."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--quick", action="store_true", help="one short round, under two minutes")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, metavar="NAME",
                        help=f"any of: {', '.join(ALL)}")  # fmt: skip
    options = parser.parse_args()
    if find_sshd() is None:
        print("bench needs a real sshd: apt install openssh-server", file=sys.stderr)
        return 2
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        results = asyncio.run(measure(directory, options.only, quick=options.quick))
    except KeyboardInterrupt:
        shutil.rmtree(directory)
        return 130
    required = verdict.figures(results)
    results["required"] = [figure.to_json() for figure in required]
    print(report.render(results, required))
    print(f"\n{results['seconds']:.0f} s on {results['machine']['cores']} cores, "
          f"{results['machine']['ssh']}, Python {results['machine']['python']}")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    failed = _failed(results)
    if failed:
        print(f"not measured: {', '.join(failed)}; logs are in {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    return 0


def _failed(results: dict[str, Any]) -> list[str]:
    """Where a contender of ours gave no figure; a peer that is not installed is no failure."""
    rows = [*results.get("workloads", []), *results.get("recovery", [])]
    return (
        [
            f"{name} ({row['title']})"
            for row in rows
            for name, cell in row["contenders"].items()
            if name.startswith("catalyst") and "error" in cell
        ]
        + [
            f"{name} ({cell['error']})"
            for part in ("gateway", "failover", "bridge")
            for name, cell in results.get(part, {}).items()
            if "error" in cell
        ]
        + [
            f"{verdict.BRIDGE} ({name})"
            for name, cell in results.get("bridge", {}).items()
            if "error" in cell.get("contenders", {}).get(verdict.BRIDGE, {})
        ]
        + [f"rotate ({one['error']})" for one in [results.get("rotation", {})] if "error" in one]
    )


if __name__ == "__main__":
    sys.exit(main())
