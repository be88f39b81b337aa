"""The parts of transformers' continuous batching that steering stands on, checked at the start (docs/seams.md): what does not fit is named.

What an attribute holds is not looked at here; that is the engine's tests, which pass with every version of `TESTED`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
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

__all__ = ["TESTED", "check_seams", "taken"]

TESTED = ("5.23", "5.24")  # of transformers; pyproject.toml lets in the same

# Owner, name, and the parameters that are passed or read. One that the library asks for and that is not named here does not fit either;
# those behind the bar are passed where the installed version has them (`taken`), or by the library itself.
_SEAMS: tuple[tuple[Any, str, str], ...] = (
    (ContinuousBatchingLogitsProcessorList, "check_kwargs", "kwargs"),
    (ContinuousBatchingLogitsProcessorList, "fill_defaults", "int32_tensor"),
    (ContinuousBatchingLogitsProcessorList, "prepare_tensor_args", "requests_in_batch arg_storage"),
    (ContinuousBatchingLogitsProcessorList, "__call__", "input_ids scores logits_processor_args"),
    (ContinuousBatchingManager, "_create_batch_processor", ""),
    (ContinuousBatchingManager, "_generation_step", ""),
    (ContinuousBatchingManager, "_run_generation_loop", "| use_inference_mode"),
    (ContinuousBatchingManager, "_handle_critical_error", "error batch_processor"),
    (ContinuousBatchingManager, "_fail_all_remaining_requests", "error batch_processor"),
    (ContinuousBatchingManager, "add_request", "input_ids request_id max_new_tokens eos_token_id"),
    (ContinuousBatchingManager, "cancel_request", "request_id"),
    (continuous_api.ContinuousBatchProcessor, "prepare_next_batch", ""),
    (continuous_api.ContinuousBatchProcessor, "update_batch", ""),
    (input_outputs.ContinuousBatchingIOs, "prepare_batch_update", ""),
    (input_outputs.ContinuousBatchingAsyncIOs, "prepare_batch_update", ""),
    (model_runner, "infer_max_single_request_tokens", "cache"),
    (cache, "group_layers_by_attn_type", "config"),
    (cache.PagedAttentionCache, "update", "key_states value_states layer_idx kwargs"),
    (cache.PagedAttentionCache, "search_prefix_match", "request_id prompt_ids"),
    (cache.PagedAttentionCache, "count_new_complete_blocks", "state request_len"),
    (cache.PagedAttentionCache, "mark_complete_blocks", "state complete_blocks"),
    (cache.PagedAttentionCache, "compute_free_capacity", "relative"),
    (cache.PagedAttentionCache, "evict_cached_blocks", ""),
    (CacheAllocator, "match_prefix_blocks", "prompt_ids"),
    (CacheAllocator, "mark_complete_blocks", "request_id token_ids new_new_blocks"),
    (OutputRouter, "deliver_batch", "outputs"),
    (scheduler.Scheduler, "clear_cancelled_requests", ""),
    (scheduler.Scheduler, "finish_request", "request_id"),
    (
        scheduler.FIFOScheduler,
        "_process_candidates",
        "candidates | token_budget cache_budget request_ids_to_remove_from_waiting",
    ),
    (requests.RequestState, "update_and_check_completion", "token_id | logprob"),
)


def taken(function: Callable[..., Any], **given: Any) -> dict[str, Any]:
    """Those of the arguments that the installed version of a function has a parameter for."""
    return {name: value for name, value in given.items() if name in inspect.signature(function).parameters}


def check_seams() -> None:
    """Raises SeamMissing naming the first part of the library that steering stands on and that is not there, or that asks for more."""
    import transformers

    for owner, name, parameters in _SEAMS:
        wrong = _misfit(getattr(owner, name, None), parameters)
        if wrong is not None:
            raise SeamMissing(
                f"transformers {transformers.__version__}: {getattr(owner, '__name__', owner)}.{name} {wrong}; mera-server was tested "
                f"with {' and '.join(TESTED)}, install the version that constraints.txt pins"
            )


def _misfit(found: Any, parameters: str) -> str | None:
    """What keeps a function from being called with these parameters; None if nothing does."""
    if not callable(found):
        return "is missing"
    needed, _, more = (part.split() for part in parameters.partition("|"))
    there = {name: one for name, one in inspect.signature(found).parameters.items() if name != "self"}
    plain = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    asked = [name for name, one in there.items() if one.default is one.empty and one.kind not in plain]
    if lacking := [name for name in needed if name not in there]:
        return f"lacks {', '.join(lacking)}"
    if unknown := [name for name in asked if name not in (*needed, *more)]:
        return f"asks for {', '.join(unknown)}"
    return None
