"""The direction u in which a layer is moved, and its unit step ũ = u / (w·u) (docs/method.md section 3).

    euclidean    u = w                                        the shortest step (the paper)
    covariance   u = Σw                                       the least surprising step: min vᵀΣ⁻¹v
    contrastive  w = u = mean(h | high E) − mean(h | low E)   scaled, signed and given its bias by regression
    contrastive_covariance  u = Σw for the contrastive w      its least surprising step

Every readout points at *error*: a larger z predicts a larger error. Shapes: N items, L layers, d width. The steps of the
fixed-strength baselines are here too: h − λ·step, whatever h reads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from merasteer.errors import InvalidInput
from merasteer.method.steering import unit_step
from merasteer.probes.fitting import Probes, layer_of, one_thread
from merasteer.types import CLOSED_FORM, Direction, HookPoint, SteeringVectors

__all__ = [
    "Covariance",
    "additive_vectors",
    "contrast",
    "contrastive_probes",
    "contrastive_vectors",
    "covariance_times",
    "directions",
    "fit_contrast",
    "steering_vectors",
]

Floats = npt.NDArray[np.float64]


class Covariance:
    """The Ledoit-Wolf covariance Σ = (1 − s)·S + s·(tr S / d)·I of x (N, d), never formed: one product serves every w."""

    def __init__(self, x: Floats) -> None:
        self._centred = x - x.mean(0)
        squares = np.einsum("nd,nd->n", self._centred, self._centred)
        self._variance = float(squares.sum()) / x.size
        self.shrinkage = self._shrinkage(squares)

    def times(self, w: Floats) -> Floats:
        """Σw. w (d,)."""
        along = self._centred.T @ (self._centred @ w) / len(self._centred)
        return np.asarray((1.0 - self.shrinkage) * along + self.shrinkage * self._variance * w)

    def _shrinkage(self, squares: Floats) -> float:
        """s of Ledoit and Wolf (2004), Honey, I shrunk the sample covariance matrix. squares (N,): ‖x‖² of each centred item.

        Σᵢⱼ Σₖ x²ₖᵢ x²ₖⱼ, which the formula asks for, is Σₖ ‖xₖ‖⁴; and XᵀX has the Frobenius norm of XXᵀ: the smaller is formed.
        """
        x, (n, d) = self._centred, self._centred.shape
        if d == 1:
            return 0.0
        gram = x.T @ x if d <= n else x @ x.T
        norm = float(np.einsum("ij,ij->", gram, gram)) / n**2
        noise = (float((squares**2).sum()) / n - norm) / (d * n)
        spread = norm / d - self._variance**2
        return min(noise, spread) / spread if min(noise, spread) > 0 else 0.0


def covariance_times(x: Floats, w: Floats) -> Floats:
    """Σw of x (N, d), w (d,); see `Covariance`."""
    with one_thread():
        return Covariance(x).times(w)


def contrast(x: Floats, target: Floats, top_k: int = 100) -> Floats:
    """mean(h | high error) − mean(h | low error) over the `top_k` items at either end. x (N, d): (d,).

    Never more than half of the items at an end. Ties are broken by item order, so equal seeds give equal bits.
    """
    k = min(top_k, len(target) // 2)
    if k < 1:
        raise InvalidInput(
            f"top_k: {top_k} of {len(target)} items leaves none at either end; give at least 1 of 2 items"
        )
    order = np.argsort(target, kind="stable")
    return np.asarray(x[order[-k:]].mean(0) - x[order[:k]].mean(0))


def fit_contrast(x: Floats, target: Floats, top_k: int = 100) -> tuple[Floats, float]:
    """w (d,) and b of the contrastive readout: the contrast scaled by a one-dimensional regression on the target.

    The slope also fixes the sign, so z rises with the error. A contrast that does not vary over the items gives zeros.
    """
    direction = contrast(x, target, top_k)
    along = x @ direction
    spread = float(((along - along.mean()) ** 2).mean())
    slope = float(((along - along.mean()) * (target - target.mean())).mean() / spread) if spread > 0 else 0.0
    w = slope * direction
    return w, float(target.mean() - slope * along.mean())


def contrastive_probes(activations: torch.Tensor, target: Floats, top_k: int = 100) -> Probes:
    """The contrastive readout of every layer. activations (N, L, d), target (N,)."""
    with one_thread():
        fits = [fit_contrast(layer_of(activations, layer), target, top_k) for layer in range(activations.shape[1])]
    weight = torch.from_numpy(np.stack([w for w, _ in fits])).float()
    return Probes(weight, torch.tensor([b for _, b in fits], dtype=torch.float64).float())


def steering_vectors(
    hook_point: HookPoint, probes: Probes, direction: torch.Tensor, active: Collection[int], report_layer: int
) -> SteeringVectors | None:
    """Readouts and unit steps with the layers outside `active`, or where w·u ≤ 0, idle; None when that leaves none.

    direction (L, d) float64 is u. An idle layer has a zero weight and step; its bias stays.
    The report layer falls back to the active layer nearest to it.
    """
    along = (probes.weight.double() * direction.double()).sum(-1)
    usable = [layer for layer in active if float(along[layer]) > 0.0]
    if not usable:
        return None
    mask = torch.zeros(len(probes.weight), 1, dtype=torch.bool)
    mask[usable] = True
    weight = torch.where(mask, probes.weight, 0.0)
    step = unit_step(weight, torch.where(mask, direction.double(), 0.0))
    nearest = min(usable, key=lambda layer: (abs(layer - report_layer), layer))
    return SteeringVectors(hook_point, weight, probes.bias.clone(), step, nearest)


def directions(
    hook_point: HookPoint,
    activations: torch.Tensor,
    probes: Probes,
    active: Collection[int],
    report_layer: int,
    names: Sequence[Direction] = ("euclidean", "covariance"),
) -> dict[Direction, SteeringVectors]:
    """Vectors for each direction; names that leave every layer idle are absent.

    activations (N, L, d) of the training items give Σ. The contrastive directions take the probes of `contrastive_probes`.
    """
    unknown = [name for name in names if name not in CLOSED_FORM]
    if unknown:
        raise InvalidInput(f"direction: {unknown[0]!r} is not one of {', '.join(CLOSED_FORM)}")
    found: dict[Direction, SteeringVectors] = {}
    for name in names:
        u = probes.weight.double()
        if name in ("covariance", "contrastive_covariance"):
            u = torch.zeros_like(u)
            for layer in active:
                w = probes.weight[layer].double().numpy()
                u[layer] = torch.from_numpy(covariance_times(layer_of(activations, layer), w))
        vectors = steering_vectors(hook_point, probes, u, active, report_layer)
        if vectors is not None:
            found[name] = vectors
    return found


def additive_vectors(vectors: SteeringVectors) -> SteeringVectors:
    """The readouts with steps of unit length along them: moving by −λ·step is h − λ·w/‖w‖. Idle layers stay put."""
    norm = vectors.weight.norm(dim=-1, keepdim=True)
    step = torch.where(norm > 0, vectors.weight / torch.where(norm > 0, norm, 1.0), 0.0)
    return replace(vectors, step=step, law="closed_form", classes=None)


def contrastive_vectors(vectors: SteeringVectors, contrast: torch.Tensor) -> SteeringVectors:
    """The readouts with the differences of means as steps: moving by −λ·step is h − λ·contrast. Idle layers stay put.

    contrast (L, d), in raw units, pointing at error as `contrast` makes it.
    """
    active = vectors.weight.abs().sum(-1, keepdim=True) > 0
    return replace(vectors, step=torch.where(active, contrast, 0.0), law="closed_form", classes=None)
