"""One layer at a time: its rows are read once, everything that is fit to them is made, and they are let go of.

Layers are fit beside one another, one to a thread with linear algebra on one thread each, so the bits do not depend on how many there are.
What a layer shares is its rows and one product for the covariance of both kinds of readout. A decomposition cannot be shared beyond that:
each repeat of the cross-validation standardises its own items, which turns the eigenvectors (docs/method.md section 2).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from merasteer.probes import Covariance, LayerScore, fit_contrast, fit_layer, score_layer
from merasteer.probes.directions import contrast
from merasteer.probes.fitting import Family, Fitter, one_thread
from merasteer.probes.selection import Score
from merasteer.types import CONTRASTIVE, LAWS, Direction

__all__ = ["Kind", "LayerFit", "Reading", "beside_one_another", "cores", "fit_one"]

Floats = npt.NDArray[np.float64]
T = TypeVar("T")
MEMORY = 2**30  # bytes that the layers under way may take together; one is always under way
COPIES = 3.5  # of a layer's rows in float64, at the most


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of readout: its name, what it is fit to (n,), how, what judges its layers, and the directions made of it."""

    name: str
    goal: Floats
    fitter: Fitter
    score: Score
    directions: tuple[Direction, ...]

    @classmethod
    def of(cls, family: Family, names: Sequence[Direction], y: Floats, wrong: Floats, top_k: int) -> list[Kind]:
        """The kinds that these directions ask for. y: logit errors (n,); wrong: 0 or 1 (n,)."""
        contrastive = tuple(name for name in names if name in CONTRASTIVE)
        plain = tuple(name for name in names if LAWS[name] == "closed_form" and name not in CONTRASTIVE)
        kinds = []
        if set(names) - set(contrastive):  # also the gate of every other step
            logistic = family == "logistic"
            goal, name, score = (wrong, "logistic", "auroc") if logistic else (y, "error", "rmse")
            kinds.append(cls(name, goal, lambda x, t: fit_layer(x, t, family), score, plain))  # type: ignore[arg-type]
        if contrastive:
            kinds.append(cls("contrastive", y, lambda x, t: fit_contrast(x, t, top_k), "rmse", contrastive))
        return kinds


@dataclass(frozen=True, eq=False)
class Reading:
    """A kind of readout at one layer. weight (d,), bias () float32; z (m,) of the items held out; directions: u (d,) of each."""

    score: LayerScore
    weight: torch.Tensor
    bias: torch.Tensor
    z: Floats
    directions: dict[Direction, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LayerFit:
    """All that is fit at one layer. contrast (d,) float32: mean(h | high error) − mean(h | low error)."""

    contrast: torch.Tensor
    readings: dict[str, Reading]


def fit_one(
    layer: int,
    rows: torch.Tensor,
    held_out: torch.Tensor,
    kinds: Sequence[Kind],
    y: Floats,
    wrong: Floats,
    top_k: int,
    seed: int,
) -> LayerFit:
    """rows (n, d) are those that are fit to, held_out (m, d) those that are only read. An idle layer gets no direction."""
    x = np.asarray(rows.double().numpy())
    del rows
    # A layer that acts nowhere is scored like the others, and nothing is made of it.
    readings = {kind.name: _reading(layer, x, held_out, kind, wrong, seed) for kind in kinds}
    spread: Covariance | None = None
    for kind in kinds:
        found = readings[kind.name]
        for name in () if found.score.idle else kind.directions:
            found.directions[name] = found.weight.double()
            if name in ("covariance", "contrastive_covariance"):
                spread = spread or Covariance(x)
                found.directions[name] = torch.from_numpy(spread.times(found.weight.double().numpy()))
    return LayerFit(torch.from_numpy(contrast(x, y, top_k)).float(), readings)


def _reading(layer: int, x: Floats, held_out: torch.Tensor, kind: Kind, wrong: Floats, seed: int) -> Reading:
    score = score_layer(layer, x, kind.goal, kind.fitter, wrong=wrong, seed=seed, score=kind.score)
    w, b = (np.zeros(x.shape[1]), 0.0) if score.idle else kind.fitter(x, kind.goal)
    weight, bias = torch.from_numpy(w).float(), torch.tensor(b, dtype=torch.float64).float()
    z = held_out.double().numpy() @ weight.double().numpy() + float(bias)
    return Reading(score, weight, bias, np.asarray(z, dtype=np.float64))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def beside_one_another(work: Callable[[int], T], layers: int, values: int, workers: int | None = None) -> Iterator[T]:
    """work(layer) of every layer in their order, so many at once as cores and memory allow. values: numbers that one layer reads."""
    room = int(MEMORY / (COPIES * 8 * max(values, 1)))
    count = max(1, min(workers or cores(), room, layers))
    with warnings.catch_warnings(), one_thread(), ThreadPoolExecutor(count, "mera-fit") as pool:
        # The fitters leave these out themselves; filters are the process's, so beside one another that is not enough.
        from sklearn.exceptions import ConvergenceWarning

        warnings.simplefilter("ignore", ConvergenceWarning)
        yield from pool.map(work, range(layers))
