"""What a gain in accuracy does not show: answers that were right and are lost, and classes that are no longer answered.

Shapes: n rows of the calibration split, C classes. Labels are class indices, −1 where an answer is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

__all__ = ["Broken", "broken", "collapse", "rate_upper_bound"]

ALL_BUT = 0.02  # one class with all answers but this share is a collapse
ROWS = 5  # of a class, from which on losing it altogether is one

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Broken:
    """Of n rows that were answered right before, `lost` are not any more: their share, and its upper bound at the certificate's level."""

    n: int
    lost: int
    share: float
    upper: float


def broken(right_before: ArrayLike, right_after: ArrayLike, level: float) -> Broken:
    """Harm on the calibration split, (n,) flags each.

    `upper` is a statement of its own: with the gain's, both hold together with probability 1 − 2 × level.

    >>> broken([True] * 100, [True] * 97 + [False] * 3, 0.05).lost
    3
    """
    before, after = np.asarray(right_before, dtype=bool), np.asarray(right_after, dtype=bool)
    n, lost = int(before.sum()), int((before & ~after).sum())
    return Broken(n, lost, lost / n if n else 0.0, rate_upper_bound(lost, n, level))


def rate_upper_bound(events: int, n: int, level: float) -> float:
    """Clopper and Pearson's exact one-sided upper bound of a rate: P(bound < rate) ≤ level, whatever the rate. 1 where n = 0.

    >>> round(rate_upper_bound(0, 59, 0.05), 3)
    0.05
    """
    return 1.0 if events >= n else float(beta.ppf(1.0 - level, events + 1, n - events))


def collapse(truth: ArrayLike, before: ArrayLike, after: ArrayLike, labels: tuple[str, ...]) -> str | None:
    """In one phrase how the answers collapse, None where they do not.

    One class gets all answers but 2 %; or a class of 5 rows or more, some of which were answered right before, is never answered.
    A gain that is bought so moves predictions to the majority; it is no repair.

    >>> collapse([0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], ("ham", "spam"))
    'ham gets 100% of the answers'
    """
    y, was, now = (np.asarray(one, dtype=np.int64) for one in (truth, before, after))
    if not y.size:
        return None
    for index, label in enumerate(labels):
        share = float((now == index).mean())
        if share >= 1.0 - ALL_BUT:
            return f"{label} gets {share:.0%} of the answers"
    for index, label in enumerate(labels):
        own = y == index
        if own.sum() >= ROWS and (was[own] == index).any() and not (now == index).any():
            return f"{label} is never answered"
    return None
