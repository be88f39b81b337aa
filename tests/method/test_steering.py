"""The closed form: σ(w·h' + b) = α after every step, whatever the direction; nothing moves at or below α."""

from __future__ import annotations

import pytest
import torch

from merasteer.errors import InvalidInput
from merasteer.method.steering import coefficient, move, readout, unit_step


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    hidden = 3 * torch.randn(500, 64, generator=generator)
    weight = 0.4 * torch.randn(64, generator=generator)
    root = torch.randn(64, 64, generator=generator)
    return hidden, weight, root @ root.T / 64


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("direction", ["euclidean", "covariance", "contrastive"])
def test_the_prediction_equals_alpha_after_the_step(case, alpha, direction):
    hidden, weight, covariance = case
    bias = 0.3
    u = {"euclidean": weight, "covariance": covariance @ weight, "contrastive": weight + 0.2 * torch.roll(weight, 1)}[
        direction
    ]
    logit = torch.logit(torch.tensor(alpha))
    step = unit_step(weight, u)
    z = readout(hidden, weight, bias)
    moved = move(hidden, coefficient(z, logit), step)
    after = torch.sigmoid(readout(moved, weight, bias))
    above = z > logit
    assert above.any()
    assert (~above).any()
    assert (after[above] - alpha).abs().max() < 1e-5
    assert torch.equal(moved[~above], hidden[~above])


def test_at_alpha_nothing_moves():
    assert coefficient(torch.tensor([0.5]), 0.5).item() == 0.0
    assert coefficient(torch.tensor([0.5]), float("inf")).item() == 0.0


def test_euclidean_is_the_shortest_and_covariance_the_least_surprising(case):
    """min ‖v‖² and min vᵀΣ⁻¹v among the steps that reach the same readout."""
    _, weight, covariance = case
    covariance = covariance + 0.1 * torch.eye(64)
    shortest, likeliest = unit_step(weight, weight), unit_step(weight, covariance @ weight)
    inverse = torch.linalg.inv(covariance)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        other = unit_step(weight, weight + 0.5 * torch.randn(64, generator=generator))
        assert shortest.norm() <= other.norm()
        assert likeliest @ inverse @ likeliest <= other @ inverse @ other + 1e-6


def test_a_direction_that_raises_the_error_is_refused():
    with pytest.raises(InvalidInput, match="negate"):
        unit_step(torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0]))


def test_idle_rows_give_zero_steps():
    step = unit_step(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    assert step[0].tolist() == [0.0, 0.0]
    assert step[1].tolist() == [0.5, 0.5]


def test_fixed_strength():
    assert coefficient(torch.tensor([5.0, -5.0]), float("inf"), 0.7).tolist() == pytest.approx([-0.7, -0.7])
