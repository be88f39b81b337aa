"""Collapse and harm: hand-made cases, and the bound against known rates."""

from __future__ import annotations

import numpy as np
import pytest

from merasteer.method.harm import broken, collapse, rate_upper_bound

LABELS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("truth", "before", "after", "found"),
    [
        ([0] * 60 + [1] * 40, [0] * 100, [0] * 98 + [1] * 2, "a gets 98% of the answers"),
        ([0] * 60 + [1] * 40, [0] * 100, [0] * 97 + [1] * 3, None),
        ([0] * 60 + [1] * 35 + [2] * 5, [0] * 99 + [2], [0] * 60 + [1] * 40, "c is never answered"),
        ([0] * 60 + [1] * 35 + [2] * 5, [0] * 100, [0] * 60 + [1] * 40, None),  # its recall was 0 before
        ([0] * 60 + [1] * 36 + [2] * 4, [0] * 99 + [2], [0] * 60 + [1] * 40, None),  # too few rows to say
        ([0] * 60 + [1] * 40, [-1] * 100, [-1] * 50 + [1] * 50, None),
        ([], [], [], None),
    ],
)
def test_collapse(truth, before, after, found):
    assert collapse(truth, before, after, LABELS) == found


def test_broken_counts_what_was_right_and_is_lost():
    found = broken([True] * 8 + [False] * 2, [True] * 6 + [False] * 2 + [True] * 2, 0.05)
    assert (found.n, found.lost, found.share) == (8, 2, 0.25)
    assert found.upper == pytest.approx(0.6, abs=0.001)  # 1 - (1 - u)^8 ... : P(X <= 2 | u) = .05
    nothing = broken([False] * 5, [True] * 5, 0.05)
    assert (nothing.n, nothing.lost, nothing.share, nothing.upper) == (0, 0, 0.0, 1.0)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 20, 200])
def test_the_bound_is_above_the_rate_with_its_probability(rate, n):
    level, runs = 0.05, 20_000
    events = np.random.default_rng(n).binomial(n, rate, runs)
    bounds = np.array([rate_upper_bound(k, n, level) for k in range(n + 1)])
    limit = level + 3 * (level * (1 - level) / runs) ** 0.5
    assert float((bounds[events] < rate).mean()) <= limit
    if n == 200 and rate == 0.05:  # the same check fails for the share itself
        assert float((events / n < rate).mean()) > limit
