"""Choosing the next token per request, reproducibly: temperature, top-k, top-p, then Gumbel noise from a counter-based generator.

The noise is a pure function of (seed, absolute position, token id), so a request draws the same tokens whatever batch it is in,
and again after its cache was evicted and recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Draws", "draw", "gumbel"]


def _signed(constant: int) -> int:
    return constant - 2**64 if constant >= 2**63 else constant


# splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014), in wrapping int64 arithmetic
_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def gumbel(seed: torch.Tensor, position: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise (R, N) float32 for int64 seeds and absolute positions, each (R,), at token ids (N,) or (R, N)."""
    key = _mix(_mix(seed.long() + _GOLDEN) + position.long() * _GOLDEN)
    bits = _shift_right(_mix(key[:, None] + (tokens + 1) * _GOLDEN), 11)  # 53 random bits
    uniform = (bits.double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log().float()


def draw(
    scores: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    seed: torch.Tensor,
    position: torch.Tensor,
) -> torch.Tensor:
    """The token that each row (R, V) draws, (R,); the likeliest where its temperature is 0.

    temperature, top_k (0: off), top_p (1: off), seed, position: (R,). position is that of the token being chosen. The largest score is
    subtracted before dividing, so that no temperature is too low. Tokens are ranked by score, equal ones by number; top-k keeps the
    first k, top-p of these the fewest that together have p, and never none. Of what is kept the largest sum of score and noise is drawn.
    """
    best, samples = scores.argmax(-1), temperature > 0
    if scores.device.type != "cpu":
        scaled = (scores - scores.amax(-1, keepdim=True)) / torch.where(samples, temperature, 1.0)[:, None]
        return torch.where(samples, _by_sorting(scaled, top_k, top_p, seed, position), best)
    for row in samples.nonzero()[:, 0].tolist():
        scaled = (scores[row] - scores[row, best[row]]) / temperature[row]
        best[row] = _by_rejecting(scaled, int(top_k[row]), float(top_p[row]), seed[row, None], position[row, None])
    return best


def _by_sorting(
    scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor, seed: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """What rows (R, V) draw, by the definition. Shapes are static: it can be captured."""
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(scaled.shape[-1], device=scaled.device)[None]
    ordered = ordered.masked_fill(rank >= torch.where(top_k > 0, top_k, scaled.shape[-1])[:, None], float("-inf"))
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    ordered = ordered.masked_fill((before >= top_p[:, None]) & (rank > 0), float("-inf"))
    return order.gather(1, (ordered + gumbel(seed, position, order)).argmax(-1, keepdim=True))[:, 0]


def _by_rejecting(
    scaled: torch.Tensor, top_k: int, top_p: float, seed: torch.Tensor, position: torch.Tensor
) -> torch.Tensor:
    """The same of one row (V,), without sorting it: of 128,000 tokens that takes five times as long. seed, position: (1,).

    What has the largest sum among all tokens is drawn if top-k and top-p keep it. If not, they keep none that ranks behind it either:
    these are taken out, and the next largest is looked at. That halves what is left each time, on average.
    """
    tokens, mass = torch.arange(scaled.shape[0]), scaled.exp()
    total = mass.sum()
    if 0 < top_k < scaled.shape[0]:
        first = scaled.topk(top_k, sorted=False).values
        total, outside = first.exp().sum(), scaled < first.min()
    elif top_p < 1.0:
        # All tokens left out have less than 1 − p together: what is kept is among the others.
        outside = mass < 0.5 * (1.0 - top_p) * total / scaled.shape[0]
    else:
        return (scaled + gumbel(seed, position, tokens)[0]).argmax()
    tokens = (~outside).nonzero()[:, 0]  # never none, not even of numbers that are not finite
    scaled, mass = scaled[tokens], mass[tokens]
    noisy = scaled + gumbel(seed, position, tokens)[0]
    while True:
        at = int(noisy.argmax())
        before = scaled > scaled[at]
        before[:at] |= scaled[:at] == scaled[at]
        ahead = int(before.sum())
        if ahead == 0 or ((not 0 < top_k <= ahead) and bool((mass * before).sum() < top_p * total)):
            return tokens[at]
        noisy = noisy.masked_fill(~before, float("-inf"))


@dataclass(frozen=True, eq=False)
class Draws:
    """Each slot's sampling: temperature 0 is greedy; top_k 0 and top_p 1 do nothing. All (S,)."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    seed: torch.Tensor

    def pick(self, scores: torch.Tensor, slots: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Which of the scores (R, V) each slot's own sampling draws, (R,); position (R,) is that of what is drawn."""
        return draw(scores, self.temperature[slots], self.top_k[slots], self.top_p[slots], self.seed[slots], position)
