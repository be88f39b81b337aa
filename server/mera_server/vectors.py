"""The fixed-strength baselines of an artifact: h − λ·w/‖w‖, and h − λ·(the contrastive direction)."""

from __future__ import annotations

from typing import Literal

from merasteer.probes import additive_vectors, contrastive_vectors
from merasteer.types import Artifact, SteeringVectors

__all__ = ["BASELINES", "baseline"]

BASELINES: tuple[Literal["additive", "contrastive"], ...] = ("additive", "contrastive")


def baseline(method: Literal["additive", "contrastive"], artifact: Artifact) -> SteeringVectors | None:
    """The artifact's readouts with the baseline's steps; None where the artifact has no contrastive direction. Idle layers stay put."""
    if method == "additive":
        return additive_vectors(artifact.vectors)
    return None if artifact.contrastive is None else contrastive_vectors(artifact.vectors, artifact.contrastive)
