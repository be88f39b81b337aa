"""Scores against closed forms, scikit-learn and exhaustive search."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from merasteer.errors import InvalidInput
from merasteer.method import scores


def test_the_examples_run() -> None:
    assert doctest.testmod(scores).failed == 0


@pytest.mark.parametrize(
    ("steered", "unsteered", "expected"),
    [(0.9, 0.6, 0.75), (1.0, 0.6, 1.0), (0.0, 0.6, -1.0), (0.6, 0.6, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 0.0)],
)
def test_spi(steered: float, unsteered: float, expected: float) -> None:
    assert scores.spi(steered, unsteered) == pytest.approx(expected)


def test_spi_interval_is_the_bootstrap_over_items() -> None:
    rng = np.random.default_rng(0)
    before, after = rng.random(250) < 0.6, rng.random(250) < 0.8
    picks = rng.integers(0, 250, size=(10_000, 250))
    slow = np.quantile(
        [scores.spi(a, b) for a, b in zip(after[picks].mean(1), before[picks].mean(1), strict=True)], [0.025, 0.975]
    )
    assert scores.spi_interval(before, after) == pytest.approx(tuple(slow), abs=0.01)


def test_spi_interval_is_seeded_and_nested() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(100) < 0.6, rng.random(100) < 0.7
    low, high = scores.spi_interval(before, after)
    assert scores.spi_interval(before, after) == (low, high)
    assert (
        low < scores.spi_interval(before, after, level=0.5)[0] < scores.spi_interval(before, after, level=0.5)[1] < high
    )
    assert low < scores.spi(after.mean(), before.mean()) < high


def test_spi_interval_at_the_corners() -> None:
    assert scores.spi_interval([False] * 9, [True] * 9) == (1.0, 1.0)
    assert scores.spi_interval([True] * 9, [False] * 9) == (-1.0, -1.0)


def test_transitions_count_every_item_once() -> None:
    rng = np.random.default_rng(2)
    before, after = rng.random(300) < 0.5, rng.random(300) < 0.7
    counts = scores.transitions(before, after)
    assert sum(counts.values()) == 300
    assert counts["kept_right"] + counts["repaired"] == after.sum()
    assert counts["kept_right"] + counts["broken"] == before.sum()


def test_class_scores_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    labels, predictions = rng.integers(0, 3, 200), rng.integers(-1, 3, 200)
    expected = precision_recall_fscore_support(labels, predictions, labels=[0, 1, 2])[:3]
    for ours, theirs in zip(scores.precision_recall_f1(labels, predictions, 3), expected, strict=True):
        assert ours == pytest.approx(tuple(theirs))
    assert scores.recall(labels, predictions, 3) == pytest.approx(tuple(expected[1]))


def test_a_missing_answer_lowers_recall_only() -> None:
    result = scores.precision_recall_f1([0, 0, 1], [0, -1, 1], 3)
    assert result.precision == (1.0, 1.0, None)
    assert result.recall == (0.5, 1.0, None)
    assert result.f1 == (pytest.approx(2 / 3), 1.0, None)


def test_logit_bias_undoes_a_shift() -> None:
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 600)
    clean = rng.normal(size=(600, 3)) + 4.0 * np.eye(3)[labels]
    shift = np.array([3.0, 0.0, -3.0])
    bias = scores.fit_logit_bias(clean + shift, labels)
    before, after = ((scores.apply_logit_bias(clean + shift, b) == labels).mean() for b in (np.zeros(3), bias))
    assert bias.mean() == pytest.approx(0.0, abs=1e-12)
    assert bias == pytest.approx(-shift, abs=0.7)
    assert before < 0.7 < 0.97 < after


def test_logit_bias_of_two_classes_is_the_best_threshold() -> None:
    """Two classes have one free parameter, so trying every gap finds the optimum."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        raw, labels = rng.normal(size=(60, 2)), rng.integers(0, 2, 60)
        gaps = np.sort(raw[:, 0] - raw[:, 1])
        thresholds = np.concatenate([[gaps[0] - 1], (gaps[1:] + gaps[:-1]) / 2, [gaps[-1] + 1]])
        best = max(((raw[:, 0] - raw[:, 1] < t) == labels).mean() for t in thresholds)
        assert (scores.apply_logit_bias(raw, scores.fit_logit_bias(raw, labels)) == labels).mean() == best


def test_logit_bias_never_loses_on_its_own_items() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        raw, labels = rng.integers(-2, 3, size=(50, 4)).astype(float), rng.integers(0, 4, 50)  # many ties
        bias = scores.fit_logit_bias(raw, labels)
        fitted = (scores.apply_logit_bias(raw, bias) == labels).mean()
        assert fitted >= (scores.apply_logit_bias(raw, np.zeros(4)) == labels).mean()


def test_logit_bias_stays_finite_without_a_class_or_a_choice() -> None:
    bias = scores.fit_logit_bias([[0.0, 1.0, 5.0], [1.0, 0.0, 5.0]], [1, 0])
    assert np.isfinite(bias).all()
    assert scores.apply_logit_bias([[0.0, 1.0, 5.0], [1.0, 0.0, 5.0]], bias).tolist() == [1, 0]
    assert scores.fit_logit_bias([[0.3], [0.1]], [0, 0]).tolist() == [0.0]


def test_error_by_percentile_covers_every_item() -> None:
    rng = np.random.default_rng(5)
    predicted = rng.random(103)
    bins = scores.error_by_percentile(predicted, predicted**2)
    assert sum(b.n for b in bins) == 103
    assert [b.predicted for b in bins] == sorted(b.predicted for b in bins)
    assert sum(b.n * b.error for b in bins) == pytest.approx((predicted**2).sum())
    assert len(scores.error_by_percentile([0.1, 0.2], [0.0, 1.0])) == 2


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda: scores.spi(1.2, 0.5), "steered_accuracy"),
        (lambda: scores.spi_interval([], []), "correct"),
        (lambda: scores.spi_interval([True], [True], level=1.0), "level"),
        (lambda: scores.transitions([True], [True, False]), "correct"),
        (lambda: scores.recall([0, 3], [0, 0], 3), "labels"),
        (lambda: scores.recall([-1], [0], 3), "labels"),
        (lambda: scores.majority_accuracy([]), "labels"),
        (lambda: scores.fit_logit_bias([[np.inf, 0.0]], [0]), "scores"),
        (lambda: scores.fit_logit_bias([[1.0, 0.0]], [2]), "labels"),
        (lambda: scores.error_by_percentile([0.1], [0.1], bins=0), "predicted"),
    ],
)
def test_wrong_values_are_refused_by_name(call, field: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}"):
        call()


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_occur() -> None:
    labels, answers = [0, 0, 0, 1, 2, 2], [0, 0, 1, 1, -1, 2]
    assert scores.balanced_accuracy(labels, answers, 4) == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert scores.balanced_accuracy([0] * 9 + [1], [0] * 10, 2) == 0.5


def test_confusion_counts_every_item_once() -> None:
    labels, answers = [0, 0, 0, 1, 2, 2], [0, 0, 1, 1, -1, 2]
    assert scores.confusion(labels, answers, 3, missing=True) == [[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]
    with pytest.raises(InvalidInput, match="1 are missing"):
        scores.confusion(labels, answers, 3)
    whole = [abs(answer) for answer in answers]
    assert np.array(scores.confusion(labels, whole, 3)).sum() == len(labels)
