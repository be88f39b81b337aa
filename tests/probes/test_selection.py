from __future__ import annotations

import numpy as np
import pytest
import torch

from merasteer.errors import InvalidInput
from merasteer.probes import fit_contrast, fit_layer, select
from merasteer.probes.selection import auroc, held_out_splits


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


def logistic(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    return fit_layer(x, y, "logistic")


def test_probes_of_right_and_wrong_are_judged_by_auroc(planted) -> None:
    wrong = (planted.target > 0.5).astype(float)
    selection = select(planted.activations, wrong, logistic, score="auroc")
    assert selection.active == (0, 2)
    assert selection.report_layer == 0
    rows = selection.as_dicts()
    assert [set(row) for row in rows] == [{"layer", "rmse", "dummy_rmse", "standard_error", "idle", "auroc"}] * 3
    areas = [float(row["auroc"]) for row in rows]
    assert areas[0] > areas[2] > 0.8
    assert areas[1] == pytest.approx(0.5, abs=0.12)
    assert selection.scores[0].gain == areas[0] - 0.5
    assert all(0 < row["rmse"] < 1 for row in rows)
    none = select(planted.activations, np.zeros(400), logistic, score="auroc")
    assert none.active == ()
    assert none.scores[0].auroc == 0.5
    with pytest.raises(InvalidInput, match="score"):
        select(planted.activations, wrong, logistic, score="luck")  # type: ignore[arg-type]


def test_most_layers_of_noise_are_idle_for_logistic_probes() -> None:
    """More pass than under RMSE, about one in four: an AUROC of noise lies around ½, and does not pay for overfitting."""
    generator = np.random.default_rng(6)
    x = torch.from_numpy(generator.normal(size=(120, 20, 8))).float()
    selection = select(x, generator.integers(2, size=120).astype(float), logistic, score="auroc")
    assert len(selection.active) <= 10


def test_auroc_equals_the_library_and_counts_ties_half() -> None:
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(1)
    z, wrong = generator.integers(6, size=80).astype(float), generator.integers(2, size=80).astype(float)
    assert auroc(z, wrong) == pytest.approx(roc_auc_score(wrong, z))
    assert auroc(np.zeros(4), np.array([0.0, 1, 1, 0])) == 0.5
    assert auroc(z, np.ones(80)) == 0.5


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
