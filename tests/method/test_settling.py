"""How many rows would settle a test: against simulation, and what is said where no number would."""

from __future__ import annotations

import numpy as np
import pytest

from merasteer.errors import InvalidInput
from merasteer.method.bounds import betting_test, mcnemar_p
from merasteer.method.settling import LIMIT, POWER, mcnemar_power, rows_to_settle

RUNS = 4000


def simulated(n: int, gained: float, lost: float, level: float) -> float:
    """Share of samples of n items on which the exact test passes."""
    draws = np.random.default_rng(0).multinomial(n, [gained, lost, 1.0 - gained - lost], size=RUNS)
    return float(np.mean([mcnemar_p(int(up), int(down)) <= level for up, down, _ in draws]))


@pytest.mark.parametrize(
    ("n", "gained", "lost", "level"),
    [(250, 0.15, 0.05, 0.05), (100, 0.1, 0.02, 0.05), (400, 0.3, 0.25, 0.05 / 3), (60, 0.625, 0.375, 0.01), (20, 0.05, 0.0, 0.05)],
)  # fmt: skip
def test_the_power_is_that_of_the_test(n: int, gained: float, lost: float, level: float) -> None:
    assert mcnemar_power(n, gained, lost, level) == pytest.approx(simulated(n, gained, lost, level), abs=0.025)


@pytest.mark.parametrize(
    ("gained", "lost", "n", "level"), [(15, 5, 250, 0.05), (8, 2, 500, 0.05), (60, 45, 250, 0.025), (3, 0, 300, 0.05)]
)
def test_so_many_rows_settle_it_and_a_good_part_fewer_do_not(gained: int, lost: int, n: int, level: float) -> None:
    rows = rows_to_settle(gained, lost, n, level)
    assert rows is not None
    assert POWER - 0.03 < simulated(rows, gained / n, lost / n, level) < POWER + 0.09  # rounded up, and in steps
    assert simulated(round(0.75 * rows), gained / n, lost / n, level) < POWER - 0.03


def test_above_epsilon_it_is_near_what_betting_takes() -> None:
    gained, lost, n, epsilon = 30, 5, 250, 0.02
    rows = rows_to_settle(gained, lost, n, 0.05, epsilon)
    assert rows is not None
    rng = np.random.default_rng(0)
    shares = [gained / n, lost / n, 1 - (gained + lost) / n]
    passed = [
        betting_test(rng.choice([1.0, -1.0, 0.0], size=rows, p=shares), epsilon, level=0.05) <= 0.05 for _ in range(400)
    ]
    assert 0.6 < np.mean(passed) < 0.9  # betting has a little less power than the normal approximation


@pytest.mark.parametrize(("gained", "lost", "epsilon"), [(0, 0, 0.0), (3, 3, 0.0), (2, 9, 0.0), (7, 2, 0.05)])
def test_a_gain_that_was_not_seen_is_settled_by_no_number(gained: int, lost: int, epsilon: float) -> None:
    assert rows_to_settle(gained, lost, 100, 0.05, epsilon) is None
    assert rows_to_settle(0, 0, 0, 0.05) is None


def test_the_number_has_two_digits_and_an_end() -> None:
    assert rows_to_settle(20, 2, 100, 0.05) == pytest.approx(40, abs=9)
    assert rows_to_settle(5001, 5000, 10_001, 0.05) == LIMIT
    rows = rows_to_settle(51, 49, 200, 0.05)
    assert rows is not None
    assert int(str(rows)[2:] or 0) == 0
    with pytest.raises(InvalidInput, match="5 and 3; give counts"):
        rows_to_settle(4, 5, 3, 0.05)
