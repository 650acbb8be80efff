"""What Prometheus is told: https://prometheus.io/docs/instrumenting/exposition_formats/.

Counting is plain arithmetic, since it happens for every request; the client library's own metrics,
with a lock each, are made when somebody asks.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)


class Metrics(Collector):
    """Counts of one gateway process."""

    def __init__(self) -> None:
        self._decisions: Counter[tuple[str, str]] = Counter()
        self._took = [0] * (len(_BUCKETS) + 1)
        self._seconds = 0.0
        self._running = self._faults = 0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def decided(self, way: str, code: str) -> None:
        """Count a decision."""
        self._decisions[way, code] += 1

    def took(self, seconds: float) -> None:
        """Count how long a request took."""
        self._took[bisect_left(_BUCKETS, seconds)] += 1
        self._seconds += seconds

    def exposition(self, running: int, faults: int) -> bytes:
        """Return everything in the text format, with how much runs and is wrong now."""
        self._running, self._faults = running, faults
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Return everything as the client library understands it."""
        decisions = CounterMetricFamily(
            "catalyst_gateway_decisions",
            "Requests decided on, by way in and code (allow, or why not).",
            labels=["way", "code"],
        )
        for labels, count in self._decisions.items():
            decisions.add_metric(labels, count)
        yield decisions
        limits = [*map(str, _BUCKETS), "+Inf"]
        yield HistogramMetricFamily(
            "catalyst_gateway_request_seconds",
            "From a request's head to the end of its answer; standing streams left out.",
            buckets=list(zip(limits, accumulate(self._took), strict=True)),
            sum_value=self._seconds,
        )
        yield GaugeMetricFamily("catalyst_gateway_running", "Requests that run.", self._running)
        yield GaugeMetricFamily(
            "catalyst_gateway_faults", "What /ready complains of.", self._faults
        )
