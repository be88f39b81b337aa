from __future__ import annotations

import numpy as np
import pytest
import torch

from merasteer.errors import InvalidInput
from merasteer.probes import FAMILIES, fit_layer, fit_probes
from merasteer.probes.fitting import Family


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "logistic"])
def test_a_planted_readout_is_recovered_with_its_sign_and_bias(family: Family) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(600, 10)) * 5 + 3
    true = np.array([2.0, -1.0, 0.5] + [0.0] * 7)
    w, b = fit_layer(x, x @ true - 4.0 + generator.normal(size=600) * 0.01, family)
    np.testing.assert_allclose(w, true, atol=0.02)
    assert b == pytest.approx(-4.0, abs=0.15)


def test_a_logistic_probe_recovers_odds_of_being_wrong_with_their_sign_and_bias() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(4000, 6)) * 5 + 3
    z = x @ np.array([0.4, -0.2, 0.0, 0.0, 0.0, 0.0]) - 1.5
    wrong = (generator.uniform(size=4000) < 1 / (1 + np.exp(-z))).astype(np.float64)
    w, b = fit_layer(x, wrong, "logistic")
    np.testing.assert_allclose(w, [0.4, -0.2, 0, 0, 0, 0], atol=0.04)
    assert b == pytest.approx(-1.5, abs=0.2)
    said = 1 / (1 + np.exp(-(x @ w + b)))
    assert said.mean() == pytest.approx(wrong.mean(), abs=0.01)  # the intercept is not shrunk
    for low in (0.1, 0.3, 0.5, 0.7):
        here = (said > low) & (said < low + 0.2)
        assert wrong[here].mean() == pytest.approx(said[here].mean(), abs=0.06)


def test_a_logistic_probe_minimises_the_penalised_log_loss() -> None:
    """The plain oracle: no small move of any coefficient lowers the mean log loss plus the L1 penalty."""
    from merasteer.probes.fitting import _logistic_at

    generator = np.random.default_rng(4)
    x = generator.normal(size=(300, 8))
    y = (x[:, 0] + generator.logistic(size=300) > 0.5).astype(np.float64)
    w, b = _logistic_at(x, y, 0.02)

    def loss(w: np.ndarray, b: float) -> float:
        z = x @ w + b
        return float(np.mean(np.logaddexp(0, z) - y * z) + 0.02 * np.abs(w).sum())

    assert (w == 0).any()
    for i in range(9):
        for move in (-0.02, 0.02):
            moved = w + move * (np.arange(8) == i), b + move * (i == 8)
            assert loss(*moved) > loss(w, b) - 1e-6


def test_a_logistic_probe_of_one_outcome_is_its_share_and_of_numbers_is_refused() -> None:
    x = np.random.default_rng(0).normal(size=(20, 3))
    w, b = fit_layer(x, np.zeros(20), "logistic")
    assert not w.any()
    assert b == pytest.approx(np.log(0.025 / 0.975))
    with pytest.raises(InvalidInput, match="right and wrong"):
        fit_layer(x, np.linspace(0, 1, 20), "logistic")


@pytest.mark.parametrize(("n", "d"), [(80, 20), (40, 200)])
def test_ridge_equals_sklearn_at_the_penalty_it_chose(n: int, d: int) -> None:
    """The plain oracle: some penalty of the grid, solved by another library, gives the same readout."""
    from sklearn.linear_model import Ridge

    from merasteer.probes.fitting import RIDGE_GRID

    generator = np.random.default_rng(1)
    x = generator.normal(size=(n, d)) * generator.uniform(0.1, 10, size=d)
    y = x[:, 0] + generator.normal(size=n)
    w, b = fit_layer(x, y)
    standard = (x - x.mean(0)) / x.std(0)
    solved = [Ridge(alpha=p * n).fit(standard, y) for p in RIDGE_GRID]
    gaps = [np.abs(m.coef_ / x.std(0) - w).max() for m in solved]
    best = solved[int(np.argmin(gaps))]
    assert min(gaps) < 1e-8
    np.testing.assert_allclose(standard @ best.coef_ + best.intercept_, x @ w + b, atol=1e-8)


def test_ridge_shrinks_noise_away_and_keeps_signal() -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(size=(300, 100))
    noise, _ = fit_layer(x, generator.normal(size=300))
    signal, _ = fit_layer(x, x[:, 0] * 3 + generator.normal(size=300) * 0.1)
    assert np.linalg.norm(noise) < 0.3
    assert signal[0] == pytest.approx(3, abs=0.1)


def test_constant_inputs_and_constant_targets_give_finite_zeros() -> None:
    x = np.random.default_rng(3).normal(size=(50, 4))
    x[:, 2] = 7.0
    w, _ = fit_layer(x, x[:, 0])
    assert w[2] == 0.0
    assert np.isfinite(w).all()
    w, b = fit_layer(x, np.full(50, 1.5))
    np.testing.assert_allclose(w, 0.0, atol=1e-12)
    assert b == pytest.approx(1.5)


def test_layers_are_independent_and_predict_their_target(planted) -> None:
    probes = fit_probes(planted.activations, planted.target)
    z = probes.predict(planted.activations)
    assert z.shape == (400, 3)
    correlation = [np.corrcoef(z[:, layer].numpy(), planted.target)[0, 1] for layer in range(3)]
    assert correlation[0] > 0.9
    assert correlation[2] > 0.75
    w, b = fit_layer(planted.activations[:, 2].double().numpy(), planted.target)
    torch.testing.assert_close(probes.weight[2], torch.from_numpy(w).float())
    assert probes.bias[2].item() == pytest.approx(b, rel=1e-6)


def test_wrong_shapes_and_families_are_refused() -> None:
    with pytest.raises(InvalidInput, match="activations"):
        fit_probes(torch.zeros(3, 2, 4), np.zeros(4))
    with pytest.raises(InvalidInput, match="family"):
        fit_layer(np.zeros((3, 2)), np.zeros(3), "forest")  # type: ignore[arg-type]
