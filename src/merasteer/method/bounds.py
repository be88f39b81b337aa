"""Tests and bounds for the mean of paired outcomes D in [−1, 1] (paper, section 4; docs/method.md section 6).

D_i = correct_steered − correct_unsteered is −1 (lost), 0 or +1 (gained) on calibration item i. Items are independent
draws of one distribution. Plural functions take many runs at once, (runs, n) -> (runs,); the singular ones take one.

Betting follows Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (JRSS B, 2024): on
X = (D + 1)/2 in [0, 1] and for a null mean m,

    K_t(m) = Π_{i≤t} (1 + λ_i(m) (X_i − m)),     λ_i(m) = min( sqrt(2 log(1/level) / (n σ̂²_{i−1})), c/m )

is a non-negative supermartingale whenever E[X] ≤ m, because λ_i ≥ 0 looks only at items before i. Ville's inequality
gives P(max_t K_t(m) ≥ 1/δ) ≤ δ for one maximum over the whole sample. Each factor falls with m, truncated or not, so
K_t(m) does too and inverting the test is a bisection.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom

from merasteer.errors import InvalidInput

__all__ = [
    "betting_lower_bound",
    "betting_lower_bounds",
    "betting_p_values",
    "betting_test",
    "mcnemar_p",
    "mcnemar_p_values",
    "paper_margin",
    "scaled_hoeffding_margin",
]

Floats = NDArray[np.float64]

TRUNCATION = 0.75  # c: no single item can take more than this share of the capital (their section 4.2: 1/2 or 3/4)
BISECTIONS = 40  # the bound is found to 2·2^-40, always rounded down


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact one-sided p-value of McNemar's test, P(Bin(gained + lost, ½) ≥ gained).

    gained: items wrong unsteered and right steered (n₀₁); lost: the reverse (n₁₀). Null: E[D] ≤ 0. Given the number of
    discordant items, `gained` is binomial with probability ≤ ½ under the null: exact at any n. None discordant: p = 1.

    >>> round(mcnemar_p(9, 1), 4)
    0.0107
    """
    if gained < 0 or lost < 0:
        raise InvalidInput(f"gained, lost: {gained}, {lost} hold a negative count; give counts of items")
    return float(mcnemar_p_values(gained, lost))


def mcnemar_p_values(gained: ArrayLike, lost: ArrayLike) -> Floats:
    """`mcnemar_p` of every pair of counts; gained, lost: integers of one shape, which the result has."""
    wins, losses = np.asarray(gained), np.asarray(lost)
    return np.asarray(binom.sf(wins - 1, wins + losses, 0.5), dtype=np.float64)


def betting_test(d: ArrayLike, epsilon: float, *, level: float = 0.05) -> float:
    """p-value of the null E[D] ≤ ε: one over the largest capital reached, at most 1. d: (n,) in [−1, 1]; no items: 1.

    The order of the items counts: it must not depend on their outcomes or labels, so shuffle a sorted file first.
    level tunes the bets for power; fixed before the data is seen, it leaves the p-value valid at every level. With
    level = δ the test rejects at δ exactly where `betting_lower_bound(d, δ)` exceeds ε.

    >>> round(betting_test([0, 0, 1, 0, 0, 1, -1, 1, 0, 0] * 10, 0.0), 4)
    0.0057
    """
    return float(betting_p_values(_one_run(d), epsilon, level=level)[0])


def betting_p_values(d: ArrayLike, epsilon: float, *, level: float = 0.05) -> Floats:
    """`betting_test` of every run. d: (runs, n) -> (runs,)."""
    _check_open("level", level)
    if not 0.0 <= epsilon < 1.0:
        raise InvalidInput(
            f"epsilon: {epsilon!r} is outside [0, 1); give the gain in accuracy that steering must exceed"
        )
    x = _unit_interval(d)
    return np.exp(-_log_capital(x, _bets(x, level), np.full(len(x), (1.0 + epsilon) / 2.0)))


