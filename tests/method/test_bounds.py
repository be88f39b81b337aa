"""The bounds against closed forms and slow plain implementations; their guarantees are in tests/guarantees."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from merasteer.errors import InvalidInput
from merasteer.method import bounds


def paired(seed: int, n: int, gained: float, lost: float) -> np.ndarray:
    return np.random.default_rng(seed).choice([1.0, -1.0, 0.0], size=n, p=[gained, lost, 1.0 - gained - lost])


def slow_capital(d: np.ndarray, mean: float, level: float) -> float:
    """The largest capital, item by item, as written in the docstring of the module."""
    x, capital, largest = (d + 1.0) / 2.0, 1.0, 1.0
    total, squares = 0.5, 0.25  # the pseudo-item
    for i, value in enumerate(x):
        bet = math.sqrt(2.0 * math.log(1.0 / level) / (len(x) * squares / (i + 1)))
        capital *= 1.0 + min(bet, bounds.TRUNCATION / mean) * (value - mean)
        largest = max(largest, capital)
        total += value
        squares += (value - total / (i + 2)) ** 2
    return largest


def test_the_examples_run() -> None:
    assert doctest.testmod(bounds).failed == 0


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 5), (5, 0), (9, 1), (30, 25), (200, 160)])
def test_mcnemar_is_the_binomial_tail(gained: int, lost: int) -> None:
    n = gained + lost
    tail = sum(math.comb(n, k) for k in range(gained, n + 1))
    assert bounds.mcnemar_p(gained, lost) == pytest.approx(tail / 2**n, rel=1e-9)


def test_mcnemar_of_many_pairs_is_that_of_each() -> None:
    many = bounds.mcnemar_p_values(np.array([3, 0, 12]), np.array([1, 0, 2]))
    assert many.tolist() == [bounds.mcnemar_p(3, 1), 1.0, bounds.mcnemar_p(12, 2)]


@pytest.mark.parametrize("epsilon", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("level", [0.05, 0.005])
def test_betting_equals_the_slow_plain_game(epsilon: float, level: float) -> None:
    for seed in range(5):
        d = paired(seed, 80, 0.3, 0.1)
        expected = 1.0 / slow_capital(d, (1.0 + epsilon) / 2.0, level)
        assert bounds.betting_test(d, epsilon, level=level) == pytest.approx(expected, rel=1e-9)


def test_the_lower_bound_is_where_the_slow_game_stops_rejecting() -> None:
    for seed in range(5):
        d = paired(seed, 80, 0.3, 0.1)
        bound = bounds.betting_lower_bound(d, 0.05)
        assert slow_capital(d, (1.0 + bound - 1e-6) / 2.0, 0.05) >= 20.0
        assert slow_capital(d, (1.0 + bound + 1e-6) / 2.0, 0.05) < 20.0


def test_bound_and_test_are_dual() -> None:
    for seed in range(200):
        d = paired(seed, 100, 0.2, 0.1)
        assert (bounds.betting_lower_bound(d, 0.05) > 0.02) == (bounds.betting_test(d, 0.02, level=0.05) <= 0.05)


def test_many_runs_are_each_run() -> None:
    d = np.stack([paired(seed, 60, 0.3, 0.1) for seed in range(4)])
    assert bounds.betting_lower_bounds(d, 0.1).tolist() == [bounds.betting_lower_bound(row, 0.1) for row in d]
    assert bounds.betting_p_values(d, 0.0).tolist() == [bounds.betting_test(row, 0.0) for row in d]


def test_no_items_and_no_change_prove_nothing() -> None:
    assert bounds.betting_test([], 0.0) == 1.0
    assert bounds.betting_lower_bound([], 0.05) == -1.0
    assert bounds.betting_test([0.0] * 250, 0.0) == 1.0
    assert bounds.betting_lower_bound([0.0] * 250, 0.05) <= 0.0
    assert bounds.betting_lower_bound([-1.0] * 250, 0.05) == -1.0


def test_long_runs_neither_overflow_nor_warn() -> None:
    d = np.ones(20_000)
    assert bounds.betting_test(d, 0.0) == 0.0
    assert 0.99 < bounds.betting_lower_bound(d, 0.05) <= 1.0


def test_p_values_shrink_and_bounds_grow_with_evidence() -> None:
    p_values = [bounds.betting_test(paired(0, n, 0.2, 0.05), 0.0) for n in (50, 250, 1000)]
    lower = [bounds.betting_lower_bound(paired(0, 1000, 0.2, 0.05), delta) for delta in (0.001, 0.05, 0.2)]
    assert p_values == sorted(p_values, reverse=True)
    assert lower == sorted(lower)


def test_margins() -> None:
    assert bounds.scaled_hoeffding_margin(250, 0.05) == pytest.approx(2 * math.sqrt(math.log(20) / 500))
    assert bounds.scaled_hoeffding_margin(250, 0.05, 10) == pytest.approx(2 * math.sqrt(math.log(200) / 500))
    assert bounds.paper_margin(250, 0.05, 10) == pytest.approx(math.sqrt(math.log(400) / 500))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: bounds.mcnemar_p(-1, 2), "gained"),
        (lambda: bounds.betting_test([0.5, 2.0], 0.0), "d"),
        (lambda: bounds.betting_test([math.nan], 0.0), "d"),
        (lambda: bounds.betting_test([[0.0]], 0.0), "d"),
        (lambda: bounds.betting_p_values([0.0], 0.0), "d"),
        (lambda: bounds.betting_test([0.0], 1.0), "epsilon"),
        (lambda: bounds.betting_test([0.0], 0.0, level=0.0), "level"),
        (lambda: bounds.betting_lower_bound([0.0], 1.0), "delta"),
        (lambda: bounds.scaled_hoeffding_margin(0, 0.05), "n, tries"),
        (lambda: bounds.paper_margin(250, 0.0, 1), "delta"),
    ],
)
def test_wrong_values_are_refused_by_name(call, field: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}"):
        call()
