"""The official conformance suite says the same of a server behind the tunnel as of it alone."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from tests.external.conftest import Behind, npm, run, running

pytestmark = pytest.mark.timeout(600)

Results = dict[str, list[tuple[str, str]]]

STRICTER = "dns-rebinding-protection"
"""The tunnel refuses a foreign Host and Origin, whether the service behind it does or not."""


async def suite(url: str, revision: str, directory: Path) -> Results:
    """Check and outcome, by scenario."""
    command = [*npm("@modelcontextprotocol/conformance"), "server", "--url", url]
    command += ["--requirements", revision, "--output-dir", str(directory)]
    _, stdout, stderr = await run(command, within=240)
    assert "=== SUMMARY ===" in stdout, stdout + stderr
    results: Results = {}
    for file in directory.glob("*/checks.json"):
        found = re.fullmatch(r"server-(.+?)-\d{4}-\d\d-\d\dT.*", file.parent.name)
        assert found is not None, file.parent.name
        checks = json.loads(file.read_text())
        results[found[1]] = sorted((check["id"], check["status"]) for check in checks)
    return results


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_the_same_behind_the_tunnel(behind: Behind, tmp_path: Path, revision: str) -> None:
    command = [sys.executable, "-m", "tests.external.everything"]
    ready = r"ready on 127\.0\.0\.1:(\d+)\n"
    async with running(command, tmp_path / "server.log", dict(os.environ), ready) as port:
        laptop = await behind(port)
        alone = await suite(laptop.direct, revision, tmp_path / "alone")
        through = await suite(laptop.url, revision, tmp_path / "through")
    outcomes = [outcome for checks in alone.values() for _, outcome in checks]
    assert outcomes.count("SUCCESS") > 50  # or the server is not what is being looked at
    protected = through.pop(STRICTER)
    assert {outcome for _, outcome in protected} == {"SUCCESS"}
    assert [check for check, _ in protected] == [check for check, _ in alone.pop(STRICTER)]
    assert through == alone
