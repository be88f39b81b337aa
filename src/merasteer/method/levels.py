"""At which level the k-th test on the same rows is made, so that all of them hold together (docs/method.md section 6)."""

from __future__ import annotations

import math

from merasteer.errors import InvalidInput

__all__ = ["level_of"]


def level_of(delta: float, attempt: int) -> float:
    """δ/(k(k+1)): these add up to δ over all k = 1, 2, …, however many attempts there will be.

    So with attempts that are chosen without their results on these rows, P(any false certificate, ever) ≤ δ (a union bound).

    >>> [round(level_of(0.06, k), 3) for k in (1, 2, 3)]
    [0.03, 0.01, 0.005]
    """
    if not (0.0 < delta < 1.0 and math.isfinite(delta)):
        raise InvalidInput(f"delta: {delta!r} is outside the open interval (0, 1); give a probability such as 0.05")
    if attempt < 1:
        raise InvalidInput(f"attempt: {attempt} is below 1; attempts are counted from 1")
    return delta / (attempt * (attempt + 1))
