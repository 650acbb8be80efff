"""Keys changed under load, through crashes, and against somebody's will."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from keys.pointer import FAMILIES, Family, read_pointer
from keys.rotation import Step
from tests.integration.test_failover import Traffic
from tests.keystack import KeyStack, keystack

__all__ = ["keystack"]

ROUNDS = 20


@contextlib.asynccontextmanager
async def traffic(keystack: KeyStack) -> AsyncIterator[list[Traffic]]:
    """50 requests a second on each path; afterwards none was refused, none failed, none ran twice.

    The second tunnel is one that a rotation does not know of.
    """
    over = asyncio.Event()
    runs = [
        await keystack.tunnel(paths=("ssh",)),
        await keystack.tunnel(keystack.stack.directory / "other", paths=("https",)),
    ]
    loads = [Traffic(run, every=0.02) for run in runs]
    going = [asyncio.ensure_future(load.go(over)) for load in loads]
    yield loads
    over.set()
    await asyncio.gather(*going)
    for load in loads:
        assert load.failed_reads == []
        assert set(load.calls) == {200}
    assert max(keystack.stack.target.executed.values()) == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("families", [("ssh",), ("token",), ("cert",), FAMILIES])
async def test_rotations_under_load(keystack: KeyStack, families: tuple[Family, ...]) -> None:
    async with traffic(keystack) as loads:
        for number in range(ROUNDS):
            rotator = keystack.rotator()
            outcome = await rotator.carry_on(await rotator.plan(families, drain=1.0))
            assert (outcome.step, outcome.warnings) == (Step.DONE, []), (number, outcome)
    assert min(load.reads for load in loads) > 50 * ROUNDS
    names = read_pointer(keystack.keys)
    last = {"ssh": names.ssh, "token": names.token, "cert": names.tls}
    assert all(str(ROUNDS + 1) in last[family] for family in families)
    async with keystack.rotator().registrar(keystack.settings()) as (_, accepted):
        counts = (len(accepted.kids), len(accepted.certificates), len(accepted.fingerprints))
        assert counts == (1, 1, 1)
