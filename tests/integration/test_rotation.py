"""Keys changed under load, through crashes, and against somebody's will."""

import time

from keys.rotation import Step
from tests.keystack import KeyStack, keystack

__all__ = ["keystack"]


async def test_all_families_rotate(keystack: KeyStack) -> None:
    said: list[str] = []
    rotator = keystack.rotator(said)
    journal = await rotator.plan(("ssh", "token", "cert"), drain=0.0)
    began = time.monotonic()
    outcome = await rotator.carry_on(journal)
    print(outcome, time.monotonic() - began, said)
    assert outcome.step is Step.DONE, said
    assert outcome.warnings == []
