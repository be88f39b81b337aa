"""What the model knows: a linear classifier of the true label on the activations of one layer (docs/method.md section 5).

Multinomial logistic regression with an L2 penalty. The layer is the one of least cross-validated log loss at a middle penalty, then the
penalty that of least loss at that layer, both on training items. (The leave-one-out error of a ridge classifier costs as much, and says
little: over 60 places and draws of 350 messages on a real model its correlation with held-out accuracy was −.1, that of this loss −.6.)
Computed in float64 on standardised activations, handed back in raw units. Shapes: N items, L layers, d width, C classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from merasteer.errors import InvalidInput
from merasteer.probes.fitting import one_thread
from merasteer.types import HookPoint

__all__ = ["LabelProbe", "fit_label_probe", "fit_label_probe_at"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PENALTIES = (1.0, 0.1, 0.01, 0.001, 0.0001)  # per item, on unit-variance inputs; strongest first
MIDDLE = 0.01  # of these, for choosing the layer
FOLDS = 5
MOST = 1000  # items that layer and penalty are chosen on; the fit itself takes all
NEVER = -1e4  # bias of a class that no item has
WORST = -20.0  # log-probability below which one item counts no further


@dataclass(frozen=True, eq=False)
class LabelProbe:
    """Scores h·weightᵀ + bias of one layer, raw units: weight (C, d), bias (C,), float32. Their softmax estimates P(label | h)."""

    hook_point: HookPoint
    layer: int
    weight: torch.Tensor
    bias: torch.Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1]:
            raise InvalidInput(
                f"label probe: weight {tuple(self.weight.shape)} and bias {tuple(self.bias.shape)} do not agree; "
                "give (C, d) and (C,)"
            )
        if not (torch.isfinite(self.weight).all() and torch.isfinite(self.bias).all()):
            raise InvalidInput("label probe: weight or bias holds a value that is not finite; fit the probe again")

    def scores(self, hidden: torch.Tensor) -> torch.Tensor:
        """Log-probabilities up to a constant per item, float32. hidden (..., d): (..., C)."""
        return hidden.float() @ self.weight.mT + self.bias

    def predict(self, hidden: torch.Tensor) -> torch.Tensor:
        """The class of the largest score. hidden (..., d): (...) int64."""
        return self.scores(hidden).argmax(-1)


class Rows(Protocol):
    """Activations (N, L, d), of which [items, layer] is read, one layer at a time: a tensor, or what reads them from the disk."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, at: Any, /) -> torch.Tensor: ...


def fit_label_probe(
    activations: Mapping[HookPoint, Rows], labels: Ints, items: Ints, classes: int, seed: int = 0
) -> LabelProbe:
    """The probe of the best hook point and layer, fit to `items` (indices into the N). Equal seeds give equal bits.

    activations: hook point -> (N, L, d); labels (N,). One layer at a time is copied. Of layers with equal losses the first is taken, of
    penalties the strongest. One class alone teaches nothing: the probe then always says it.
    """
    generator = np.random.default_rng(seed)
    some = np.sort(generator.permutation(items)[:MOST])
    folds = generator.permutation(len(some)) % FOLDS
    places = [(point, layer) for point, rows in activations.items() for layer in range(rows.shape[1])]

    def rows_of(point: HookPoint, layer: int, wanted: Ints) -> Floats:
        return np.asarray(activations[point][torch.from_numpy(wanted), layer].double().numpy())

    if len(np.unique(labels[items])) < 2:
        point, layer = places[0]
        return fit_label_probe_at(
            point, layer, activations[point][torch.from_numpy(items), layer], labels[items], classes
        )
    with one_thread():
        losses = [_loss(_standard(rows_of(*place, some))[0], labels[some], folds, MIDDLE) for place in places]
        point, layer = places[int(np.argmin(losses))]
        x = _standard(rows_of(point, layer, some))[0]
        penalty = min(PENALTIES, key=lambda penalty: _loss(x, labels[some], folds, penalty))
    rows = activations[point][torch.from_numpy(items), layer]
    return fit_label_probe_at(point, layer, rows, labels[items], classes, penalty)


def fit_label_probe_at(
    point: HookPoint, layer: int, rows: torch.Tensor, labels: Ints, classes: int, penalty: float = MIDDLE
) -> LabelProbe:
    """The probe of one place. rows (n, d), labels (n,). One class alone teaches nothing: the probe then always says it."""
    if len(np.unique(labels)) < 2:
        return LabelProbe(point, layer, torch.zeros(classes, rows.shape[1]), _bias(labels[:1], np.zeros(1), classes))
    with one_thread():
        x, mean, scale = _standard(np.asarray(rows.double().numpy()))
        known, weight, bias = _logistic(x, labels, penalty)
    raw = np.zeros((classes, len(mean)))
    raw[known] = weight / scale
    return LabelProbe(point, layer, torch.from_numpy(raw).float(), _bias(known, bias - raw[known] @ mean, classes))


def _standard(x: Floats) -> tuple[Floats, Floats, Floats]:
    """(x with columns of mean 0 and variance 1, their means, their scales). A constant column stays 0. Overwrites x."""
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x -= mean
    x /= scale
    return x, mean, scale


def _loss(x: Floats, labels: Ints, folds: Ints, penalty: float) -> float:
    """Mean log loss over the folds, each held out in turn. x (N, d), labels and folds (N,)."""
    total = 0.0
    for fold in range(FOLDS):
        held = folds == fold
        if len(np.unique(labels[~held])) < 2:
            continue  # a class that this fold alone has teaches nothing without it
        known, weight, bias = _logistic(x[~held], labels[~held], penalty)
        z = np.full((int(held.sum()), int(labels.max()) + 1), NEVER)
        z[:, known] = x[held] @ weight.T + bias
        z -= np.logaddexp.reduce(z, axis=1, keepdims=True)
        total -= float(np.maximum(z[np.arange(len(z)), labels[held]], WORST).sum())
    return total / len(labels)


def _logistic(x: Floats, labels: Ints, penalty: float) -> tuple[Ints, Floats, Floats]:
    """(classes that occur, weights (K, d), biases (K,)) of the minimiser of the mean log loss plus penalty/2 · ‖w‖²."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near enough; what it is worth is measured elsewhere
        model: Any = LogisticRegression(C=1.0 / (penalty * len(labels)), max_iter=300, tol=1e-4).fit(x, labels)
    weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
    if len(weight) == 1:  # two classes: one score, of the second
        weight, bias = np.concatenate([-weight, weight]) / 2.0, np.concatenate([-bias, bias]) / 2.0
    return np.asarray(model.classes_, dtype=np.int64), weight, bias


def _bias(known: Ints, bias: Floats, classes: int) -> torch.Tensor:
    full = np.full(classes, NEVER)
    full[known] = bias
    return torch.from_numpy(full).float()
