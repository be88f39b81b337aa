"""Choosing the next token per request, reproducibly: temperature, top-k, top-p, then Gumbel noise from a counter-based generator.

The noise is a pure function of (seed, absolute position, token id), so a request draws the same tokens whatever batch it is in,
and again after its cache was evicted and recomputed. Where graphs are captured shapes are static.
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
    subtracted before dividing, so that no temperature is too low. On a CPU what no row asks for is left out.
    """
    vocab, on_cpu = scores.shape[-1], scores.device.type == "cpu"
    samples = temperature > 0
    scaled = (scores - scores.amax(-1, keepdim=True)) / torch.where(samples, temperature, 1.0)[:, None]
    if on_cpu and not bool(((top_k > 0) | (top_p < 1.0)).any()):
        noisy = scaled + gumbel(seed, position, torch.arange(vocab, device=scores.device))
        return torch.where(samples, noisy.argmax(-1), scores.argmax(-1))
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(vocab, device=scores.device)[None]
    ordered = ordered.masked_fill(rank >= torch.where(top_k > 0, top_k, vocab)[:, None], float("-inf"))
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    ordered = ordered.masked_fill((before >= top_p[:, None]) & (rank > 0), float("-inf"))
    kept = int((ordered > float("-inf")).sum(-1).max()) if on_cpu else vocab
    ordered, order = ordered[:, : max(kept, 1)], order[:, : max(kept, 1)]
    chosen = order.gather(1, (ordered + gumbel(seed, position, order)).argmax(-1, keepdim=True))[:, 0]
    return torch.where(samples, chosen, scores.argmax(-1))


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
