"""The closed-form step as pure functions of tensors (paper, section 3; docs/method.md section 2).

    z  = w·h + b
    v* = 0                        if z ≤ logit(α)
    v* = (logit(α) − z) · ũ       if z > logit(α),      ũ = u / (w·u)

so that σ(w·(h + v*) + b) = α exactly, for any direction u with w·u > 0. The engine
decides by `pull_`; `coefficient` and `move` are the same step on one readout in plain form, which tests hold the engine against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from merasteer.errors import InvalidInput
from merasteer.types import Law

__all__ = ["Laws", "coefficient", "move", "pull_", "readout", "unit_step"]


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


@dataclass(frozen=True, eq=False)
class Laws:
    """What the P columns of a product do where their gate opens, some otherwise than by the closed form (docs/method.md, steps that act).

    gated (P,): moves by its strength, and not at all where the gate is shut. proportional (P,): by strength · σ(z); None where no column
    does. groups: column -> the columns of its class readouts, of which the largest moves in its place. choosing: those of the groups whose
    largest class is the label.
    """

    gated: torch.Tensor
    proportional: torch.Tensor | None
    groups: tuple[tuple[int, torch.Tensor], ...]
    choosing: frozenset[int]

    @classmethod
    def of(
        cls, laws: Sequence[Law], groups: Mapping[int, Sequence[int]], device: torch.device | str = "cpu"
    ) -> Laws | None:
        """laws: by column; groups: see above. None where nothing but the closed form is asked for."""
        if not groups and set(laws) <= {"closed_form"}:
            return None
        proportional = torch.tensor([law == "proportional" for law in laws], device=device)
        return cls(
            torch.tensor([law != "closed_form" for law in laws], device=device),
            proportional if "proportional" in laws else None,
            tuple((own, torch.tensor(classes, device=device)) for own, classes in groups.items()),
            frozenset(own for own in groups if laws[own] == "label_probe"),
        )

    def pull_(self, excess: torch.Tensor, strength: torch.Tensor | float, z: torch.Tensor | None) -> list[torch.Tensor]:
        """Overwrites the excess z − logit α (T, P) with how far each token goes against the step of each column. Branch-free.

        In the columns of class readouts the excess is their score. strength (T, P); z (T, P) is read where a column is proportional.
        Returns, for each column whose class readouts say the label, the largest class of each token, (T,), -1 where the gate is shut.
        Scores that are not finite make what they would decide NaN.
        """
        length = strength + torch.zeros_like(excess)
        if self.proportional is not None and z is not None:
            length = torch.where(self.proportional, length * z.sigmoid(), length)
        scores = [excess[:, classes] for _, classes in self.groups]
        opened = excess > 0
        pull = torch.where(self.gated, torch.where(opened, length, 0.0), excess.clamp(min=0.0) + strength)
        labels = []
        for (own, classes), found in zip(self.groups, scores, strict=True):
            best = found.argmax(-1)
            mine = torch.nn.functional.one_hot(best, found.shape[-1]) * pull[:, own, None]
            pull[:, classes] = mine + torch.where(opened[:, own, None], (found * 0).sum(-1, keepdim=True), 0.0)
            pull[:, own] = 0.0
            if own in self.choosing:
                labels.append(torch.where(opened[:, own], best, -1))
        excess.copy_(pull)
        return labels


def move(hidden: torch.Tensor, amount: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """h + amount · ũ, computed in float32 and returned in the dtype of `hidden`. hidden (..., d), amount (...,), step (d,)."""
    return (hidden.float() + amount.unsqueeze(-1) * step.float()).to(hidden.dtype)
