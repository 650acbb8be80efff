from collections.abc import Callable

import pytest

from tunnel.backoff import CAP, SLOW, SUSTAINED, Backoff


def highest(low: float, high: float) -> float:
    assert low <= high
    return high


def lowest(low: float, high: float) -> float:
    return low


def test_the_first_retry_is_immediate_and_the_rest_grow_to_the_cap() -> None:
    backoff = Backoff(highest)
    assert [backoff.next() for _ in range(8)] == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, CAP, CAP]


def test_the_jitter_is_full() -> None:
    asked: list[tuple[float, float]] = []

    def note(low: float, high: float) -> float:
        asked.append((low, high))
        return low

    backoff = Backoff(note)
    for _ in range(4):
        backoff.next()
    assert asked == [(0.0, 0.0), (0.0, 0.5), (0.0, 1.0), (0.0, 2.0)]


def test_what_the_dice_say_is_what_is_waited() -> None:
    backoff = Backoff(lambda low, high: (low + high) / 2)
    assert [backoff.next() for _ in range(4)] == [0.0, 0.25, 0.5, 1.0]


def test_a_flapping_connection_is_not_forgiven() -> None:
    backoff = Backoff(highest)
    for _ in range(5):
        backoff.lived(SUSTAINED - 0.1)
        last = backoff.next()
    assert last == 4.0
    backoff.lived(SUSTAINED)
    assert backoff.next() == 0.0


def test_luck_with_the_dice_does_not_forgive_either() -> None:
    backoff = Backoff(lowest)
    assert [backoff.next() for _ in range(3)] == [0.0, 0.0, 0.0]
    backoff.uniform = highest
    assert backoff.next() == 2.0


@pytest.mark.parametrize("dice", [lowest, highest])
def test_permanent_refusals_are_retried_slowly(dice: Callable[[float, float], float]) -> None:
    backoff = Backoff(dice)
    for _ in range(20):
        assert SLOW <= backoff.slow() <= 2 * SLOW  # one try a minute, however often it is refused


def test_a_refusal_in_between_leaves_the_count_alone() -> None:
    backoff = Backoff(highest)
    backoff.next()
    backoff.next()
    backoff.slow()
    assert backoff.next() == 1.0


def test_two_thousand_failures_do_not_overflow() -> None:
    backoff = Backoff(highest)
    assert all(backoff.next() <= CAP for _ in range(2000))
    assert backoff.next() == CAP
