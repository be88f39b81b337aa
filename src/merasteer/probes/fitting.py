"""One linear probe per layer with a bias: z = w·h + b, fit to the logit of the error (docs/method.md section 2).

The family `logistic` is fit to right and wrong instead: there σ(z) estimates the probability of a wrong answer.

Everything is computed in float64 on standardised activations and handed back in raw activation units.
Shapes: N items, L layers, d width.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from merasteer.errors import InvalidInput

__all__ = [
    "FAMILIES",
    "LASSO_GRID",
    "LOGISTIC_GRID",
    "RIDGE_GRID",
    "Family",
    "Fitter",
    "Probes",
    "fit_layer",
    "fit_probes",
    "layer_of",
    "one_thread",
]

Floats = npt.NDArray[np.float64]
Family = Literal["ridge", "lasso", "least_squares", "logistic"]
FAMILIES: tuple[Family, ...] = get_args(Family)

# Fits one layer: x (N, d), y (N,) -> w (d,), b.
Fitter = Callable[[Floats, Floats], tuple[Floats, float]]

RIDGE_GRID: tuple[float, ...] = tuple(
    10.0**k for k in np.arange(-4.0, 4.5, 0.5)
)  # penalties per item, on unit-variance inputs
LASSO_GRID: tuple[float, ...] = (0.5, 0.25, 0.1, 0.05, 0.01, 0.005)  # the paper's
LOGISTIC_GRID: tuple[float, ...] = (0.05, 0.02, 0.01, 0.005, 0.002)  # L1 penalties per item, on unit-variance inputs
_LIBLINEAR = (
    threading.Lock()
)  # it draws from one generator of the process: two fits at once would take from each other's draws
_NEGLIGIBLE = 1e-10  # eigenvalues below this share of the largest are rank deficiency, not signal


@dataclass(frozen=True, eq=False)
class Probes:
    """Readouts of every layer in raw units: weight (L, d), bias (L,), float32. A zero row is a layer without one."""

    weight: torch.Tensor
    bias: torch.Tensor

    def predict(self, activations: torch.Tensor) -> torch.Tensor:
        """z per item and layer. activations (N, L, d): (N, L) float32."""
        return torch.einsum("nld,ld->nl", activations.float(), self.weight) + self.bias


def one_thread() -> Any:
    """A context in which linear algebra runs on one thread.

    Layers are small problems: threads that fight over busy cores made them 70 times slower (37 s for 0.5 s on 2 shared
    cores), and on one thread the bits do not depend on the number of cores.
    """
    return threadpool_limits(1, user_api="blas")


def layer_of(activations: torch.Tensor, layer: int) -> Floats:
    """One layer as float64 (N, d); the only copy that fitting makes, so that N × L × d never doubles in memory."""
    return np.asarray(activations[:, layer].double().numpy(), dtype=np.float64)


def fit_probes(activations: torch.Tensor, target: Floats, family: Family = "ridge") -> Probes:
    """One probe per layer. activations (N, L, d), target (N,): logit errors, or 1 where wrong and 0 for `logistic`."""
    if activations.ndim != 3 or len(activations) != len(target) or len(target) < 2:
        raise InvalidInput(
            f"activations: shape {tuple(activations.shape)} does not match {len(target)} targets; give (N, L, d), N ≥ 2"
        )
    with one_thread():
        fits = [fit_layer(layer_of(activations, layer), target, family) for layer in range(activations.shape[1])]
    weight = torch.from_numpy(np.stack([w for w, _ in fits])).float()
    return Probes(weight, torch.tensor([b for _, b in fits], dtype=torch.float64).float())


def fit_layer(x: Floats, y: Floats, family: Family = "ridge") -> tuple[Floats, float]:
    """w (d,) and b of one layer in raw units. x (N, d), y (N,): logit errors, or 1 where wrong and 0 for `logistic`."""
    if family not in FAMILIES:
        raise InvalidInput(f"family: {family!r} is not one of {', '.join(FAMILIES)}")
    if family == "logistic" and not np.isin(y, (0.0, 1.0)).all():
        raise InvalidInput(
            "target: a logistic probe is fit to right and wrong; give 1 where the answer is wrong, else 0"
        )
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 0, scale, 1.0)  # a constant input carries nothing: its coefficient stays 0
    standard = x - mean  # in place from here on: at a real model's width one copy more is a gigabyte
    standard /= scale
    if family == "logistic":
        w, b = _logistic(standard, y)
        return w / scale, b - float(mean @ (w / scale))
    centred = y - y.mean()
    w = (_lasso(standard, centred) if family == "lasso" else _ridge(standard, centred, family == "ridge")) / scale
    return w, float(y.mean() - mean @ w)


def _ridge(x: Floats, y: Floats, penalised: bool) -> Floats:
    """Ridge with the penalty of least generalised cross-validation error; minimum-norm least squares if not penalised.

    One eigendecomposition of the smaller Gram matrix serves the whole grid.
    """
    n, d = x.shape
    if d <= n:
        values, v = np.linalg.eigh(x.T @ x)
        along = v.T @ (x.T @ y)  # s · (uᵀy)
    else:
        values, u = np.linalg.eigh(x @ x.T)
        along = u.T @ y  # uᵀy
    keep = values > _NEGLIGIBLE * max(float(values[-1]), 1e-300)
    values, along = values[keep], along[keep]
    fitted = along / np.sqrt(values) if d <= n else along  # uᵀy
    penalty = min(RIDGE_GRID, key=lambda p: _gcv(values, fitted, float(y @ y), n, p * n)) * n if penalised else 0.0
    if d <= n:
        return np.asarray(v[:, keep] @ (along / (values + penalty)))
    return np.asarray(x.T @ (u[:, keep] @ (along / (values + penalty))))


def _gcv(values: Floats, fitted: Floats, total: float, n: int, penalty: float) -> float:
    """Generalised cross-validation error of one penalty (Golub, Heath and Wahba 1979); the bias takes one degree."""
    shrink = values / (values + penalty)
    residual = total - float((fitted**2 * (1.0 - (1.0 - shrink) ** 2)).sum())
    free = n - 1.0 - float(shrink.sum())
    return (
        max(residual, 0.0) / free**2 if free > 0.05 * n else float("inf")
    )  # near interpolation the ratio 0/0 means nothing


def _lasso(x: Floats, y: Floats) -> Floats:
    """Lasso over the paper's grid, the penalty of least five-fold error (folds in item order)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LassoCV

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # the smallest penalties may stop early; the held-out score decides
        model: Any = LassoCV(alphas=list(LASSO_GRID), cv=min(5, len(y)), fit_intercept=False, max_iter=2000).fit(x, y)
    return np.asarray(model.coef_, dtype=np.float64)


