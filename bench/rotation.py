"""How long `catalyst-tunnel keys rotate all` takes, from the start of the process to its end.

NGINX, gateway, registrar and an sshd that asks the registry are all real; the time of the drain,
which is a setting, is taken off.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from bench.front import missing_nginx
from bench.processes import ROOT
from tests.droplet import Sshd, Target
from tests.keystack import make_keystack

Cell = dict[str, Any]


async def measure(directory: Path, *, quick: bool) -> Cell:
    """Rotate all keys a few times; {"skipped": why} where that cannot be done here."""
    if why := missing_nginx():
        return {"skipped": why}
    if os.geteuid() != 0:
        return {"skipped": "skipped: sshd asks the registry only where it runs as root"}
    place = directory / "rotate"
    place.mkdir(parents=True)
    try:
        async with Target() as target:
            with Sshd(place / "sshd") as sshd:
                async with make_keystack(place, sshd, target) as made:
                    rounds = [await _rotate(made.config) for _ in range(2 if quick else 7)]
    except (RuntimeError, AssertionError, OSError) as error:
        return {"error": str(error)}
    return {"rounds": rounds, "seconds": median(one["whole"] for one in rounds)}


async def _rotate(config: Path) -> Cell:
    command = [sys.executable, "-m", "tunnel", "keys", "rotate", "all", "--json"]
    began = monotonic()
    process = await asyncio.create_subprocess_exec(
        *command, "--config", str(config), "--drain", "0",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    said, complained = await process.communicate()
    whole = monotonic() - began
    assert process.returncode == 0, complained.decode()
    steps: dict[str, float] = json.loads(said)["seconds"]
    return {"whole": whole - steps["drain"], "steps": steps}
