from __future__ import annotations

import numpy as np
import pytest
import torch

from merasteer.errors import InvalidInput
from merasteer.method.steering import coefficient, move, readout
from merasteer.probes import (
    additive_vectors,
    contrastive_probes,
    contrastive_vectors,
    directions,
    fit_probes,
    steering_vectors,
)
from merasteer.probes.directions import contrast, covariance_times
from merasteer.probes.fitting import Probes
from merasteer.types import CLOSED_FORM, CONTRASTIVE, Direction, SteeringVectors


def vectors_of(planted, name: Direction) -> SteeringVectors:
    probes = (contrastive_probes if name in CONTRASTIVE else fit_probes)(planted.activations, planted.target)
    return directions("residual", planted.activations, probes, [0, 2], 0, [name])[name]


@pytest.mark.parametrize("name", CLOSED_FORM)
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.7])
def test_every_direction_lands_exactly_on_alpha(planted, name: Direction, alpha: float) -> None:
    """σ(w·h' + b) = α within 1e-5 where the readout was above, and h untouched where it was not."""
    vectors = vectors_of(planted, name)
    logit_alpha = torch.logit(torch.tensor(alpha))
    for layer in vectors.active_layers:
        h = planted.activations[:, layer]
        z = readout(h, vectors.weight[layer], vectors.bias[layer])
        moved = move(h, coefficient(z, logit_alpha), vectors.step[layer])
        again = torch.sigmoid(readout(moved, vectors.weight[layer], vectors.bias[layer]))
        above = z > logit_alpha
        assert above.any()
        assert (again[above] - alpha).abs().max() < 1e-5
        assert torch.equal(moved[~above], h[~above])


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_readouts_point_at_error_and_steps_away_from_it(planted, name: Direction) -> None:
    vectors = vectors_of(planted, name)
    for layer in (0, 2):
        assert float(vectors.weight[layer].double() @ torch.from_numpy(planted.true)) > 0
        assert float(vectors.weight[layer].double() @ vectors.step[layer].double()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("kind", ["contrastive", "logistic"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_planted_direction_of_known_sign_is_pointed_at(planted, kind: str, sign: float) -> None:
    """Error lies along sign · `true`: the readout rises that way, and the step of the closed form goes the other."""
    target = sign * planted.target
    if kind == "logistic":
        probes = fit_probes(planted.activations, (target > 0.5).astype(float), "logistic")
        names: list[Direction] = ["euclidean", "covariance"]
    else:
        probes, names = contrastive_probes(planted.activations, target), ["contrastive", "contrastive_covariance"]
    away = torch.from_numpy(sign * planted.true)
    found = directions("residual", planted.activations, probes, [0, 2], 0, names)
    assert list(found) == names
    for vectors in found.values():
        assert vectors.active_layers == (0, 2)
        for layer in (0, 2):
            h = planted.activations[:, layer]
            z = readout_of(vectors, layer, h)
            assert float(vectors.weight[layer].double() @ away) > 0
            assert np.corrcoef(z.numpy(), target)[0, 1] > 0.6
            moved = move(h, coefficient(z, torch.tensor(-1.0)), vectors.step[layer])
            shift = (moved - h).double() @ away
            assert (shift <= 0).all()
            assert (shift < 0).any()
            assert (readout_of(vectors, layer, moved) <= -1.0 + 1e-4).all()


def readout_of(vectors: SteeringVectors, layer: int, h: torch.Tensor) -> torch.Tensor:
    return readout(h, vectors.weight[layer], vectors.bias[layer])


def test_covariance_step_recovers_the_direction_that_the_error_moves_along(planted) -> None:
    """h = error · true + noise: Σw is close to `true` though w itself bends away from high-variance noise."""
    step = vectors_of(planted, "covariance").step[0].numpy()
    shortest = vectors_of(planted, "euclidean").step[0].numpy()
    cosine = [float(v @ planted.true / np.linalg.norm(v)) for v in (step, shortest)]
    assert cosine[0] > 0.95
    assert cosine[0] > cosine[1]


def test_covariance_times_equals_the_library_covariance() -> None:
    from sklearn.covariance import ledoit_wolf

    generator = np.random.default_rng(0)
    for n, d in ((200, 12), (20, 60)):
        x, w = generator.normal(size=(n, d)) @ generator.normal(size=(d, d)), generator.normal(size=d)
        np.testing.assert_allclose(covariance_times(x, w), ledoit_wolf(x)[0] @ w, rtol=1e-9)


def test_contrastive_covariance_reads_by_the_contrast_and_moves_along_its_covariance(planted) -> None:
    """u = Σw with the library's Σ: of all steps that change z by one, none has a smaller vᵀΣ⁻¹v."""
    from sklearn.covariance import ledoit_wolf

    vectors, plain = vectors_of(planted, "contrastive_covariance"), vectors_of(planted, "contrastive")
    assert torch.equal(vectors.weight, plain.weight)
    assert torch.equal(vectors.bias, plain.bias)
    for layer in (0, 2):
        sigma = ledoit_wolf(planted.activations[:, layer].double().numpy())[0]
        w = vectors.weight[layer].double().numpy()
        np.testing.assert_allclose(vectors.step[layer].numpy(), sigma @ w / (w @ sigma @ w), rtol=1e-4, atol=1e-7)
        costs = [float(v @ np.linalg.solve(sigma, v)) for v in (vectors.step[layer].numpy(), plain.step[layer].numpy())]
        assert costs[0] < costs[1]


def test_fixed_strength_steps_are_unit_readouts_and_differences_of_means(planted) -> None:
    """Both point at error like the readouts, so a positive strength, which subtracts, lowers what is predicted."""
    vectors = vectors_of(planted, "covariance")
    layers = planted.activations.double().numpy().swapaxes(0, 1)
    raw = torch.from_numpy(np.stack([contrast(x, planted.target) for x in layers])).float()
    for moved in (additive := additive_vectors(vectors), difference := contrastive_vectors(vectors, raw)):
        assert torch.equal(moved.weight, vectors.weight)
        assert (moved.hook_point, moved.report_layer) == (vectors.hook_point, vectors.report_layer)
        assert not moved.step[1].any()
        assert (moved.step[[0, 2]].double() @ torch.from_numpy(planted.true) > 0).all()
    for layer in (0, 2):
        w = vectors.weight[layer]
        torch.testing.assert_close(additive.step[layer], w / w.norm())
        assert torch.equal(difference.step[layer], raw[layer])


def test_contrast_is_high_minus_low_and_never_takes_an_item_twice() -> None:
    x = np.arange(10.0)[:, None]
    assert contrast(x, np.arange(10.0), 2).tolist() == [8.0]
    assert contrast(x, np.arange(10.0), 100).tolist() == [5.0]  # halves of five
    with pytest.raises(InvalidInput, match="top_k"):
        contrast(x[:1], np.zeros(1), 100)


def test_a_contrast_that_points_at_low_error_is_turned_round() -> None:
    """Few extreme items pull the contrast one way while the bulk goes the other: the regression fixes the sign."""
    target = np.concatenate([[-5.0], np.linspace(-1, 1, 98), [5.0]])
    x = np.stack([target.copy(), np.zeros(100)], axis=1)
    x[0], x[-1] = [0.2, 0.0], [-0.2, 0.0]
    probes = contrastive_probes(torch.from_numpy(x[:, None, :]).float(), target, top_k=1)
    assert float(probes.weight[0, 0]) > 0


def test_directions_that_fail_are_idle_layers_not_errors(planted) -> None:
    probes = fit_probes(planted.activations, planted.target)
    u = probes.weight.double().clone()
    u[0] *= -1  # w·u < 0
    vectors = steering_vectors("residual", probes, u, [0, 2], 0)
    assert vectors is not None
    assert vectors.active_layers == (2,)
    assert vectors.report_layer == 2
    assert not vectors.step[[0, 1]].any()
    assert steering_vectors("residual", probes, -u, [2], 2) is None
    zero = Probes(torch.zeros(3, 24), torch.ones(3))
    assert directions("residual", planted.activations, zero, [0, 1, 2], 0, ["euclidean", "covariance"]) == {}
    with pytest.raises(InvalidInput, match="sideways"):
        directions("residual", planted.activations, probes, [0], 0, ["sideways"])  # type: ignore[list-item]
