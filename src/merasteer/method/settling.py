"""How many rows would settle a test that did not pass, were the rates that were seen the true ones (docs/method.md section 6)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from merasteer.errors import InvalidInput

__all__ = ["LIMIT", "POWER", "mcnemar_power", "rows_to_settle"]

POWER = 0.8
LIMIT = 1_000_000  # rows; nobody labels more
TAIL = 1e-6  # probability of the counts of changed items that are left out at either end


def mcnemar_power(n: int, gained: float, lost: float, level: float) -> float:
    """P(the exact one-sided McNemar test passes at `level` on n items), each gained or lost with these probabilities.

    The number that change is D ~ Bin(n, π), π = gained + lost; of these G ~ Bin(D, gained/π) are gained, and the test passes where
    G ≥ g(D), the smallest g with P(Bin(D, ½) ≥ g) ≤ level:  Σ_D P(D) · P(G ≥ g(D) | D).

    >>> round(mcnemar_power(250, 0.15, 0.05, 0.05), 2)
    0.97
    """
    changed = gained + lost
    if changed <= 0.0:
        return 0.0
    low, high = (float(binom.ppf(share, n, changed)) for share in (TAIL, 1.0 - TAIL))
    d: NDArray[np.float64] = np.arange(low, high + 1.0)
    needed = binom.isf(level, d, 0.5) + 1.0  # the smallest g with P(Bin(D, ½) ≥ g) ≤ level; above D where no g will do
    return float(binom.pmf(d, n, changed) @ binom.sf(needed - 1.0, d, gained / changed))


def rows_to_settle(
    gained: int, lost: int, n: int, level: float, epsilon: float = 0.0, power: float = POWER
) -> int | None:
    """About how many calibration rows it takes for the test at `level` to pass with probability `power`, at most LIMIT.

    gained, lost: of the n rows on which the candidate was tried, those that it put right and those that it broke. With the rates
    taken for the true ones it is, at ε = 0, the smallest number (to two digits) at which `mcnemar_power` reaches `power`. Above, where
    betting tests, it is the normal approximation ((z_level + z_power) · σ / (gain − ε))², σ² = π − gain², gain = (gained − lost)/n.
    None where the gain seen is not above ε: more rows alone are then not expected to settle anything in its favour.

    >>> rows_to_settle(15, 5, 250, 0.05), rows_to_settle(3, 3, 250, 0.05)
    (340, None)
    """
    if min(gained, lost) < 0 or gained + lost > n:
        raise InvalidInput(
            f"gained, lost, n: {gained}, {lost} and {n}; give counts of items, of which no more than n changed"
        )
    if n == 0 or (gained - lost) / n <= epsilon:
        return None
    if epsilon > 0.0:
        gain = (gained - lost) / n
        spread = math.sqrt((gained + lost) / n - gain**2)
        reach = float(norm.isf(level) + norm.ppf(power))
        return _shown((reach * spread / (gain - epsilon)) ** 2)
    low, high = 1, 2
    while high < LIMIT and mcnemar_power(high, gained / n, lost / n, level) < power:
        low, high = high, 2 * high
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        enough = mcnemar_power(middle, gained / n, lost / n, level) >= power
        low, high = (low, middle) if enough else (middle, high)
    return _shown(high)


def _shown(rows: float) -> int:
    """The number rounded up to two digits: it is an estimate of an estimate."""
    unit: int = 10 ** max(0, math.floor(math.log10(max(rows, 1.0))) - 1)
    return min(LIMIT, math.ceil(rows / unit) * unit)
