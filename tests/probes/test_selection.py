from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from merasteer.errors import InvalidInput
from merasteer.probes import LayerScore, Selection, fit_contrast, fit_layer, probe_rows, select
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
    assert (none.scores[0].auroc, none.scores[0].gain) == (None, 0.0)  # right answers alone: nothing to tell from them
    with pytest.raises(InvalidInput, match="score"):
        select(planted.activations, wrong, logistic, score="luck")  # type: ignore[arg-type]


@pytest.mark.parametrize("fitter", [fit_layer, fit_contrast])
def test_layers_judged_by_rmse_have_an_auroc_beside_it_that_decides_nothing(planted, fitter) -> None:
    wrong = (planted.target > 0.5).astype(float)
    without = select(planted.activations, planted.target, fitter)
    found = select(planted.activations, planted.target, fitter, wrong=wrong)
    assert [score.auroc for score in without.scores] == [None] * 3
    assert [replace(score, auroc=None) for score in found.scores] == list(without.scores)
    assert [score.judged_by for score in found.scores] == ["rmse"] * 3
    areas = [score.auroc for score in found.scores]
    assert areas[0] > areas[2] > 0.8
    assert areas[1] == pytest.approx(0.5, abs=0.12)
    # The plain oracle, on one layer: every repeat fitted and ranked by hand.
    by_hand = []
    for fit, held in held_out_splits(400):
        x = planted.activations[:, 2].double().numpy()
        w, b = fitter(x[fit], planted.target[fit])
        z = x[held] @ w + b
        high, low = z[wrong[held] == 1], z[wrong[held] == 0]
        by_hand.append((high[:, None] > low[None]).mean())
    assert areas[2] == pytest.approx(np.mean(by_hand))


def test_no_auroc_where_no_repeat_holds_out_both_kinds(planted) -> None:
    always = select(planted.activations, planted.target, fit_layer, wrong=np.ones(400))
    assert [score.auroc for score in always.scores] == [None] * 3
    assert always.active == (0, 2)
    for wrong in (planted.target, np.zeros(3)):
        with pytest.raises(InvalidInput, match="wrong"):
            select(planted.activations, planted.target, fit_layer, wrong=wrong)


def test_active_layers_are_ranked_and_the_middle_one_of_two_is_the_better() -> None:
    def selection(rmse: list[float], idle: set[int]) -> Selection:
        rows = enumerate(rmse)
        return Selection(tuple(LayerScore(i, value, 2.0, 0.1, i in idle, 1.0 - value / 9) for i, value in rows))

    five = selection([1.5, 0.2, 1.1, 1.0, 1.2], {1})
    assert five.ranked == (3, 2, 4, 0)
    assert (five.report_layer, five.median, five.worst) == (3, 2, 0)
    three = selection([1.5, 0.2, 1.1, 1.0, 1.2], {1, 4})
    assert (three.report_layer, three.median, three.worst) == (3, 2, 0)
    assert selection([1.0, 1.0], set()).ranked == (0, 1)
    assert (five.active, three.active) == ((0, 2, 3, 4), (0, 2, 3))
    none = selection([1.0, 1.0], {0, 1})
    assert (none.ranked, none.report_layer, none.median, none.worst) == ((), None, None, None)
    areas = Selection(
        tuple(LayerScore(i, 1.0, 1.0, 0.0, False, area, "auroc") for i, area in enumerate([0.6, 0.9, 0.7]))
    )
    assert (areas.ranked, areas.median) == ((1, 2, 0), 2)


def test_probe_rows_name_every_layer_and_say_null_where_nothing_is_known(planted) -> None:
    rows = probe_rows(select(planted.activations, planted.target, fit_layer), "residual", "error")
    assert [(row["hook_point"], row["readout"], row["layer"], row["auroc"]) for row in rows] == [
        ("residual", "error", layer, None) for layer in range(3)
    ]
    wrong = (planted.target > 0.5).astype(float)
    told = probe_rows(select(planted.activations, planted.target, fit_layer, wrong=wrong), "residual", "error")
    keys = {"hook_point", "readout", "layer", "rmse", "dummy_rmse", "auroc", "standard_error", "idle"}
    assert [set(row) for row in rows + told] == [keys] * 6
    assert told[0]["auroc"] > 0.8


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
