"""The fixed-strength baselines of an artifact: h − λ·w/‖w‖, and h − λ·(the contrastive direction)."""

from __future__ import annotations

from typing import Literal

import torch

from merasteer.types import Artifact, SteeringVectors

__all__ = ["BASELINES", "baseline"]

BASELINES: tuple[Literal["additive", "contrastive"], ...] = ("additive", "contrastive")


def baseline(method: Literal["additive", "contrastive"], artifact: Artifact) -> SteeringVectors | None:
    """The artifact's readouts with the baseline's steps; None where the artifact has no contrastive direction. Idle layers stay put."""
    vectors = artifact.vectors
    if method == "additive":
        norm = vectors.weight.norm(dim=-1, keepdim=True)
        step = torch.where(norm > 0, vectors.weight / torch.where(norm > 0, norm, 1.0), 0.0)
    elif artifact.contrastive is None:
        return None
    else:
        active = vectors.weight.abs().sum(-1, keepdim=True) > 0
        step = torch.where(active, artifact.contrastive, 0.0)
    return SteeringVectors(vectors.hook_point, vectors.weight, vectors.bias, step, vectors.report_layer)
