"""Which layers read the error at all: held-out RMSE against a mean predictor, over repeated splits.

A layer that does not beat the mean by one standard error is idle: no readout, no step (docs/method.md section 2).
Shapes: N items, L layers, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from merasteer.errors import InvalidInput
from merasteer.probes.fitting import Fitter, layer_of, one_thread

__all__ = ["LayerScore", "Selection", "held_out_splits", "select"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LayerScore:
    """Means over the repeats. standard_error is that of dummy_rmse − rmse."""

    layer: int
    rmse: float
    dummy_rmse: float
    standard_error: float
    idle: bool

    @property
    def gain(self) -> float:
        """How far the probe is ahead of the mean predictor."""
        return self.dummy_rmse - self.rmse


@dataclass(frozen=True)
class Selection:
    """Scores of every layer; `report_layer` is the active layer of best held-out RMSE, None when all are idle."""

    scores: tuple[LayerScore, ...]

    @property
    def active(self) -> tuple[int, ...]:
        return tuple(score.layer for score in self.scores if not score.idle)

    @property
    def report_layer(self) -> int | None:
        return min(self.active, key=lambda layer: self.scores[layer].rmse, default=None)

    def as_dicts(self) -> list[dict[str, float | int | bool]]:
        """One dict per layer: layer, rmse, dummy_rmse, standard_error, idle."""
        return [
            {
                "layer": score.layer,
                "rmse": score.rmse,
                "dummy_rmse": score.dummy_rmse,
                "standard_error": score.standard_error,
                "idle": score.idle,
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


def select(
    activations: torch.Tensor,
    target: Floats,
    fitter: Fitter,
    *,
    repeats: int = 5,
    seed: int = 0,
    on_layer: Callable[[], None] | None = None,
) -> Selection:
    """Scores each layer with `fitter`. activations (N, L, d), target (N,). `on_layer` is called after each layer."""
    splits = held_out_splits(len(target), repeats, seed=seed)
    scores = []
    for layer in range(activations.shape[1]):
        with one_thread():
            scores.append(_score(layer, layer_of(activations, layer), target, fitter, splits))
        if on_layer is not None:
            on_layer()
    return Selection(tuple(scores))


def _score(layer: int, x: Floats, y: Floats, fitter: Fitter, splits: list[tuple[Indices, Indices]]) -> LayerScore:
    rmse, dummy = [], []
    for fit, held in splits:
        w, b = fitter(x[fit], y[fit])
        rmse.append(_rmse(y[held] - (x[held] @ w + b)))
        dummy.append(_rmse(y[held] - y[fit].mean()))
    gains = np.subtract(dummy, rmse)
    # Repeated splits share items, so std/√R is too small; Nadeau and Bengio (2003) add the share held out to 1/R.
    fit, held = splits[0]
    error = float(gains.std(ddof=1) * np.sqrt(1.0 / len(splits) + len(held) / len(fit)))
    # The tiny floor keeps a target without variance (0 > 0, up to rounding) idle.
    idle = not float(gains.mean()) > max(error, 1e-9 * max(dummy))
    return LayerScore(layer, float(np.mean(rmse)), float(np.mean(dummy)), error, idle)


def _rmse(residual: Floats) -> float:
    return float(np.sqrt(np.mean(residual**2)))
