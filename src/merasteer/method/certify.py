"""When to steer at all: choose on training data, test on calibration data, or abstain (paper, section 4).

docs/method.md section 6 has the reasons and the simulations. Nothing here knows a model: candidates are keys, and their
outcomes on the calibration split are asked for only when a candidate is tested.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from merasteer.errors import InvalidInput
from merasteer.method.bounds import betting_lower_bound, betting_test, mcnemar_p

__all__ = ["TESTS", "VALID_TESTS", "Certificate", "Outcomes", "TestName", "TestResult", "certify", "rank"]

TestName = Literal["mcnemar", "betting", "hoeffding", "paper"]
TESTS: tuple[TestName, ...] = get_args(TestName)
VALID_TESTS: tuple[TestName, ...] = (
    "mcnemar",
    "betting",
    "hoeffding",
)  # those whose level holds: what may certify an artifact
Outcomes = Callable[[str], tuple[ArrayLike, ArrayLike]]

ORDER_SEED = 0  # betting reads the items in this fixed shuffle: a calibration file sorted by label must not matter


@dataclass(frozen=True)
class TestResult:
    """One candidate on the calibration split. gain = (gained − lost)/n; lower_bound: betting, at δ/chances."""

    __test__: ClassVar[bool] = False  # not a test class to pytest

    candidate: str
    n: int
    gained: int
    lost: int
    p_value: float
    gain: float
    lower_bound: float


@dataclass(frozen=True)
class Certificate:
    """The decision and all it stands on. `certified` follows the test alone; lower_bound is separate, and weaker.

    chosen: the certified candidate, None when abstaining. candidates: how many were ranked. tested: in rank order.
    """

    certified: bool
    chosen: str | None
    test: TestName
    delta: float
    epsilon: float
    chances: int
    candidates: int
    tested: tuple[TestResult, ...]

    @property
    def result(self) -> TestResult | None:
        """The test of the chosen candidate; when abstaining that of the best ranked; None when nothing was tested."""
        chosen = (result for result in self.tested if result.candidate == self.chosen)
        return next(chosen, self.tested[0] if self.tested else None)


def rank(gains: Mapping[str, float]) -> list[str]:
    """Candidates by their gain on the ordering subset, best first; equal gains stay in the order given.

    >>> rank({"a": 0.0, "b": 0.1, "c": 0.1})
    ['b', 'c', 'a']
    """
    for key, gain in gains.items():
        if not math.isfinite(gain):
            raise InvalidInput(f"gains: that of {key!r} is {gain!r}; give a finite difference of accuracies")
    return sorted(gains, key=lambda key: gains[key], reverse=True)


def certify(
    ranked: Sequence[str],
    outcomes: Outcomes,
    *,
    delta: float,
    epsilon: float,
    chances: int = 1,
    test: TestName | None = None,
) -> Certificate:
    """Test the best `chances` candidates, each at δ/chances, and choose the first that passes.

    ranked: best first, by data that the outcomes do not share (`rank`): this is what makes δ/chances enough, however
    many were ranked. outcomes(key): correctness unsteered and steered, (n,) booleans, item by item; called for the
    tested candidates only. test: None is exact McNemar at ε = 0 and betting above. "hoeffding" is valid too, and weak;
    "paper" is not valid and exists to show it. P(the chosen candidate has E[D] ≤ ε) ≤ δ. No items: abstain.

    >>> certify(["a"], lambda key: ([False] * 20, [True] * 9 + [False] * 11), delta=0.05, epsilon=0.0).certified
    True
    """
    name = _checked(delta, epsilon, chances, test)
    level = delta / chances
    tested = tuple(_test(key, *outcomes(key), test=name, level=level, epsilon=epsilon) for key in ranked[:chances])
    chosen = next((result.candidate for result in tested if result.n and result.p_value <= level), None)
    return Certificate(chosen is not None, chosen, name, delta, epsilon, chances, len(ranked), tested)


def _test(
    key: str, unsteered: ArrayLike, steered: ArrayLike, *, test: TestName, level: float, epsilon: float
) -> TestResult:
    before, after = np.asarray(unsteered, dtype=bool), np.asarray(steered, dtype=bool)
    if before.ndim != 1 or before.shape != after.shape:
        raise InvalidInput(f"outcomes of {key!r}: shapes {before.shape} and {after.shape}; give two equal (n,)")
    n, gained, lost = before.size, int((after & ~before).sum()), int((before & ~after).sum())
    d = (after.astype(np.float64) - before)[np.random.default_rng(ORDER_SEED).permutation(n)]
    p_value = _p_value(test, d, gained, lost, epsilon, level) if n else 1.0
    return TestResult(key, n, gained, lost, p_value, (gained - lost) / max(n, 1), betting_lower_bound(d, level))


def _p_value(test: TestName, d: NDArray[np.float64], gained: int, lost: int, epsilon: float, level: float) -> float:
    """For the two margins the level at which the margin equals the gain, so that p ≤ level is gain ≥ ε + margin."""
    excess = max((gained - lost) / d.size - epsilon, 0.0)
    if test == "mcnemar":
        return mcnemar_p(gained, lost)
    if test == "betting":
        return betting_test(d, epsilon, level=level)
    if test == "hoeffding":
        return math.exp(-d.size * excess**2 / 2.0)
    return min(1.0, 2.0 * math.exp(-2.0 * d.size * excess**2))


def _checked(delta: float, epsilon: float, chances: int, test: TestName | None) -> TestName:
    """The test to use, once the parameters are found good."""
    if not 0.0 < delta < 1.0:
        raise InvalidInput(f"delta: {delta!r} is outside the open interval (0, 1); give a probability such as 0.05")
    if not 0.0 <= epsilon < 1.0:
        raise InvalidInput(f"epsilon: {epsilon!r} is outside [0, 1); give the gain in accuracy that must be exceeded")
    if chances < 1:
        raise InvalidInput(f"chances: {chances!r} is less than 1; give how many candidates may be tested")
    if test is not None and test not in TESTS:
        raise InvalidInput(f"test: {test!r} is not one of {', '.join(TESTS)}")
    if test == "mcnemar" and epsilon > 0.0:
        raise InvalidInput(f"test: mcnemar at epsilon {epsilon!r}; it tests a gain above 0 only, use betting")
    return test or ("betting" if epsilon > 0.0 else "mcnemar")
