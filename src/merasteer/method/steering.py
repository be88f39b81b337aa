"""The closed-form step as pure functions of tensors (paper, section 3; docs/method.md section 2).

    z  = w·h + b
    v* = 0                        if z ≤ logit(α)
    v* = (logit(α) − z) · ũ       if z > logit(α),      ũ = u / (w·u)

so that σ(w·(h + v*) + b) = α exactly, for any direction u with w·u > 0. The engine
decides by `pull_`; `coefficient` and `move` are the same step on one readout in plain form, which tests hold the engine against.
"""

from __future__ import annotations

import torch

from merasteer.errors import InvalidInput

__all__ = ["coefficient", "move", "pull_", "readout", "unit_step"]


def unit_step(weight: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """ũ = u / (w·u), the direction u scaled so that moving by t·ũ changes the readout by exactly t.

    weight, direction: (..., d). Rows of `weight` that are zero (idle layers) give zero rows.
    Raises InvalidInput where w·u ≤ 0 on a row that is not idle: that step would raise the predicted error.

    >>> unit_step(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.0]))
    tensor([0.1200, 0.1600])
    """
    weight, direction = weight.double(), direction.double()
    along = (weight * direction).sum(-1, keepdim=True)
    idle = weight.abs().sum(-1, keepdim=True) == 0
    if bool(((along <= 0) & ~idle).any()):
        raise InvalidInput(
            "direction: w·u is not positive, the step would raise the predicted error; negate the direction"
        )
    return torch.where(idle, 0.0, direction / torch.where(idle, 1.0, along)).float()


def readout(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | float) -> torch.Tensor:
    """z = w·h + b in float32. hidden (..., d), weight (d,) or (P, d): returns (...,) or (..., P)."""
    return hidden.float() @ weight.float().mT + bias if weight.ndim > 1 else hidden.float() @ weight.float() + bias


def coefficient(
    z: torch.Tensor, logit_alpha: torch.Tensor | float, strength: torch.Tensor | float | None = None
) -> torch.Tensor:
    """How far along ũ each activation goes: min(logit(α) − z, 0) − strength. Branch-free.

    logit_alpha = +inf never steers. strength is the fixed-strength baselines' λ (None for MERA).
    """
    return pull_(z - logit_alpha, strength).neg_()


def pull_(excess: torch.Tensor, strength: torch.Tensor | float | None = None) -> torch.Tensor:
    """How far against ũ, from the excess z − logit(α), which it overwrites: max(excess, 0) + strength. An excess of -inf never steers."""
    excess.clamp_(min=0.0)
    return excess if strength is None else excess.add_(strength)


def move(hidden: torch.Tensor, amount: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """h + amount · ũ, computed in float32 and returned in the dtype of `hidden`. hidden (..., d), amount (...,), step (d,)."""
    return (hidden.float() + amount.unsqueeze(-1) * step.float()).to(hidden.dtype)
