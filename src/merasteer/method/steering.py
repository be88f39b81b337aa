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

__all__ = ["Laws", "TokenLaws", "coefficient", "move", "pull_", "readout", "unit_step"]


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
    """What the P columns of a product at one layer do where their gate opens, some otherwise than by the closed form (docs/method.md,
    steps that act).

    gated (P,): moves by its strength, and not at all where the gate is shut. proportional (P,): by strength · σ(z). classes (P, C):
    the columns of its class readouts, of which the largest moves in its place; of a column without, its own, C times. choosing (P,):
    the largest class is the label. None where no column does.
    """

    gated: torch.Tensor
    proportional: torch.Tensor | None
    classes: torch.Tensor | None
    choosing: torch.Tensor | None

    @classmethod
    def of(
        cls,
        laws: Sequence[Law],
        groups: Mapping[int, Sequence[int]],
        columns: int | None = None,
        device: torch.device | str = "cpu",
    ) -> Laws | None:
        """laws: of the first columns, those that are some policy's own; columns: how many there are in all (None: no more).
        groups: column -> the columns of its class readouts. None where nothing but the closed form is asked for.
        """
        if not groups and set(laws) <= {"closed_form"}:
            return None
        count = len(laws) if columns is None else columns

        def those(held: Law) -> torch.Tensor | None:
            marked = [i < len(laws) and laws[i] == held for i in range(count)]
            return torch.tensor(marked, device=device) if any(marked) else None

        widest = max(map(len, groups.values()), default=0)
        # Repeated to the widest: of equal scores the first counts.
        rows = [(list(groups.get(i, [i])) * widest)[:widest] for i in range(count)]
        gated = torch.tensor([i < len(laws) and laws[i] != "closed_form" for i in range(count)], device=device)
        classes = torch.tensor(rows, device=device) if groups else None
        return cls(gated, those("proportional"), classes, those("label_probe"))

    def of_tokens(self, own: torch.Tensor, strength: torch.Tensor, logit_alpha: torch.Tensor) -> TokenLaws:
        """The same by token: own (T,), the column of each; strength and logit_alpha (T,), what its policy says at this layer."""
        gated, shift, strength = self.gated[own], None, strength[:, None]
        if self.proportional is not None:
            scaled = self.proportional[own] & logit_alpha.isfinite()
            shift = torch.where(scaled, logit_alpha, _CERTAIN)[:, None]
        return TokenLaws(
            own[:, None] if self.classes is None else torch.cat([own[:, None], self.classes[own]], 1),
            strength,
            (~gated).float()[:, None],
            strength.masked_fill(gated[:, None], 0.0),
            shift,
        )


_CERTAIN = 1e30  # σ of it is 1, and an excess of -inf stays so beside it


@dataclass(frozen=True, eq=False)
class TokenLaws:
    """`Laws` of T tokens: columns (T, 1 + C), the own one and its classes'; length (the strength), closed (1 or 0), shut (what is moved
    where the gate is) and shift (z − excess where proportional), all (T, 1). Made once for all passes over the same requests' next tokens.
    """

    columns: torch.Tensor
    length: torch.Tensor
    closed: torch.Tensor
    shut: torch.Tensor
    shift: torch.Tensor | None

    def pull_(self, excess: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Overwrites the excess z − logit α (T, P) with how far each token goes against the step of each column. Branch-free.

        In the columns of class readouts the excess is their score; a largest one that is not finite makes what it decides NaN. Returns
        whether each token's gate is open and which of its classes is the largest, both (T, 1).

        One length per token, put into one column: between two layers the number of operations is what costs, not their size.
        """
        found = excess.gather(1, self.columns)
        over, length = found[:, :1], self.length
        opened = over > 0
        if self.shift is not None:
            length = length * (over + self.shift).sigmoid_()
        if found.shape[1] > 1:
            top, best = found[:, 1:].max(-1, keepdim=True)
            at = self.columns[:, 1:].gather(1, best)
        else:
            top, best, at = over, opened, self.columns
        # What has the closed form has no classes: top is its excess. Elsewhere only what is not finite is left of it.
        amount = torch.where(opened, torch.addcmul(length, top, self.closed), self.shut)
        excess.zero_().scatter_(1, at, amount)
        return opened, best


def move(hidden: torch.Tensor, amount: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """h + amount · ũ, computed in float32 and returned in the dtype of `hidden`. hidden (..., d), amount (...,), step (d,)."""
    return (hidden.float() + amount.unsqueeze(-1) * step.float()).to(hidden.dtype)
