from __future__ import annotations

import numpy as np
import pytest
import torch

from merasteer.errors import InvalidInput
from merasteer.probes import CLIP, class_probabilities, class_scores, error_target, errors


def test_class_scores_take_the_largest_variant() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0, 4.0], [3.0, 0.0, 9.0, 1.0]])
    assert class_scores(logits, [(0, 1), (2, 3)]).tolist() == [[5.0, 4.0], [3.0, 9.0]]


def test_class_probabilities_are_a_softmax_over_classes_only() -> None:
    q = class_probabilities(torch.tensor([[0.0, 0.0], [torch.log(torch.tensor(3.0)), 0.0]]))
    torch.testing.assert_close(q, torch.tensor([[0.5, 0.5], [0.75, 0.25]]))


def test_error_is_one_minus_the_true_class_and_one_when_missing() -> None:
    q = [[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]
    np.testing.assert_allclose(errors(q, [0, 1, 0], [True, True, False]), [0.1, 0.9, 1.0])
    np.testing.assert_allclose(errors(q, [0, 1, 0]), [0.1, 0.9, 0.1])


def test_target_is_clipped_and_odd() -> None:
    ends = error_target([0.0, 1e-9, CLIP, 0.5, 1 - CLIP, 1.0])
    assert ends[0] == ends[1] == ends[2] == pytest.approx(-np.log(99))
    assert ends[3] == 0.0
    assert ends[5] == pytest.approx(-ends[0])


@pytest.mark.parametrize(("labels", "answered"), [([0], None), ([0, 2], None), ([-1, 0], None), ([0, 1], [True])])
def test_shapes_and_labels_are_checked(labels: list[int], answered: list[bool] | None) -> None:
    with pytest.raises(InvalidInput):
        errors([[0.5, 0.5], [0.5, 0.5]], labels, answered)


def test_the_clip_keeps_the_mean_predicted_error_honest() -> None:
    """With 30 % of E = 1 a mean predictor on the logit scale says .34 at the clip of .01 and .89 at 1e-6."""
    e = np.array([1.0] * 30 + [0.1] * 70)

    def mean_predicted(clip: float) -> float:
        return float(1 / (1 + np.exp(-error_target(e, clip).mean())))

    assert mean_predicted(CLIP) < 0.5 < mean_predicted(1e-6)
