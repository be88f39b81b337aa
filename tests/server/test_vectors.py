"""The baselines' steps: unit readouts and contrastive directions, zero where a layer is idle."""

from __future__ import annotations

from typing import Any

import torch
from mera_server.vectors import baseline

from merasteer.types import Artifact

WEIGHT = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
STEERING: dict[str, Any] = {"hook_point": "residual", "direction": "euclidean", "report_layer": 0}


def artifact(contrastive: torch.Tensor | None) -> Artifact:
    return Artifact({"steering": STEERING}, {}, WEIGHT, torch.zeros(3), WEIGHT / 25, contrastive)


def test_additive_is_the_unit_readout() -> None:
    vectors = baseline("additive", artifact(None))
    assert vectors is not None
    assert torch.equal(vectors.step, torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.0, 1.0]]))
    assert torch.equal(vectors.weight, WEIGHT)


def test_contrastive_is_the_difference_of_means_where_active() -> None:
    vectors = baseline("contrastive", artifact(torch.ones(3, 2)))
    assert vectors is not None
    assert torch.equal(vectors.step, torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]))
    assert baseline("contrastive", artifact(None)) is None
