"""Names, labels and counts, exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mera_server.catalog import Catalog, Probe
from mera_server.metrics import Metrics
from mera_server.report import mera_object
from mera_server.resolve import Plan

from merasteer.store import Entry
from merasteer.types import Answer, Generation, PredictedError, SteeringCounts

MakePlan = Callable[..., Plan]
NAMES = {
    "mera_requests_total", "mera_decisions_total", "mera_predicted_error", "mera_steered_tokens_total", "mera_tokens_total",
    "mera_request_duration_seconds", "mera_time_to_first_token_seconds", "mera_inter_token_seconds", "mera_queue_seconds",
    "mera_requests_running", "mera_requests_waiting", "mera_cache_used_ratio", "mera_probe_info", "mera_model_info",
    "mera_probes_rejected", "mera_calibration_predicted_error", "mera_certified_gain_lower_bound", "mera_non_finite_total",
    "mera_prompt_tokens", "mera_generated_tokens", "mera_finished_total", "mera_prefix_cache_hit_tokens_total",
}  # fmt: skip

OF_ARTIFACTS = {
    "mera_probe_info", "mera_probes_rejected", "mera_calibration_predicted_error", "mera_certified_gain_lower_bound",
}  # fmt: skip


def generation(**changes: object) -> Generation:
    values = {
        "tokens": (1, 2, 3), "text": "", "finish_reason": "length", "prompt_tokens": 7, "answer": Answer(0, (0.5, 0.5)),
        "predicted_error": PredictedError(0.72, 0.3, 1, "answer"), "steering": SteeringCounts(3, 2, 9, 5),
        "queued_at": 10.0, "started_at": 10.02, "token_times": (10.1, 10.2, 10.4),
    }  # fmt: skip
    return Generation(**{**values, **changes})  # type: ignore[arg-type]


def samples(metrics: Metrics) -> dict[str, float]:
    lines = (line.rsplit(" ", 1) for line in metrics.text().decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in lines}


def test_names() -> None:
    described = {line.split()[2] for line in Metrics().text().decode().splitlines() if line.startswith("# TYPE")}
    assert {name for name in described if name.startswith("mera_")} == NAMES
    assert {name.partition("_")[0] for name in described} == {"mera", "process"}
    assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_start_time_seconds"} < described


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "answered"), (422, "refused"), (429, "refused"), (499, "cancelled"), (503, "failed")]
)
def test_durations_lie_apart_by_outcome(status: int, outcome: str) -> None:
    metrics = Metrics()
    metrics.request("/generate", status, 0.25)
    counts = {
        name: value
        for name, value in samples(metrics).items()
        if name.startswith("mera_request_duration_seconds_count")
    }
    assert counts == {f'mera_request_duration_seconds_count{{outcome="{outcome}"}}': 1}


def test_shared_tokens_grow_with_the_engines_count() -> None:
    metrics, shared = Metrics(), [0]
    metrics.watch(lambda: 0, lambda: 0, lambda: 0, lambda: shared[0])
    for shared[0] in (0, 32, 32, 96):
        assert samples(metrics)["mera_prefix_cache_hit_tokens_total"] == shared[0]


def test_one_generation(make_plan: MakePlan) -> None:
    metrics = Metrics()
    made = generation()
    metrics.generation(made, mera_object(make_plan({"steering": {"task": "good"}}), made, str))  # type: ignore[arg-type]
    found = samples(metrics)
    assert found['mera_decisions_total{decision="steered",reason="",task="good"}'] == 1
    assert found['mera_steered_tokens_total{task="good"}'] == 2
    assert found['mera_tokens_total{kind="prompt"}'] == 7
    assert found['mera_tokens_total{kind="generated"}'] == 3
    assert found['mera_predicted_error_bucket{le="0.7",task="good",when="before"}'] == 0
    assert found['mera_predicted_error_bucket{le="0.8",task="good",when="before"}'] == 1
    assert found['mera_predicted_error_sum{task="good",when="after"}'] == 0.3
    assert found["mera_time_to_first_token_seconds_count"] == 1
    assert abs(found["mera_time_to_first_token_seconds_sum"] - 0.1) < 1e-9
    assert abs(found["mera_queue_seconds_sum"] - 0.02) < 1e-9
    assert found["mera_inter_token_seconds_count"] == 2
    assert abs(found["mera_inter_token_seconds_sum"] - 0.3) < 1e-9
    assert (found["mera_prompt_tokens_sum"], found["mera_generated_tokens_sum"]) == (7, 3)
    assert (found['mera_prompt_tokens_bucket{le="8.0"}'], found['mera_generated_tokens_bucket{le="2.0"}']) == (1, 0)
    assert found['mera_finished_total{reason="length"}'] == 1


def test_null_is_the_empty_label(make_plan: MakePlan) -> None:
    metrics = Metrics()
    made = generation(predicted_error=None, answer=None, steering=SteeringCounts())
    metrics.generation(made, mera_object(make_plan({}), made, str))  # type: ignore[arg-type]
    assert samples(metrics)['mera_decisions_total{decision="off",reason="",task=""}'] == 1


def test_registries_are_apart() -> None:
    one, other = Metrics(), Metrics()
    one.request("/generate", 200, 0.1)
    assert "mera_requests_total{" in one.text().decode()
    assert "mera_requests_total{" not in other.text().decode()


def test_info_and_gauges() -> None:
    metrics = Metrics()
    metrics.watch(lambda: 3, lambda: 4, lambda: 0.5)
    found = samples(metrics)
    assert (found["mera_requests_running"], found["mera_requests_waiting"], found["mera_cache_used_ratio"]) == (
        3,
        4,
        0.5,
    )


def test_what_is_served_and_nothing_that_was(catalog: Catalog, good: Probe, weak: Probe) -> None:
    metrics = Metrics()
    assert samples(metrics)["mera_probes_rejected"] == 0
    rejected = Entry(Path("x"), "good", None, "rejected", "good/x: cut", None)
    read, below = replace(good, calibration_error=0.25), replace(weak, caution="below_majority")
    probes, latest = {probe.digest: probe for probe in (read, below)}, {"good": read, "weak": below}
    metrics.catalog(replace(catalog, probes=probes, latest=latest, entries=[*catalog.entries, rejected, rejected]))
    a, b = "aa" * 32, "bb" * 32
    found = {name: value for name, value in samples(metrics).items() if name.split("{")[0] in OF_ARTIFACTS}
    assert found == {
        f'mera_probe_info{{alpha="0.3",caution="",certified="true",probe="{a}",task="good"}}': 1,
        f'mera_probe_info{{alpha="",caution="below_majority",certified="false",probe="{b}",task="weak"}}': 1,
        "mera_probes_rejected": 2,
        'mera_calibration_predicted_error{task="good"}': 0.25,
        'mera_certified_gain_lower_bound{task="good"}': 0.05,
    }
    other = replace(good, mismatch="dtype float16 and attention sdpa")  # certified, and not here
    metrics.catalog(replace(catalog, probes={a: other}, latest={"good": other}, entries=[]))
    found = {name: value for name, value in samples(metrics).items() if name.split("{")[0] in OF_ARTIFACTS}
    assert found == {
        f'mera_probe_info{{alpha="0.3",caution="",certified="false",probe="{a}",task="good"}}': 1,
        "mera_probes_rejected": 0,
    }
