"""Steps, the logit bias and both together on labels drawn at random: what is certified then is certified falsely.

The model is a linear head on cached activations, so a step's answers follow by arithmetic; fitting, ranking and certifying are
the pipeline's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import binomtest

from merasteer.method.scores import apply_logit_bias, fit_logit_bias
from merasteer.method.steering import coefficient, move, readout
from merasteer.pipeline import Options
from merasteer.pipeline.calibrate import Choice, choose
from merasteer.pipeline.fit import thresholds
from merasteer.probes import directions, error_target, errors, fit_probes
from merasteer.store.schema import OWN_METHODS
from merasteer.types import Correction, SteeringVectors

SEEDS, FIT, ORDERING, CALIBRATION, WIDTH = 240, 150, 150, 150, 12
OPTIONS = Options(candidates=OWN_METHODS)

Floats = npt.NDArray[np.float64]


def decided(seed: int, labelled: float | None = None, same_items: bool = False) -> Choice:
    """The choice on one draw. labelled: how often a label is the head's second class whatever the text (None: fair coin)."""
    rng = np.random.default_rng(seed)
    n = FIT + ORDERING + CALIBRATION
    h = torch.from_numpy(rng.normal(size=(n, 1, WIDTH)) * rng.uniform(0.2, 2.0, size=WIDTH)).float()
    head, labels = rng.normal(size=(2, WIDTH)), (rng.random(n) < (labelled or 0.5)).astype(np.int64)
    scores = h[:, 0].double().numpy() @ head.T + np.array([0.3, 0.0])
    fit, ordering = np.arange(FIT), np.arange(FIT, FIT + ORDERING)
    held_out = ordering if same_items else np.arange(FIT + ORDERING, n)
    q = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    target = error_target(errors(q, labels.tolist()))
    probes = fit_probes(h[fit], target[fit])
    found = directions("residual", h[fit], probes, [0], 0)
    bias = fit_logit_bias(scores[fit], labels[fit])
    z = (h[ordering, 0] @ probes.weight[0] + probes.bias[0]).double().numpy()
    steps = [Correction("mera", name, alpha) for name in found for alpha in thresholds(z)]

    def right(one: Correction, items: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        said = scores[items] if one.readout is None else steered(found[one.readout], one.alpha or 0.5, items)
        return np.asarray(apply_logit_bias(said, bias * (one.bias is not None)) == labels[items], dtype=np.bool_)

    def steered(vectors: SteeringVectors, alpha: float, items: npt.NDArray[np.int64]) -> Floats:
        before = h[items, 0]
        amount = coefficient(readout(before, vectors.weight[0], vectors.bias[0]), torch.logit(torch.tensor(alpha)))
        return scores[items] + (move(before, amount, vectors.step[0]) - before).double().numpy() @ head.T

    def unsteered(items: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return np.asarray(scores[items].argmax(1) == labels[items], dtype=np.bool_)

    def gains_of(candidates: Sequence[Correction]) -> list[float]:
        return [float(right(one, ordering).mean() - unsteered(ordering).mean()) for one in candidates]

    def outcomes(one: Correction) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        return unsteered(held_out), right(one, held_out)

    return choose(steps, tuple(bias.tolist()), gains_of, outcomes, OPTIONS, lambda: OPTIONS.delta)


def test_random_labels_are_falsely_certified_no_more_often_than_stated() -> None:
    choices = [decided(seed) for seed in range(SEEDS)]
    tried = [{one.method for one in choice.candidates} for choice in choices]
    assert all(methods == set(OWN_METHODS) for methods in tried)
    ranked_first = {choice.certificate.tested[0].candidate.split("+")[-1].split("/")[0] for choice in choices}
    assert {"logit_bias", "bias"} <= ranked_first  # the new candidates do get tested, not only listed
    assert max(result.gained + result.lost for choice in choices for result in choice.certificate.tested) > 30
    false = sum(choice.certificate.certified for choice in choices)
    assert binomtest(false, SEEDS, OPTIONS.delta, alternative="greater").pvalue > 0.01, f"{false} of {SEEDS}"


def test_the_check_catches_a_choice_made_on_the_items_that_prove_it() -> None:
    false = sum(decided(seed, same_items=True).certificate.certified for seed in range(100))
    assert binomtest(false, 100, OPTIONS.delta, alternative="greater").pvalue < 0.01, f"{false} of 100"


@pytest.mark.parametrize("seed", range(3))
def test_a_bias_that_helps_is_found_and_certified(seed: int) -> None:
    choice = decided(seed, labelled=0.9)
    assert choice.chosen is not None
    assert choice.gains["logit_bias"] > 0.25
