"""Readouts and steps as the engine holds them, and what one request asks of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from merasteer.errors import InvalidInput
from merasteer.types.names import POSITIONS, HookPoint, Law, Positions

__all__ = ["ClassReadouts", "Policy", "SteeringVectors"]


@dataclass(frozen=True, eq=False)
class ClassReadouts:
    """A label probe at each of the A layers that act, ascending: weight (A, C, d) and bias (A, C); and the step of each class (A, C, d)."""

    weight: torch.Tensor
    bias: torch.Tensor
    step: torch.Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 3 or self.step.shape != self.weight.shape or self.bias.shape != self.weight.shape[:2]:
            raise InvalidInput(
                f"class readouts: weight {tuple(self.weight.shape)}, bias {tuple(self.bias.shape)} and step "
                f"{tuple(self.step.shape)} do not agree; give (A, C, d), (A, C) and (A, C, d)"
            )
        _check_finite("class readouts", self)


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """What the engine holds resident: readouts and steps of one hook point.

    weight (L, d), bias (L,), step (L, d). A row of `weight` that is zero is an idle layer: it is neither read nor moved.
    law: what is done where z exceeds logit α (docs/method.md, steps that act): closed_form goes along `step`, a unit step, until z =
    logit α; gated moves by −strength · step, and proportional by −strength · σ(z) · step; label_probe moves nothing: the label is the
    class of the largest class readout. classes: of a law that asks for the class; the step is then that of the largest one, and `step` is
    zero.
    """

    hook_point: HookPoint
    weight: torch.Tensor
    bias: torch.Tensor
    step: torch.Tensor
    report_layer: int
    law: Law = "closed_form"
    classes: ClassReadouts | None = None

    def __post_init__(self) -> None:
        layers = self.weight.shape[0]
        if self.weight.ndim != 2 or self.step.shape != self.weight.shape or self.bias.shape != (layers,):
            raise InvalidInput(
                f"steering vectors: weight {tuple(self.weight.shape)}, bias {tuple(self.bias.shape)} and step "
                f"{tuple(self.step.shape)} do not agree; give (L, d), (L,) and (L, d)"
            )
        _check_finite("steering vectors", self)
        if not 0 <= self.report_layer < layers:
            raise InvalidInput(f"steering vectors: report_layer {self.report_layer} is outside 0..{layers - 1}")
        acting = len(self.active_layers)
        if self.classes is not None and len(self.classes.weight) != acting:
            raise InvalidInput(
                f"steering vectors: class readouts at {len(self.classes.weight)} layers, {acting} act; give one for each"
            )
        if self.law == "label_probe" and (self.classes is None or acting != 1):
            raise InvalidInput("steering vectors: a label probe has class readouts, and one layer that acts")

    @property
    def rows(self) -> int:
        """Rows of an engine's table that it takes: its own, and one for each class."""
        return 1 if self.classes is None else 1 + self.classes.weight.shape[1]

    @cached_property
    def active_layers(self) -> tuple[int, ...]:
        """Layers whose readout is not zero."""
        return tuple(torch.nonzero(self.weight.abs().sum(-1) > 0).flatten().tolist())


def _check_finite(kind: str, held: ClassReadouts | SteeringVectors) -> None:
    for name in ("weight", "bias", "step"):
        if not torch.isfinite(getattr(held, name)).all():
            raise InvalidInput(f"{kind}: {name} holds a value that is not finite; fit the probe again")


@dataclass(frozen=True)
class Policy:
    """What one request asks of the engine. `vectors` is the key under which the engine holds the steering vectors.

    alpha: threshold on the predicted error, in (0, 1): the gate of every law; None never opens it (the readouts are still read).
    strength: κ of a gated or proportional step. Beside the closed form, whose step knows its length, it moves every eligible token by
    −strength · step, whatever is read: the fixed-strength baselines; 0 for MERA.
    layers: layers that may move; None means every active layer.
    """

    vectors: str
    alpha: float | None = None
    strength: float = 0.0
    positions: Positions = "generation"
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0.0 < self.alpha < 1.0:
            raise InvalidInput(
                f"alpha: {self.alpha!r} is outside the open interval (0, 1); give a probability such as 0.3"
            )
        if isinstance(self.positions, tuple):
            if not self.positions or len(set(self.positions)) < len(self.positions) or min(self.positions) < 0:
                raise InvalidInput("positions: give one or more 0-based indices into the prompt, each once")
        elif self.positions not in POSITIONS:
            raise InvalidInput(
                f"positions: {self.positions!r} is not one of {', '.join(POSITIONS)}, nor a list of indices"
            )
