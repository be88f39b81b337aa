"""The parts of transformers' continuous batching that steering stands on, checked at the start: what is missing is named."""

from __future__ import annotations

import inspect
from typing import Any

from transformers.generation.continuous_batching import (
    cache,
    continuous_api,
    input_outputs,
    model_runner,
    requests,
    scheduler,
)
from transformers.generation.continuous_batching.cache_allocators import CacheAllocator
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter

from merasteer.errors import SeamMissing

__all__ = ["check_seams"]

_SEAMS: tuple[tuple[Any, str, tuple[str, ...]], ...] = (
    (ContinuousBatchingLogitsProcessorList, "check_kwargs", ("kwargs",)),
    (ContinuousBatchingLogitsProcessorList, "fill_defaults", ("int32_tensor",)),
    (ContinuousBatchingLogitsProcessorList, "prepare_tensor_args", ("requests_in_batch", "arg_storage")),
    (ContinuousBatchingLogitsProcessorList, "__call__", ("input_ids", "scores", "logits_processor_args")),
    (ContinuousBatchingManager, "_create_batch_processor", ()),
    (ContinuousBatchingManager, "_generation_step", ()),
    (ContinuousBatchingManager, "_run_generation_loop", ()),
    (ContinuousBatchingManager, "_handle_critical_error", ("error", "batch_processor")),
    (ContinuousBatchingManager, "add_request", ("input_ids", "request_id", "max_new_tokens", "eos_token_id")),
    (ContinuousBatchingManager, "cancel_request", ("request_id",)),
    (continuous_api.ContinuousBatchProcessor, "prepare_next_batch", ()),
    (continuous_api.ContinuousBatchProcessor, "update_batch", ()),
    (input_outputs.ContinuousBatchingIOs, "prepare_batch_update", ()),
    (input_outputs.ContinuousBatchingAsyncIOs, "prepare_batch_update", ()),
    (model_runner, "infer_max_single_request_tokens", ("cache",)),
    (cache.PagedAttentionCache, "search_prefix_match", ("request_id", "prompt_ids")),
    (cache.PagedAttentionCache, "count_new_complete_blocks", ("state", "request_len")),
    (cache.PagedAttentionCache, "mark_complete_blocks", ("state", "complete_blocks")),
    (cache.PagedAttentionCache, "compute_free_capacity", ("relative",)),
    (cache.PagedAttentionCache, "evict_cached_blocks", ()),
    (CacheAllocator, "match_prefix_blocks", ("prompt_ids",)),
    (CacheAllocator, "mark_complete_blocks", ("request_id", "token_ids")),
    (OutputRouter, "deliver_batch", ("outputs",)),
    (scheduler.Scheduler, "clear_cancelled_requests", ()),
    (scheduler.Scheduler, "finish_request", ("request_id",)),
    (scheduler.FIFOScheduler, "_process_candidates", ("candidates",)),
    (requests.RequestState, "update_and_check_completion", ("token_id",)),
)


def check_seams() -> None:
    """Raises SeamMissing naming the first part of the library that steering stands on and that is not there."""
    import transformers

    for owner, name, parameters in _SEAMS:
        found = getattr(owner, name, None)
        missing = [p for p in parameters if p not in inspect.signature(found).parameters] if callable(found) else [name]
        if missing:
            raise SeamMissing(
                f"transformers {transformers.__version__}: {getattr(owner, '__name__', owner)}.{name} lacks {', '.join(missing)}; "
                "install the version that constraints.txt pins"
            )
