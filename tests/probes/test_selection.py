from __future__ import annotations

import numpy as np
import pytest
import torch

from merasteer.errors import InvalidInput
from merasteer.probes import fit_contrast, fit_layer, select
from merasteer.probes.selection import held_out_splits


def test_noise_layers_are_idle_and_the_best_layer_reports(planted) -> None:
    for fitter in (fit_layer, fit_contrast):
        selection = select(planted.activations, planted.target, fitter)
        assert selection.active == (0, 2)
        assert selection.report_layer == 0
        assert selection.scores[0].gain > selection.scores[2].gain > selection.scores[2].standard_error


def test_most_layers_of_noise_are_idle() -> None:
    """Under the null a layer passes one corrected standard error about one time in six at worst; ridge does better."""
    generator = np.random.default_rng(5)
    selection = select(
        torch.from_numpy(generator.normal(size=(200, 60, 16))).float(), generator.normal(size=200), fit_layer
    )
    assert len(selection.active) <= 10


def test_a_target_without_variance_leaves_every_layer_idle() -> None:
    x = torch.randn(60, 3, 8, generator=torch.Generator().manual_seed(0))
    selection = select(x, np.full(60, 2.0), fit_layer)
    assert selection.active == ()
    assert selection.report_layer is None


def test_scores_are_dicts_of_plain_numbers(planted) -> None:
    rows = select(planted.activations, planted.target, fit_layer).as_dicts()
    assert [set(row) for row in rows] == [{"layer", "rmse", "dummy_rmse", "standard_error", "idle"}] * 3
    assert [row["layer"] for row in rows] == [0, 1, 2]
    assert all(type(row["rmse"]) is float and type(row["idle"]) is bool for row in rows)


def test_splits_are_disjoint_seeded_and_need_items() -> None:
    for fit, held in held_out_splits(50, 4):
        assert len(held) == 10
        assert sorted([*fit, *held]) == list(range(50))
    same = [np.array_equal(a[1], b[1]) for a, b in zip(held_out_splits(50), held_out_splits(50, seed=0), strict=True)]
    other = [np.array_equal(a[1], b[1]) for a, b in zip(held_out_splits(50), held_out_splits(50, seed=1), strict=True)]
    assert all(same)
    assert not any(other)
    with pytest.raises(InvalidInput, match="too few"):
        held_out_splits(3)
