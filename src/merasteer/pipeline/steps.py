"""Readouts whose step acts: along the gradient of the error, and labels that a probe says (docs/method.md, steps that act).

The error probe of a layer says *when*: its gate. The mean gradient says *where to*: a step of κ times the activations' mean size. Gate,
length and layer are candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from merasteer.pipeline.gradients import Gradients
from merasteer.pipeline.layers import Reading
from merasteer.probes import LabelProbe
from merasteer.types import LAWS, ClassReadouts, Direction, HookPoint, SteeringVectors

__all__ = ["ACTING", "LOGIT_RANGE", "Readout", "acting_readouts", "alphas_of", "gate_levels", "label_probe_readout"]

Floats = npt.NDArray[np.float64]
ACTING: tuple[Direction, ...] = ("gradient", "proportional", "gradient_by_label")
TRIED = 4  # layers, from the first to the last that reads the error
STRENGTHS = (0.3, 0.6)  # κ
SHARES = (0.05, 0.1, 0.15, 0.25, 0.5)  # of the ordering subset whose gate is open
LOGIT_RANGE = (-15.0, 9.0)  # the targets lie in ±4.6: thresholds beyond open every gate, or none


@dataclass(frozen=True, eq=False)
class Readout:
    """Vectors, and what is kept about them beside."""

    key: str
    vectors: SteeringVectors
    direction: Direction
    alphas: list[float]
    strengths: Sequence[float] = (0.0,)


def acting_readouts(
    point: HookPoint,
    names: Sequence[Direction],
    readings: Sequence[Reading],
    acting: Sequence[int],
    found: Gradients,
    label_probe_at: Callable[[HookPoint, int], LabelProbe],
) -> Iterator[Readout]:
    """For each direction one readout per layer that is tried, and of those that need no class one of all layers, at κ/√L.

    readings: the error probe of every layer; acting: the layers where it reads the error, the best first. label_probe_at: fits one there.
    """
    layers = _tried(sorted(acting))
    steps = {layer: _step(found.pooled(layer), found.size(layer)) for layer in acting}
    for name in names:
        for layer in layers:
            classes = None
            if name == "gradient_by_label":
                size = found.size(layer)
                step = torch.stack([_step(one, size) for one in found.by_class(layer)])
                classes = _classes(label_probe_at(point, layer), step)
            yield _readout(f"{point}/{name}@{layer}", point, name, readings, {layer: steps[layer]}, layer, classes)
        if name != "gradient_by_label" and len(acting) > 1:
            shared = {layer: step / len(acting) ** 0.5 for layer, step in steps.items()}
            yield _readout(f"{point}/{name}", point, name, readings, shared, acting[0], None)


def label_probe_readout(readings: Sequence[Reading], probe: LabelProbe) -> Readout:
    """The label probe behind the gate of the error probe at its layer. readings: of its hook point."""
    classes = _classes(probe, torch.zeros_like(probe.weight))
    nothing = {probe.layer: torch.zeros(probe.weight.shape[1], dtype=torch.float64)}
    key = f"{probe.hook_point}/label_probe@{probe.layer}"
    return _readout(key, probe.hook_point, "label_probe", readings, nothing, probe.layer, classes)


def _tried(acting: Sequence[int]) -> list[int]:
    """Up to `TRIED` of the layers, evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(acting) - 1, min(TRIED, len(acting))).round().astype(int)
    return [acting[place] for place in sorted(set(places.tolist()))]


def gate_levels(z: Floats, shares: Sequence[float] = SHARES) -> list[float]:
    """α, ascending, at which the gate is open on given shares of the items, and one at which it is open on all. z: of the ordering
    subset.
    """
    low, high = float(z.min()), float(z.max())
    logits = [low - (high - low) - 1.0, *(float(np.quantile(z, 1.0 - share)) for share in shares)]
    return alphas_of(logits)


def alphas_of(logits: Sequence[float] | Floats) -> list[float]:
    """The thresholds at these logits, ascending, each once, to six digits."""
    return sorted({float(f"{1.0 / (1.0 + np.exp(-value)):.6g}") for value in np.clip(logits, *LOGIT_RANGE)})


def _readout(
    key: str,
    point: HookPoint,
    name: Direction,
    readings: Sequence[Reading],
    steps: dict[int, torch.Tensor],
    report: int,
    classes: ClassReadouts | None,
) -> Readout:
    weight = torch.zeros(len(readings), len(readings[0].weight))
    step = torch.zeros_like(weight)
    for layer, one in steps.items():
        weight[layer] = readings[layer].weight
        if classes is None:
            step[layer] = one.float()
    bias = torch.stack([reading.bias for reading in readings])
    vectors = SteeringVectors(point, weight, bias, step, report, LAWS[name], classes)
    z = np.concatenate([readings[layer].z for layer in steps])
    return Readout(key, vectors, name, gate_levels(z), (0.0,) if name == "label_probe" else STRENGTHS)


def _step(gradient: torch.Tensor, size: float) -> torch.Tensor:
    """The gradient at the activations' mean size, (d,) float64; zeros where there is none."""
    norm = float(gradient.norm())
    return gradient * (size / norm) if norm > 0 else torch.zeros_like(gradient)


def _classes(probe: LabelProbe, step: torch.Tensor) -> ClassReadouts:
    return ClassReadouts(probe.weight[None], probe.bias[None], step.float()[None])