def _logistic(x: Floats, y: Floats) -> tuple[Floats, float]:
    """L1 logistic regression with the penalty of least log loss on every fifth item, fit again to all of them."""
    share = float(np.clip(y.mean(), 0.5 / len(y), 1.0 - 0.5 / len(y)))
    nothing = np.zeros(x.shape[1]), float(np.log(share / (1.0 - share)))
    held = np.arange(len(y)) % 5 == 0
    if y.min() == y.max() or y[~held].min() == y[~held].max():
        return nothing

    def loss(penalty: float) -> float:
        w, b = _logistic_at(x[~held], y[~held], penalty)
        z = x[held] @ w + b
        return float(np.mean(np.logaddexp(0.0, z) - y[held] * z))

    return _logistic_at(x, y, min(LOGISTIC_GRID, key=loss))


def _logistic_at(x: Floats, y: Floats, penalty: float) -> tuple[Floats, float]:
    """Minimiser of the mean log loss plus penalty · ‖w‖₁."""
    import sklearn
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    # `penalty` gave way to `l1_ratio` in 1.8, which older versions read for another solver only.
    recent = tuple(int(part) for part in sklearn.__version__.split(".")[:2]) >= (1, 8)
    l1: dict[str, Any] = {"l1_ratio": 1.0} if recent else {"penalty": "l1"}
    # The solver penalises the intercept like a weight; on an input of 100 that costs a hundredth, that is nothing.
    model: Any = LogisticRegression(
        C=1.0 / (penalty * len(y)), solver="liblinear", intercept_scaling=100.0, max_iter=1000, random_state=0, **l1
    )
    with _LIBLINEAR, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the held-out score decides
        model.fit(x, y.astype(np.int64))
    return np.asarray(model.coef_[0], dtype=np.float64), float(model.intercept_[0])
