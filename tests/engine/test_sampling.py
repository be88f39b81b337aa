"""Sampling is a function of (seed, position, token): right in distribution, the same in every batch."""

from __future__ import annotations

import pytest
import torch

from merasteer.engine.sampling import choose, gumbel


def draw(logits: torch.Tensor, n: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """Frequencies (V,) of n draws at n positions under one seed."""
    rows = logits.expand(n, -1)
    full = torch.full((n,), 1.0)
    out = choose(rows, full * temperature, torch.full((n,), top_k), full * top_p, torch.full((n,), 7), torch.arange(n))
    return torch.bincount(out.argmax(-1), minlength=logits.shape[0]) / n


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 0.5])
    truth = (logits / temperature).softmax(-1)
    n = 40_000
    error = 4 * (truth * (1 - truth) / n).sqrt()
    assert ((draw(logits, n, temperature=temperature) - truth).abs() <= error).all()


def test_top_k_and_top_p_restrict_and_renormalise():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0])
    two = draw(logits, 20_000, top_k=2)
    assert two[2:].sum() == 0
    assert two[0] == pytest.approx(logits[:2].softmax(-1)[0].item(), abs=0.02)
    nucleus = draw(logits, 20_000, top_p=0.7)  # .644, .237: the second crosses .7
    assert nucleus[2:].sum() == 0
    assert nucleus[1] > 0
    assert draw(logits, 1000, top_p=1e-9)[0] == 1.0  # never empty


def test_greedy_rows_are_left_alone():
    scores = torch.randn(3, 10)
    out = choose(
        scores,
        torch.tensor([0.0, 1.0, 0.0]),
        torch.zeros(3, dtype=torch.long),
        torch.ones(3),
        torch.arange(3),
        torch.arange(3),
    )
    assert torch.equal(out[0], scores[0])
    assert torch.equal(out[2], scores[2])
    assert torch.isneginf(out[1]).sum() == 9


def test_noise_depends_on_all_three_and_on_nothing_else():
    base = gumbel(torch.tensor([5]), torch.tensor([9]), 64)
    assert torch.equal(base, gumbel(torch.tensor([1, 5]), torch.tensor([2, 9]), 64)[1:])
    assert torch.equal(base[:, :32], gumbel(torch.tensor([5]), torch.tensor([9]), 32))
    for seed, position in [(6, 9), (5, 10), (-5, 9), (2**62, 9)]:
        assert not torch.equal(base, gumbel(torch.tensor([seed]), torch.tensor([position]), 64))


def test_noise_is_standard_gumbel():
    noise = gumbel(torch.arange(500), torch.arange(500), 400).double()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.03)
    correlation = torch.corrcoef(noise[:40])
    assert (correlation - torch.eye(40)).abs().max() < 0.25
