"""Token buckets by a clock of the test's own; the scope of what no route knows."""

from __future__ import annotations

import pytest
from mera_server.access import Bucket, charge, needed


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    bucket = Bucket(2.0, 3, clock)
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now += 0.25
    assert bucket.take() == pytest.approx(0.25)
    clock.now += 0.25
    assert bucket.take() == 0
    clock.now += 1e6
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 0.5]


def test_over_any_long_time_no_more_than_the_rate_is_given() -> None:
    clock = Clock()
    bucket, given = Bucket(5.0, 10, clock), 0
    for _ in range(10_000):
        clock.now += 0.01
        given += bucket.take() == 0
    assert given == pytest.approx(5 * 100 + 10, abs=2)


def test_a_batch_is_served_and_paid_for() -> None:
    clock = Clock()
    bucket = Bucket(1.0, 4, clock)
    scope = {"state": {"bucket": bucket}}
    assert bucket.take() == 0
    charge(scope, 20)
    assert bucket.take() == pytest.approx(17)
    charge({"state": {}}, 20)
    charge({}, 20)


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/health/live", None),
        ("HEAD", "/health/ready", None),
        ("GET", "/", None),
        ("POST", "/", "generate"),
        ("POST", "/v1/completions", "generate"),
        ("GET", "/generate", "read"),
        ("GET", "/absent", "read"),
        ("GET", "//health/live", "read"),
        ("GET", "/health/live/", "read"),
        ("POST", "/health/live", "admin"),
        ("POST", "/probes/reload", "admin"),
        ("POST", "/absent", "admin"),
        ("DELETE", "/generate", "admin"),
        ("PUT", "/probes/aa", "admin"),
    ],
)
def test_what_nobody_thought_of_needs_the_most(method: str, path: str, scope: str | None) -> None:
    assert needed(method, path) == scope
