import re

from prometheus_client.parser import text_string_to_metric_families

from gateway.metrics import Metrics


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus reads, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition(3, 1).decode())
        for sample in family.samples
    }


def test_decisions_by_way_and_code() -> None:
    metrics = Metrics()
    for way, code in (
        ("https", "allow"),
        ("https", "allow"),
        ("ssh", "allow"),
        ("ssh", "token_replayed"),
    ):
        metrics.decided(way, code)
    found = samples(metrics)
    name = "catalyst_gateway_decisions_total"
    assert found[name, (("code", "allow"), ("way", "https"))] == 2
    assert found[name, (("code", "allow"), ("way", "ssh"))] == 1
    assert found[name, (("code", "token_replayed"), ("way", "ssh"))] == 1


def test_durations() -> None:
    metrics = Metrics()
    for seconds in (0.0004, 0.003, 120.0):
        metrics.took(seconds)
    found = samples(metrics)
    name = "catalyst_gateway_request_seconds"
    assert found[f"{name}_count", ()] == 3
    assert found[f"{name}_sum", ()] == 120.0034
    assert found[f"{name}_bucket", (("le", "0.001"),)] == 1
    assert found[f"{name}_bucket", (("le", "0.005"),)] == 2
    assert found[f"{name}_bucket", (("le", "60.0"),)] == 2
    assert found[f"{name}_bucket", (("le", "+Inf"),)] == 3


def test_gauges() -> None:
    metrics = Metrics()
    found = samples(metrics)
    assert found["catalyst_gateway_running", ()] == 3
    assert found["catalyst_gateway_faults", ()] == 1


def test_gateways_of_one_process_do_not_share_counts() -> None:
    one, other = Metrics(), Metrics()
    one.decided("ssh", "allow")
    assert b'code="allow"' not in other.exposition(0, 0)


def test_every_name_is_ours() -> None:
    metrics = Metrics()
    metrics.decided("ssh", "allow")
    names = re.findall(r"(?m)^# TYPE (\S+)", metrics.exposition(3, 1).decode())
    assert len(names) >= 4
    assert all(name.startswith("catalyst_gateway_") for name in names)
