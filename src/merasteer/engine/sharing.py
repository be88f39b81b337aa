"""Prompts that are shared: the library's blocks, for those tokens alone whose keys and values no policy touches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["share_untouched"]


class Sharer(Protocol):
    """What the engine knows of its requests; see `batching.Sink`."""

    def untouched(self, request_id: str, window: int | None) -> int: ...

    def named(self, request_id: str, tokens: list[int]) -> list[int]: ...


def share_untouched(processor: Any, sink: Sharer, told: Callable[[int], None]) -> None:
    """Restricts the library's sharing of blocks to tokens that no policy touches, on the side that offers and on the one that takes.

    By itself it would offer what was computed under a policy to any request with the same tokens, and even replace a running request's
    block by an equal one. The sink says how many of a request's first tokens are the unsteered model's (`tables.untouched`), and tells
    tokens apart whose keys are turned by other factors (`rope.Rope.named`). told: is given the tokens that each request takes.

    Layers with a sliding window write the key of position p over that of p − window, so the library shares nothing where there are some.
    But what never comes to a window's number of keys overwrites none: such requests share here, and no others do. (As many are too many
    already: with async batching a request may write a key behind its last one.)
    """
    paged, scheduled = processor.cache, processor.scheduler
    windows = [found for one in paged.cache_allocators.values() if (found := getattr(one, "sliding_window", None))]
    window = min(windows, default=None)
    paged.use_prefix_sharing = paged.allow_block_sharing
    search = paged.search_prefix_match

    def search_prefix_match(request_id: str, prompt_ids: list[int]) -> int:
        # One token more than may be taken: the library always leaves the last one that it is shown to be computed.
        shown = prompt_ids[: sink.untouched(request_id, window) + 1]
        taken = int(search(request_id, sink.named(request_id, shown)))
        told(taken)
        return taken

    def mark_complete_blocks(state: Any, complete_blocks: dict[str, int]) -> None:
        # A request that was cancelled or evicted since its batch was scheduled (async batching) has no block table, or that of its
        # restart. The library asks for the status, which does not show a cancellation, and which would also leave out whoever finishes
        # with the step that computed its prompt: with one new token, everybody.
        if scheduled.active_requests.get(state.request_id) is not state:
            return
        tokens = sink.named(state.request_id, state.initial_tokens[: sink.untouched(state.request_id, window)])
        for name, count in complete_blocks.items():
            paged.cache_allocators[name].mark_complete_blocks(state.request_id, tokens, count)

    paged.search_prefix_match, paged.mark_complete_blocks = search_prefix_match, mark_complete_blocks
