"""Answers in two segments: sshd's Nagle waits for our ACK, and a late one costs 40 ms a request."""

import functools
import statistics
import time

import pytest

from tests.conftest import Running, Start
from tests.droplet import Sshd
from tests.faults import Relay
from tunnel import ssh, wire

LATE = 0.020  # seconds; far from a prompt answer (1 ms) and from a delayed ACK (40 ms)


async def median(run: Running) -> float:
    times = []
    for _ in range(60):  # Linux acknowledges the first dozen or so at once, whatever comes
        began = time.perf_counter()
        async with run.client.get(f"{run.url}/two") as answer:
            assert answer.status == 200
            await answer.read()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@pytest.fixture
def direct(sshd: object, relay: Relay) -> dict[str, object]:
    """Around the relay, which acknowledges for itself."""
    return {"port": relay.target[1]}


@pytest.mark.skipif(wire.QUICKACK is None, reason="this system has no TCP_QUICKACK")
async def test_quick_acks(start: Start, direct: dict[str, object]) -> None:
    assert await median(await start(ssh=direct)) < LATE


async def test_acks_carried_by_ignore_packets(
    start: Start, sshd: Sshd, direct: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Windows and macOS do; never inside a key exchange, where sshd takes it as an attack."""
    monkeypatch.setattr(ssh, "Wire", functools.partial(wire.Wire, quickack=None))
    run = await start(ssh=direct)
    assert await median(run) < LATE
    assert run.tunnel.snapshot().paths[0].connects == 1
    assert "strict KEX" not in sshd.log()
    assert sshd.log().count("Accepted publickey") == 1  # at the first try


@pytest.mark.skipif(wire.QUICKACK is None, reason="only known of Linux")
async def test_without_either_it_is_late(
    start: Start, direct: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the two tests above can fail."""

    class Plain(wire.Wire):
        nudge = property(lambda self: None, lambda self, value: None)  # type: ignore[assignment]

    monkeypatch.setattr(ssh, "Wire", functools.partial(Plain, quickack=None))
    assert await median(await start(ssh=direct)) > LATE
