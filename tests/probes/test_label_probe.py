"""The label probe: finds the layer that knows, agrees with scikit-learn there, and stays sound where there is little to learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from merasteer.errors import InvalidInput
from merasteer.probes import LabelProbe, fit_label_probe

N, L, D = 400, 4, 12


def world(classes: int, knows: int = 2, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Activations of which one layer holds the label, the others a little of it; on scales far apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, N)
    rows = rng.normal(size=(N, L, D))
    for layer in range(L):
        rows[:, layer, :classes] += (2.5 if layer == knows else 0.4) * np.eye(classes)[labels]
    return torch.from_numpy(rows * 10.0 ** rng.integers(-2, 3, D) + 5.0).float(), labels


@pytest.mark.parametrize("classes", [2, 4])
def test_it_takes_the_layer_that_knows_and_generalises(classes: int) -> None:
    rows, labels = world(classes)
    fitting, held = np.arange(0, 300), np.arange(300, N)
    probe = fit_label_probe({"residual": rows[:, :2], "mlp_input": rows}, labels, fitting, classes)
    assert (probe.hook_point, probe.layer) == ("mlp_input", 2)
    assert (tuple(probe.weight.shape), tuple(probe.bias.shape)) == ((classes, D), (classes,))
    right = (probe.predict(rows[held, 2]).numpy() == labels[held]).mean()
    x = (rows[:, 2] - rows[fitting, 2].mean(0)) / rows[fitting, 2].std(0)
    theirs = LogisticRegression().fit(x[fitting], labels[fitting]).score(x[held], labels[held])
    assert right > max(theirs - 0.04, 0.75)


def test_scores_are_log_probabilities_up_to_a_constant() -> None:
    rows, labels = world(2)
    probe = fit_label_probe({"residual": rows}, labels, np.arange(N), 2)
    said = torch.softmax(probe.scores(rows[:, probe.layer]), -1)[:, 1].numpy()
    for low, high in ((0.0, 0.2), (0.2, 0.8), (0.8, 1.0)):
        inside = (said >= low) & (said < high)
        assert labels[inside].mean() == pytest.approx(said[inside].mean(), abs=0.12)


def test_only_the_given_items_are_looked_at_and_equal_seeds_give_equal_bits() -> None:
    rows, labels = world(3)
    fitting = np.arange(0, N, 2)
    first = fit_label_probe({"residual": rows}, labels, fitting, 3, seed=4)
    changed, other = rows.clone(), labels.copy()
    changed[1::2], other[1::2] = 0.0, 0
    second = fit_label_probe({"residual": changed}, other, fitting, 3, seed=4)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)


def test_a_class_that_no_item_has_is_never_read_and_one_alone_always() -> None:
    rows, labels = world(2)
    probe = fit_label_probe({"residual": rows}, labels + 1, np.arange(N), 4)
    assert set(probe.predict(rows[:, probe.layer]).tolist()) == {1, 2}
    alone = fit_label_probe({"residual": rows}, np.full(N, 2), np.arange(N), 3)
    assert set(alone.predict(rows[:, alone.layer]).tolist()) == {2}


def test_a_rare_class_and_constant_inputs_are_no_trouble() -> None:
    rows, labels = world(2)
    rows[:, :, -1] = 3.0
    labels[:] = 0
    labels[7] = 1
    probe = fit_label_probe({"residual": rows}, labels, np.arange(N), 2)
    assert bool(torch.isfinite(probe.weight).all())
    assert (probe.predict(rows[:, probe.layer]) == 0).float().mean() > 0.95


def test_shapes_and_values_are_checked() -> None:
    with pytest.raises(InvalidInput, match="do not agree"):
        LabelProbe("residual", 0, torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(InvalidInput, match="not finite"):
        LabelProbe("residual", 0, torch.full((2, 3), torch.nan), torch.zeros(2))
