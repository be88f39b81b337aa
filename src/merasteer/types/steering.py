"""Readouts and steps as the engine holds them, and what one request asks of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from merasteer.errors import InvalidInput
from merasteer.types.names import POSITIONS, HookPoint, Positions

__all__ = ["Policy", "SteeringVectors"]


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """What the engine holds resident: readouts and steps of one hook point.

    weight (L, d), bias (L,), step (L, d). A row of `weight` that is zero is an idle layer: it is neither read nor moved.
    """

    hook_point: HookPoint
    weight: torch.Tensor
    bias: torch.Tensor
    step: torch.Tensor
    report_layer: int

    def __post_init__(self) -> None:
        layers = self.weight.shape[0]
        if self.weight.ndim != 2 or self.step.shape != self.weight.shape or self.bias.shape != (layers,):
            raise InvalidInput(
                f"steering vectors: weight {tuple(self.weight.shape)}, bias {tuple(self.bias.shape)} and step "
                f"{tuple(self.step.shape)} do not agree; give (L, d), (L,) and (L, d)"
            )
        for name in ("weight", "bias", "step"):
            if not torch.isfinite(getattr(self, name)).all():
                raise InvalidInput(f"steering vectors: {name} holds a value that is not finite; fit the probe again")
        if not 0 <= self.report_layer < layers:
            raise InvalidInput(f"steering vectors: report_layer {self.report_layer} is outside 0..{layers - 1}")

    @cached_property
    def active_layers(self) -> tuple[int, ...]:
        """Layers whose readout is not zero."""
        return tuple(torch.nonzero(self.weight.abs().sum(-1) > 0).flatten().tolist())


@dataclass(frozen=True)
class Policy:
    """What one request asks of the engine. `vectors` is the key under which the engine holds the steering vectors.

    alpha: threshold on the predicted error, in (0, 1); None never moves by the closed form (the readouts are still read).
    strength: fixed-strength baselines move every eligible token by −strength · step; 0 for MERA.
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