def betting_lower_bound(d: ArrayLike, delta: float) -> float:
    """Lower bound of E[D] that exceeds the truth with probability at most δ. d: (n,) in [−1, 1]; no items: −1.

    The smallest mean that positive capital alone does not reject at δ: one-sided, nothing of δ goes to an upper bound.
    The order of the items counts as in `betting_test`.

    >>> round(betting_lower_bound([0, 0, 1, 0, 0, 1, -1, 1, 0, 0] * 10, 0.05), 3)
    0.055
    """
    return float(betting_lower_bounds(_one_run(d), delta)[0])


def betting_lower_bounds(d: ArrayLike, delta: float) -> Floats:
    """`betting_lower_bound` of every run. d: (runs, n) -> (runs,)."""
    _check_open("delta", delta)
    x = _unit_interval(d)
    bets, threshold = _bets(x, delta), math.log(1.0 / delta)
    low, high = np.zeros(len(x)), np.ones(len(x))
    for _ in range(BISECTIONS):
        middle = (low + high) / 2.0
        rejected = _log_capital(x, bets, middle) >= threshold
        low, high = np.where(rejected, middle, low), np.where(rejected, high, middle)
    return 2.0 * low - 1.0


def scaled_hoeffding_margin(n: int, delta: float, tries: int = 1) -> float:
    """2·sqrt(log(tries/δ)/(2n)): by at most that the mean of n outcomes exceeds the truth, but for δ.

    One-sided; `tries` candidates on the same items by the union bound. The range of D is 2, hence the leading 2.

    >>> round(scaled_hoeffding_margin(250, 0.05), 4)
    0.1548
    """
    _check_margin(n, delta, tries)
    return 2.0 * math.sqrt(math.log(tries / delta) / (2.0 * n))


def paper_margin(n: int, delta: float, tries: int) -> float:
    """sqrt(log(2·tries/δ)/(2n)), the paper's margin (section 4). Too small; here only to be compared with.

    It is Hoeffding's two-sided margin for outcomes of range 1. D has range 2, so the stated probability does not hold:
    at n = 250, ten tries and δ = .05 it certifies useless steering in over a third of runs if every answer changes.

    >>> round(paper_margin(250, 0.05, 10), 4)
    0.1095
    """
    _check_margin(n, delta, tries)
    return math.sqrt(math.log(2.0 * tries / delta) / (2.0 * n))


def _bets(x: Floats, level: float) -> Floats:
    """Bets before truncation, (runs, n): item i knows the variance of items 1..i−1 and a pseudo-item at ½."""
    seen = np.arange(2, x.shape[1] + 2)
    mean = (0.5 + np.cumsum(x, axis=1)) / seen
    variance = (0.25 + np.cumsum((x - mean) ** 2, axis=1)) / seen
    before = np.concatenate([np.full((len(x), 1), 0.25), variance], axis=1)[:, :-1]
    return np.asarray(np.sqrt(2.0 * math.log(1.0 / level) / (x.shape[1] * before)), dtype=np.float64)


def _log_capital(x: Floats, bets: Floats, mean: Floats) -> Floats:
    """log max_t K_t(m), t = 0..n, so never negative. x, bets: (runs, n); mean: (runs,) in (0, 1]."""
    m = mean[:, None]
    growth = np.log1p(np.minimum(bets, TRUNCATION / m) * (x - m))
    return np.asarray(np.cumsum(growth, axis=1).max(axis=1, initial=0.0), dtype=np.float64)


def _one_run(d: ArrayLike) -> Floats:
    values = np.asarray(d, dtype=np.float64)
    if values.ndim != 1:
        raise InvalidInput(f"d: shape {values.shape} is not (n,); give the outcomes of one run")
    return values[None]


def _unit_interval(d: ArrayLike) -> Floats:
    values = np.asarray(d, dtype=np.float64)
    if values.ndim != 2:
        raise InvalidInput(f"d: shape {values.shape} is not (runs, n); give one row per run")
    if not bool((np.abs(values) <= 1.0).all()):
        raise InvalidInput("d: a value is outside [-1, 1]; give correct_steered - correct_unsteered per item")
    return (values + 1.0) / 2.0


def _check_margin(n: int, delta: float, tries: int) -> None:
    _check_open("delta", delta)
    if n < 1 or tries < 1:
        raise InvalidInput(f"n, tries: {n}, {tries} must both be at least 1")


def _check_open(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise InvalidInput(f"{name}: {value!r} is outside the open interval (0, 1); give a probability such as 0.05")
