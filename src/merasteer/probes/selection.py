"""Which layers read the error at all: held-out RMSE against a mean predictor, over repeated splits.

Probes of right and wrong (`logistic`) are judged by held-out AUROC against ½ instead. A layer that is not ahead by one
standard error is idle: no readout, no step (docs/method.md section 2). Both figures are kept, whichever is the judge.
Shapes: N items, L layers, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from scipy.stats import rankdata

from merasteer.errors import InvalidInput
from merasteer.probes.fitting import Fitter, layer_of, one_thread

__all__ = [
    "SCORES",
    "LayerScore",
    "Score",
    "Selection",
    "auroc",
    "held_out_splits",
    "probe_rows",
    "score_layer",
    "select",
]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Score = Literal["rmse", "auroc"]
SCORES: tuple[Score, ...] = get_args(Score)


@dataclass(frozen=True)
class LayerScore:
    """Means over the repeats. standard_error is that of `gain`, which `judged_by` decides.

    rmse: of z; where the target is right or wrong, of σ(z) against it, and the mean predictor then says the share of wrong.
    auroc: of z against wrong answers; None where they are not known, or no repeat holds out both right and wrong.
    """

    layer: int
    rmse: float
    dummy_rmse: float
    standard_error: float
    idle: bool
    auroc: float | None = None
    judged_by: Score = "rmse"

    @property
    def gain(self) -> float:
        """How far the probe is ahead of the mean predictor, or of a guess; 0 where nothing tells it from a guess."""
        if self.judged_by == "rmse":
            return self.dummy_rmse - self.rmse
        return 0.0 if self.auroc is None else self.auroc - 0.5

    @property
    def badness(self) -> float:
        """What the best layer has least of: its RMSE, or minus its AUROC."""
        return self.rmse if self.judged_by == "rmse" else -(0.5 if self.auroc is None else self.auroc)


@dataclass(frozen=True)
class Selection:
    """Scores of every layer. The report layer is the best of the active ones; it, median and worst are None when all are idle."""

    scores: tuple[LayerScore, ...]

    @property
    def active(self) -> tuple[int, ...]:
        return tuple(score.layer for score in self.scores if not score.idle)

    @property
    def ranked(self) -> tuple[int, ...]:
        """The active layers, best held-out score first; of equal ones the lower layer."""
        return tuple(score.layer for score in sorted(self.scores, key=lambda score: score.badness) if not score.idle)

    @property
    def report_layer(self) -> int | None:
        return next(iter(self.ranked), None)

    @property
    def median(self) -> int | None:
        """The layer in the middle of `ranked`; of two the better one."""
        return self.ranked[(len(self.ranked) - 1) // 2] if self.ranked else None

    @property
    def worst(self) -> int | None:
        return next(reversed(self.ranked), None)

    def as_dicts(self) -> list[dict[str, float | int | bool]]:
        """One dict per layer: layer, rmse, dummy_rmse, standard_error, idle, and auroc where there is one."""
        return [
            {
                "layer": score.layer,
                "rmse": score.rmse,
                "dummy_rmse": score.dummy_rmse,
                "standard_error": score.standard_error,
                "idle": score.idle,
                **({} if score.auroc is None else {"auroc": score.auroc}),
            }
            for score in self.scores
        ]


def held_out_splits(n: int, repeats: int = 5, share: float = 0.2, seed: int = 0) -> list[tuple[Indices, Indices]]:
    """`repeats` random (fit, held-out) index pairs; `share` of the n items is held out each time."""
    held = max(2, round(share * n))
    if n - held < 2 or repeats < 2:
        raise InvalidInput(
            f"held-out splits: {n} items in {repeats} repeats are too few; give at least 5 items and 2 repeats"
        )
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(n) for _ in range(repeats)]
    return [(np.sort(order[held:]), np.sort(order[:held])) for order in orders]


def probe_rows(selection: Selection, hook_point: str, readout: str) -> list[dict[str, Any]]:
    """The scores of every layer, idle or not, as plain JSON: hook_point, readout, then `as_dicts` with auroc null if unknown."""
    return [{"hook_point": hook_point, "readout": readout, "auroc": None, **scores} for scores in selection.as_dicts()]


def select(
    activations: torch.Tensor,
    target: Floats,
    fitter: Fitter,
    *,
    wrong: Floats | None = None,
    repeats: int = 5,
    seed: int = 0,
    on_layer: Callable[[], None] | None = None,
    score: Score = "rmse",
) -> Selection:
    """Scores each layer with `fitter`. activations (N, L, d), target (N,). `on_layer` is called after each layer.

    wrong: (N,), 1 where the answer is wrong, else 0; without it layers judged by RMSE have no AUROC.
    score: what layers are judged by; `auroc` wants a target of 1 (wrong) and 0, which then stands for `wrong`.
    """
    outcome = _outcome(target, wrong, score)
    splits = held_out_splits(len(target), repeats, seed=seed)
    scores = []
    for layer in range(activations.shape[1]):
        with one_thread():
            scores.append(_score(layer, layer_of(activations, layer), target, outcome, fitter, splits, score))
        if on_layer is not None:
            on_layer()
    return Selection(tuple(scores))


def score_layer(
    layer: int,
    x: Floats,
    target: Floats,
    fitter: Fitter,
    *,
    wrong: Floats | None = None,
    repeats: int = 5,
    seed: int = 0,
    score: Score = "rmse",
) -> LayerScore:
    """What `select` says of one layer. x (N, d); on as many threads as the caller leaves to linear algebra."""
    outcome = _outcome(target, wrong, score)
    return _score(layer, x, target, outcome, fitter, held_out_splits(len(target), repeats, seed=seed), score)


def _outcome(target: Floats, wrong: Floats | None, score: Score) -> Floats | None:
    """1 where the answer is wrong, else 0, (N,); None where it is not known."""
    if score not in SCORES:
        raise InvalidInput(f"score: {score!r} is not one of {', '.join(SCORES)}")
    outcome = target if score == "auroc" else wrong
    if outcome is not None and not (outcome.shape == target.shape and np.isin(outcome, (0.0, 1.0)).all()):
        raise InvalidInput(
            f"wrong: {outcome.shape} values for {target.shape} targets, or one that is not 0 or 1; give 1 where the answer is wrong"
        )
    return outcome


def _score(
    layer: int,
    x: Floats,
    y: Floats,
    wrong: Floats | None,
    fitter: Fitter,
    splits: list[tuple[Indices, Indices]],
    judged_by: Score,
) -> LayerScore:
    rmse, dummy, areas = [], [], []
    for fit, held in splits:
        w, b = fitter(x[fit], y[fit])
        z = x[held] @ w + b
        rmse.append(_rmse(y[held] - (z if judged_by == "rmse" else expit(z))))
        dummy.append(_rmse(y[held] - y[fit].mean()))
        if wrong is not None:
            areas.append(auroc(z, wrong[held]))
    gains = np.subtract(dummy, rmse) if judged_by == "rmse" else np.subtract(areas, 0.5)
    error = _standard_error(gains, splits)
    # The tiny floor keeps a target without variance (0 > 0, up to rounding) idle.
    idle = not float(gains.mean()) > max(error, 1e-9 * max(dummy) if judged_by == "rmse" else 0.0)
    # A repeat that holds out one kind alone counts as a guess; where all do, there is no area to speak of.
    known = wrong is not None and any(wrong[held].min() < wrong[held].max() for _, held in splits)
    area = float(np.mean(areas)) if known else None
    return LayerScore(layer, float(np.mean(rmse)), float(np.mean(dummy)), error, idle, area, judged_by)


def auroc(z: Floats, wrong: Floats) -> float:
    """Probability that a wrong item has the larger z, ties counting half; ½ where all are wrong, or none. Both (N,).

    >>> auroc(np.array([3.0, 1.0, 2.0]), np.array([1.0, 0.0, 1.0]))
    1.0
    """
    high, low = int((wrong == 1).sum()), int((wrong == 0).sum())
    if not high or not low:
        return 0.5
    return float((rankdata(z)[wrong == 1].sum() - high * (high + 1) / 2) / (high * low))


def _standard_error(gains: Floats, splits: list[tuple[Indices, Indices]]) -> float:
    """Repeated splits share items, so std/√R is too small; Nadeau and Bengio (2003) add the share held out to 1/R."""
    fit, held = splits[0]
    return float(gains.std(ddof=1) * np.sqrt(1.0 / len(splits) + len(held) / len(fit)))


def _rmse(residual: Floats) -> float:
    return float(np.sqrt(np.mean(residual**2)))
