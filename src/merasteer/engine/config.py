"""What the engine is given at start-up. Tables and the cache are allocated at these sizes and never grow."""

from __future__ import annotations

from dataclasses import dataclass

from merasteer.errors import InvalidInput
from merasteer.types import HOOK_POINTS, HookPoint

__all__ = ["MAX_LABELS", "MAX_VARIANTS", "EngineConfig"]

MAX_LABELS = 32
MAX_VARIANTS = 16  # spellings of one label


@dataclass(frozen=True)
class EngineConfig:
    """Sizes and switches of one engine.

    max_requests: requests in the batch at once. max_waiting: a call is refused while so many wait behind them (None:
    never); with half of max_requests no call waits much longer than half an answer takes.
    max_policies: resident steering vectors per hook point. max_batch_tokens: tokens of one forward pass (longer prompts are
    prefilled in chunks). cache_tokens: tokens the KV cache holds over all requests, a multiple of page_size.
    share_prefixes: equal beginnings of prompts are computed once, as far as no policy touches them (`tables.untouched`).
    pack_weights: on a CPU, weights are held in the layout that multiplies fastest (`packing`); the model is as it was after `stop`.
    warm_up: then also what the library makes for each size of a batch is made at the start, not while requests wait (seconds at most).
    capture: hook points whose activations at the answer position are returned with every answer.
    cuda_graphs, async_batching: GPU only; on a CPU both are off whatever is said here.
    """

    max_requests: int = 32
    max_waiting: int | None = None
    max_policies: int = 64
    max_batch_tokens: int = 512
    cache_tokens: int = 16_384
    page_size: int = 32
    share_prefixes: bool = True
    pack_weights: bool = True
    warm_up: bool = False
    capture: tuple[HookPoint, ...] = ()
    cuda_graphs: bool = False
    async_batching: bool = False

    def __post_init__(self) -> None:
        for name in ("max_requests", "max_policies", "max_batch_tokens", "cache_tokens", "page_size"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name}: {getattr(self, name)} is not positive; give 1 or more")
        if self.max_waiting is not None and self.max_waiting < 0:
            raise InvalidInput(f"max_waiting: {self.max_waiting} is negative; give 0 or more")
        if self.max_requests > self.max_batch_tokens:
            raise InvalidInput(
                f"max_requests: {self.max_requests} exceeds max_batch_tokens {self.max_batch_tokens}; lower it"
            )
        if self.cache_tokens % self.page_size:
            raise InvalidInput(f"cache_tokens: {self.cache_tokens} is not a multiple of page_size {self.page_size}")
        for hook_point in self.capture:
            if hook_point not in HOOK_POINTS:
                raise InvalidInput(f"capture: {hook_point!r} is not one of {', '.join(HOOK_POINTS)}")
