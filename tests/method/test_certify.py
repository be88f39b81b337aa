"""Ranking, testing and choosing. The probabilities behind it are simulated in tests/guarantees."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from merasteer.errors import InvalidInput
from merasteer.method import bounds, certify
from merasteer.method.certify import TESTS

GOOD = (60, 5)  # gained, lost
BAD = (5, 60)


def outcome(gained: int, lost: int, n: int = 250) -> tuple[np.ndarray, np.ndarray]:
    """Items in this order: gained, lost, right both times."""
    unsteered, steered = np.ones(n, dtype=bool), np.ones(n, dtype=bool)
    unsteered[:gained], steered[gained : gained + lost] = False, False
    return unsteered, steered


class Recorded:
    """Outcomes by key, remembering which were asked for."""

    def __init__(self, **counts: tuple[int, int]) -> None:
        self.counts, self.asked = counts, []

    def __call__(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append(key)
        return outcome(*self.counts[key])


def test_the_examples_run() -> None:
    assert doctest.testmod(certify).failed == 0


def test_rank_is_best_first_and_stable() -> None:
    assert certify.rank({"a": 0.1, "b": 0.3, "c": 0.1, "d": 0.3, "e": -0.2}) == ["b", "d", "a", "c", "e"]
    assert certify.rank({}) == []
    with pytest.raises(InvalidInput, match="gains: that of 'a' is nan"):
        certify.rank({"a": math.nan})


def test_only_the_best_is_tested_and_asked_for() -> None:
    outcomes = Recorded(a=BAD, b=GOOD, c=GOOD)
    certificate = certify.certify(["a", "b", "c"], outcomes, delta=0.05, epsilon=0.0)
    assert outcomes.asked == ["a"]
    assert (certificate.certified, certificate.chosen, certificate.candidates) == (False, None, 3)
    assert certificate.result == certificate.tested[0]


def test_the_first_that_passes_is_chosen_whatever_its_p_value() -> None:
    outcomes = Recorded(a=BAD, b=(40, 10), c=GOOD, d=GOOD)
    certificate = certify.certify(["a", "b", "c", "d"], outcomes, delta=0.05, epsilon=0.0, chances=3)
    assert outcomes.asked == ["a", "b", "c"]
    assert certificate.chosen == "b"
    assert certificate.result is certificate.tested[1]
    assert certificate.tested[1].p_value > certificate.tested[2].p_value


def test_each_chance_is_tested_at_its_share_of_delta() -> None:
    counts = (25, 13)  # p = .036
    assert certify.certify(["a"], Recorded(a=counts), delta=0.05, epsilon=0.0).certified
    assert not certify.certify(["a"], Recorded(a=counts), delta=0.05, epsilon=0.0, chances=2).certified


def test_the_result_holds_what_the_bounds_say() -> None:
    certificate = certify.certify(["a"], Recorded(a=GOOD), delta=0.05, epsilon=0.0, chances=2)
    (result,) = certificate.tested
    d = np.array([1.0] * 60 + [-1.0] * 5 + [0.0] * 185)[np.random.default_rng(certify.ORDER_SEED).permutation(250)]
    assert (result.candidate, result.n, result.gained, result.lost, result.gain) == ("a", 250, 60, 5, 0.22)
    assert result.p_value == bounds.mcnemar_p(60, 5)
    assert result.lower_bound == bounds.betting_lower_bound(d, 0.025)
    assert (certificate.test, certificate.delta, certificate.epsilon, certificate.chances) == ("mcnemar", 0.05, 0.0, 2)


def test_a_file_sorted_by_outcome_is_no_proof() -> None:
    """Unshuffled, betting would see 125 gains in a row and stop there."""
    d = [1.0] * 125 + [-1.0] * 125
    assert bounds.betting_test(d, 0.0) < 1e-6
    assert not certify.certify(["a"], Recorded(a=(125, 125)), delta=0.05, epsilon=0.0, test="betting").certified


def test_above_epsilon_zero_betting_is_the_test() -> None:
    certificate = certify.certify(["a"], Recorded(a=GOOD), delta=0.05, epsilon=0.02)
    assert (certificate.test, certificate.certified) == ("betting", True)
    assert certificate.tested[0].lower_bound > 0.02
    with pytest.raises(InvalidInput, match=r"mcnemar at epsilon 0\.02"):
        certify.certify(["a"], Recorded(a=GOOD), delta=0.05, epsilon=0.02, test="mcnemar")


@pytest.mark.parametrize("epsilon", [0.0, 0.02])
@pytest.mark.parametrize("chances", [1, 3])
def test_margins_pass_exactly_where_the_gain_exceeds_them(epsilon: float, chances: int) -> None:
    margins = {
        "hoeffding": bounds.scaled_hoeffding_margin(250, 0.05, chances),
        "paper": bounds.paper_margin(250, 0.05, chances),
    }
    for test in ("hoeffding", "paper"):
        for gained in range(80):
            certificate = certify.certify(
                ["a"], Recorded(a=(gained, 0)), delta=0.05, epsilon=epsilon, chances=chances, test=test
            )
            assert certificate.certified == (gained / 250 > epsilon + margins[test])


@pytest.mark.parametrize("test", TESTS)
def test_nothing_to_test_abstains(test) -> None:
    nothing = certify.certify([], Recorded(), delta=0.05, epsilon=0.0, test=test)
    assert (nothing.certified, nothing.tested, nothing.result) == (False, (), None)
    empty = certify.certify(["a"], lambda key: ([], []), delta=0.999, epsilon=0.0, test=test)
    assert (empty.certified, empty.tested[0].p_value, empty.tested[0].lower_bound) == (False, 1.0, -1.0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"delta": 0.0}, "delta: 0.0 is outside"),
        ({"delta": 1.0}, "delta: 1.0 is outside"),
        ({"delta": math.nan}, "delta: nan is outside"),
        ({"epsilon": -0.1}, "epsilon: -0.1 is outside"),
        ({"epsilon": 1.0}, "epsilon: 1.0 is outside"),
        ({"chances": 0}, "chances: 0 is less than 1"),
        ({"test": "wald"}, "test: 'wald' is not one of"),
    ],
)
def test_wrong_values_are_refused_by_name(changed: dict, message: str) -> None:
    outcomes = Recorded(a=GOOD)
    with pytest.raises(InvalidInput, match=message):
        certify.certify(["a"], outcomes, **({"delta": 0.05, "epsilon": 0.0} | changed))
    assert outcomes.asked == []


def test_outcomes_that_do_not_pair_are_refused() -> None:
    with pytest.raises(InvalidInput, match="outcomes of 'a'"):
        certify.certify(["a"], lambda key: ([True], [True, False]), delta=0.05, epsilon=0.0)
