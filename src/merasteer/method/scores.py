"""What is reported of a run, and the trivial fix to stand beside it (docs/method.md sections 4 and 5).

N items, C classes. Labels are class indices; a prediction of −1 is a missing answer: wrong, and of no class.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax

from merasteer.errors import InvalidInput

__all__ = [
    "ClassScores",
    "PercentileBin",
    "apply_logit_bias",
    "balanced_accuracy",
    "confusion",
    "error_by_percentile",
    "fit_logit_bias",
    "majority_accuracy",
    "precision_recall_f1",
    "recall",
    "spi",
    "spi_interval",
    "transitions",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CELLS = ("kept_right", "repaired", "broken", "kept_wrong")
RIDGE = 1e-4  # keeps the bias of a class without a label finite
SWEEPS = 20  # over the classes; each changes the bias only if that wins at least one more item


class ClassScores(NamedTuple):
    """Per class, (C,) each; None where the denominator is zero."""

    precision: tuple[float | None, ...]
    recall: tuple[float | None, ...]
    f1: tuple[float | None, ...]


class PercentileBin(NamedTuple):
    """Mean predicted error, mean error and number of items of one bin."""

    predicted: float
    error: float
    n: int


def spi(steered_accuracy: float, unsteered_accuracy: float) -> float:
    """Steering Performance Impact in [−1, 1]: the share of what could be won that was, or of what could be lost.

    Δ/(1 − acc₀) for a gain Δ, Δ/acc₀ for a loss, 0 for none.

    >>> spi(0.75, 0.5), spi(0.25, 0.5), spi(1.0, 1.0)
    (0.5, -0.5, 0.0)
    """
    for name, value in (("steered_accuracy", steered_accuracy), ("unsteered_accuracy", unsteered_accuracy)):
        if not 0.0 <= value <= 1.0:
            raise InvalidInput(f"{name}: {value!r} is outside [0, 1]; give a share of the items")
    return float(_spi(np.asarray(steered_accuracy), np.asarray(unsteered_accuracy)))


def spi_interval(
    correct_unsteered: ArrayLike, correct_steered: ArrayLike, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Paired percentile bootstrap interval of the SPI over the items; both inputs (N,) booleans, item by item.

    SPI depends on the four transition counts alone, and those of N items drawn with replacement are multinomial, so
    drawing counts is the same bootstrap without drawing items.

    >>> spi_interval([True, False] * 20, [True, False] * 20)
    (0.0, 0.0)
    """
    if not 0.0 < level < 1.0 or draws < 1:
        raise InvalidInput(f"level, draws: {level!r}, {draws!r}; give a level in (0, 1) and at least one draw")
    counts = np.array(list(transitions(correct_unsteered, correct_steered).values()))
    n = int(counts.sum())
    kept, repaired, broken, _ = np.random.default_rng(seed).multinomial(n, counts / n, size=draws).T
    low, high = np.quantile(_spi((kept + repaired) / n, (kept + broken) / n), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def transitions(correct_unsteered: ArrayLike, correct_steered: ArrayLike) -> dict[str, int]:
    """Counts of items that were kept_right, repaired, broken and kept_wrong; both inputs (N,) booleans.

    >>> transitions([True, False, False], [False, True, False])
    {'kept_right': 0, 'repaired': 1, 'broken': 1, 'kept_wrong': 1}
    """
    before, after = np.asarray(correct_unsteered, dtype=bool), np.asarray(correct_steered, dtype=bool)
    if before.ndim != 1 or before.shape != after.shape or not before.size:
        raise InvalidInput(f"correct: shapes {before.shape} and {after.shape}; give two equal (N,) with N > 0")
    cells = (before & after, ~before & after, before & ~after, ~before & ~after)
    return dict(zip(CELLS, (int(cell.sum()) for cell in cells), strict=True))


def recall(labels: ArrayLike, predictions: ArrayLike, classes: int) -> tuple[float | None, ...]:
    """Share of each class's items that were given that class, (C,); None for a class without items.

    >>> recall([0, 0, 1], [0, -1, 1], 3)
    (0.5, 1.0, None)
    """
    return precision_recall_f1(labels, predictions, classes).recall


def precision_recall_f1(labels: ArrayLike, predictions: ArrayLike, classes: int) -> ClassScores:
    """Per class: hits over predictions, over items, and the harmonic mean 2·hits/(items + predictions).

    >>> precision_recall_f1([0, 0, 1], [0, 1, 1], 2).precision
    (1.0, 0.5)
    """
    y, p = _pair(labels, predictions)
    if (y < 0).any() or max(y.max(initial=0), p.max(initial=0)) >= classes or (p < -1).any():
        raise InvalidInput(f"labels, predictions: outside 0..{classes - 1}; only a prediction may be -1 (missing)")
    items, given, hits = (np.bincount(values, minlength=classes) for values in (y, p[p >= 0], y[y == p]))
    return ClassScores(_ratio(hits, given), _ratio(hits, items), _ratio(2 * hits, items + given))


def balanced_accuracy(labels: ArrayLike, predictions: ArrayLike, classes: int) -> float:
    """Mean recall of the classes that have items: 1/C for any constant answer, however frequent its class is.

    >>> balanced_accuracy([0, 1, 1, 1], [1, 1, 1, 1], 2)
    0.5
    """
    found = [share for share in recall(labels, predictions, classes) if share is not None]
    return float(np.mean(found))


def confusion(labels: ArrayLike, predictions: ArrayLike, classes: int, *, missing: bool = False) -> list[list[int]]:
    """Counts: a row per true class, a column per answer; with `missing` one more column, for answers that are of no class.

    >>> confusion([0, 0, 1], [0, -1, 1], 2, missing=True)
    [[1, 0, 1], [0, 1, 0]]
    """
    y, p = _pair(labels, predictions)
    answered, columns = p >= 0, classes + missing
    if not missing and not answered.all():
        raise InvalidInput(f"predictions: {int((~answered).sum())} are missing, and have no column; give missing=True")
    counts = np.zeros((classes, columns), dtype=np.int64)
    np.add.at(counts, (y, np.where(answered, p, columns - 1)), 1)
    return [[int(count) for count in row] for row in counts]


def majority_accuracy(labels: ArrayLike) -> float:
    """Accuracy of always answering the most frequent class of these very labels, (N,).

    >>> majority_accuracy([0, 1, 1, 1])
    0.75
    """
    y, _ = _pair(labels, labels)
    return float(np.bincount(y).max() / y.size)


def fit_logit_bias(scores: ArrayLike, labels: ArrayLike) -> Floats:
    """Per-class bias (C,) of mean zero for the highest accuracy on these items. scores (N, C), labels (N,).

    Cross-entropy first (convex: softmax of scores + bias, the scores fixed), then coordinate ascent on the accuracy
    itself, which is a step function of each class's bias: among the best steps the nearest. Never below the unbiased
    accuracy, and not sure to be the global best. Fitted and scored on the same items it flatters itself.

    >>> fit_logit_bias([[1.0, 0.0], [1.0, 0.9], [1.0, 0.8], [1.0, 0.1]], [0, 1, 1, 0]).round(2)
    array([-0.27,  0.27])
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if s.ndim != 2 or y.shape != s.shape[:1] or not y.size or not np.isfinite(s).all():
        raise InvalidInput(f"scores, labels: shapes {s.shape} and {y.shape}; give finite (N, C) and (N,) with N > 0")
    if y.min() < 0 or y.max() >= s.shape[1]:
        raise InvalidInput(f"labels: outside 0..{s.shape[1] - 1}; give class indices")
    bias = _better(s, y, np.zeros(s.shape[1]), _cross_entropy_bias(s, y))
    for _ in range(SWEEPS):
        before = bias
        for c in range(s.shape[1]):
            bias = _better(s, y, bias, _best_for_class(s, y, bias, c))
        if bias is before:
            break
    return np.asarray(bias - bias.mean(), dtype=np.float64)


def apply_logit_bias(scores: ArrayLike, bias: ArrayLike) -> Ints:
    """Class of the largest biased score, (N,); the first on ties. scores (N, C), bias (C,).

    >>> apply_logit_bias([[1.0, 0.9]], [0.0, 0.2])
    array([1])
    """
    return np.asarray((np.asarray(scores) + np.asarray(bias)).argmax(axis=-1), dtype=np.int64)


def error_by_percentile(predicted: ArrayLike, error: ArrayLike, bins: int = 10) -> tuple[PercentileBin, ...]:
    """Mean error of items in equal-sized bins of rising predicted error; both (N,). Ties keep their order.

    >>> [b.error for b in error_by_percentile([0.1, 0.9, 0.2, 0.8], [0.0, 1.0, 0.0, 0.5], bins=2)]
    [0.0, 0.75]
    """
    p, e = np.asarray(predicted, dtype=np.float64), np.asarray(error, dtype=np.float64)
    if p.ndim != 1 or p.shape != e.shape or not p.size or bins < 1:
        raise InvalidInput(
            f"predicted, error, bins: shapes {p.shape}, {e.shape} and {bins}; give two equal (N,), N > 0"
        )
    parts = np.array_split(np.argsort(p, kind="stable"), min(bins, p.size))
    return tuple(PercentileBin(float(p[part].mean()), float(e[part].mean()), part.size) for part in parts)


def _spi(steered: Floats, unsteered: Floats) -> Floats:
    delta = steered - unsteered
    room = np.where(delta > 0, 1.0 - unsteered, unsteered)
    return np.asarray(delta / np.where(delta == 0, 1.0, room), dtype=np.float64)


def _pair(labels: ArrayLike, predictions: ArrayLike) -> tuple[Ints, Ints]:
    y, p = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    if y.ndim != 1 or y.shape != p.shape or not y.size:
        raise InvalidInput(f"labels, predictions: shapes {y.shape} and {p.shape}; give two equal (N,) with N > 0")
    return y, p


def _ratio(top: NDArray[np.int64], bottom: NDArray[np.int64]) -> tuple[float | None, ...]:
    return tuple(float(t / b) if b else None for t, b in zip(top, bottom, strict=True))


def _cross_entropy_bias(s: Floats, y: Ints) -> Floats:
    """Minimiser of the mean cross-entropy of softmax(s + b) plus RIDGE·‖b‖², by L-BFGS."""
    counts = np.bincount(y, minlength=s.shape[1]) / y.size

    def loss(bias: Floats) -> tuple[float, Floats]:
        logp = log_softmax(s + bias, axis=1)
        value = -logp[np.arange(y.size), y].mean() + RIDGE * bias @ bias
        return float(value), np.exp(logp).mean(axis=0) - counts + 2.0 * RIDGE * bias

    return np.asarray(minimize(loss, np.zeros(s.shape[1]), jac=True, method="L-BFGS-B").x, dtype=np.float64)


def _better(s: Floats, y: Ints, bias: Floats, other: Floats) -> Floats:
    """`other` if it gets more items right, else `bias`."""
    return other if (apply_logit_bias(s, other) == y).sum() > (apply_logit_bias(s, bias) == y).sum() else bias


def _best_for_class(s: Floats, y: Ints, bias: Floats, c: int) -> Floats:
    """`bias` with the nearest of the best values for class c, the others fixed."""
    others = s + bias
    others[:, c] = -np.inf
    turns = others.max(axis=1) - s[:, c]  # item i is given class c when bias[c] exceeds turns[i]
    if not np.isfinite(turns).all():  # one class only
        return bias
    change = (y == c).astype(np.int64) - (others.argmax(axis=1) == y)
    at, where = np.unique(turns, return_inverse=True)
    gains = np.concatenate([[0], np.cumsum(np.bincount(where, weights=change))])  # relative to bias[c] = −inf
    steps = np.concatenate([[at[0] - 1.0], (at[1:] + at[:-1]) / 2.0, [at[-1] + 1.0]])
    best = steps[gains == gains.max()]
    return np.asarray(
        np.where(np.arange(bias.size) == c, best[np.abs(best - bias[c]).argmin()], bias), dtype=np.float64
    )
