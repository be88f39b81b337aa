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


@pytest.mark.parametrize("top_k", [0, 1, 5, 40, 299, 300, 400])
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("spread", [0.1, 1.0, 12.0])
def test_what_is_not_sorted_is_drawn_as_by_the_definition(top_k, top_p, spread):
    """Flat rows and peaked ones; rounded, so that many scores are equal, also at the borders."""
    scores, seeds = (torch.randn(40, 300) * spread * 4).round() / 4, torch.arange(40)
    scores[::7, 17:] = -torch.inf
    temperature, k, p = torch.full((40,), 0.8), torch.full((40,), top_k), torch.full((40,), top_p)
    ordered, order = (scores.double() / 0.8).sort(dim=-1, descending=True, stable=True)
    ordered[:, top_k or 300 :] = -torch.inf
    mass = ordered.softmax(-1)
    before = mass.cumsum(-1) - mass
    # Where a border falls on a token to within rounding either answer is right.
    clear = ((before - top_p).abs() > 1e-6)[:, 1:].all(-1) if top_p < 1.0 else torch.ones(40, dtype=torch.bool)
    kept = (before < top_p) | (torch.arange(300) == 0)
    noisy = torch.where(kept, ordered + gumbel(seeds, seeds, order), -torch.inf)
    expected = order.gather(1, noisy.argmax(-1, keepdim=True))[:, 0]
    assert clear.sum() >= 30
    assert sampling.draw(scores, temperature, k, p, seeds, seeds)[clear].tolist() == expected[clear].tolist()
    scaled = (scores - scores.amax(-1, keepdim=True)) / 0.8
    assert sampling._by_sorting(scaled, k, p, seeds, seeds)[clear].tolist() == expected[clear].tolist()


def test_a_row_draws_the_same_beside_others():
    scores, seeds = torch.randn(20, 500), torch.arange(20)
    given = (torch.rand(20), torch.randint(0, 9, (20,)), torch.rand(20), seeds, seeds)
    alone = [int(sampling.draw(scores[i, None], *(one[i, None] for one in given))) for i in range(20)]
    assert sampling.draw(scores, *given).tolist() == alone


def test_a_row_that_is_not_finite_ends(monkeypatch):
    """What is drawn of it is nobody's answer; it must come to an end, and its neighbours draw as they do."""
    scores, seeds = torch.randn(4, 50), torch.arange(4)
    clean = sampling.draw(scores, torch.ones(4), seeds, torch.full((4,), 0.9), seeds, seeds)
    scores[1], scores[2], scores[3, 7] = torch.nan, -torch.inf, torch.inf
    spoilt = sampling.draw(scores, torch.ones(4), seeds, torch.full((4,), 0.9), seeds, seeds)
    assert spoilt[0] == clean[0]
    assert ((spoilt >= 0) & (spoilt < 50)).all()


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
