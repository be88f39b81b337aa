"""Sampling is a function of (seed, position, token): right in distribution, the same in every batch."""

from __future__ import annotations

import pytest
import torch

from merasteer.engine import sampling
from merasteer.engine.sampling import gumbel


def draw(logits: torch.Tensor, n: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> torch.Tensor:
    """Frequencies (V,) of n draws at n positions under one seed."""
    rows = logits.expand(n, -1)
    full = torch.full((n,), 1.0)
    found = sampling.draw(
        rows, full * temperature, torch.full((n,), top_k), full * top_p, torch.full((n,), 7), torch.arange(n)
    )
    return torch.bincount(found, minlength=logits.shape[0]) / n


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


def test_greedy_rows_take_the_largest_and_no_temperature_is_too_low():
    scores = torch.randn(4, 10)
    temperature = torch.tensor([0.0, 1.0, 1e-45, 0.0])
    found = sampling.draw(
        scores, temperature, torch.tensor([0, 1, 0, 3]), torch.ones(4), torch.arange(4), torch.arange(4)
    )
    assert found.tolist() == scores.argmax(-1).tolist()


def test_what_is_left_out_on_a_cpu_changes_nothing():
    """Without top-k and top-p nothing is sorted; with them noise is made for what is kept alone: the same tokens as in full."""
    scores, seeds = torch.randn(50, 300), torch.arange(50)
    full, wide = torch.full((50,), 0.8), torch.full((50,), 300)
    plain = sampling.draw(scores, full, torch.zeros(50, dtype=torch.long), torch.ones(50), seeds, seeds)
    sorted_ = sampling.draw(scores, full, wide, torch.ones(50), seeds, seeds)
    assert plain.tolist() == sorted_.tolist()
    noisy = scores / 0.8 + gumbel(seeds, seeds, torch.arange(300))
    narrow = scores.topk(5, dim=-1).indices
    expected = narrow.gather(1, noisy.gather(1, narrow).argmax(-1, keepdim=True))[:, 0]
    assert sampling.draw(scores, full, torch.full((50,), 5), torch.ones(50), seeds, seeds).tolist() == expected.tolist()


def test_noise_depends_on_all_three_and_on_nothing_else():
    base = gumbel(torch.tensor([5]), torch.tensor([9]), torch.arange(64))
    assert torch.equal(base, gumbel(torch.tensor([1, 5]), torch.tensor([2, 9]), torch.arange(64))[1:])
    assert torch.equal(base[:, :32], gumbel(torch.tensor([5]), torch.tensor([9]), torch.arange(32)))
    for seed, position in [(6, 9), (5, 10), (-5, 9), (2**62, 9)]:
        assert not torch.equal(base, gumbel(torch.tensor([seed]), torch.tensor([position]), torch.arange(64)))


def test_noise_is_standard_gumbel():
    noise = gumbel(torch.arange(500), torch.arange(500), torch.arange(400)).double()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(torch.pi**2 / 6, abs=0.03)
    correlation = torch.corrcoef(noise[:40])
    assert (correlation - torch.eye(40)).abs().max() < 0.25
