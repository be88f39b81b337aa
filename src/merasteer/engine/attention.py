"""Attention over the packed batch, one request at a time; and what the library's own paged attention gets wrong.

The library's paged SDPA lets every token attend over the whole batch and masks the other requests away: its cost grows with the square
of the batch (40 % of a step at 64 requests of 60 tokens). Here each request attends over its own keys alone: prompts one by one, and
single-token requests (decoding) in groups of similar length, their keys padded to the longest of the group.

Where that is not done (a sliding window, a soft cap, a GPU) the library's runs, with two things mended (`_apart`, `_eager`).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache import PagedAttentionCache, group_layers_by_attn_type
from transformers.integrations.sdpa_attention import sdpa_attention_forward

__all__ = ["PER_REQUEST", "applies", "per_request_attention", "take_over"]

PER_REQUEST = "mera_per_request"
# Bytes of float32 keys that are gathered at once: what the caches near the cores hold, so that the product finds them there. With
# 1 MiB of second-level cache per core, that is twice as fast as all at once at 512 tokens, and a sixth faster at 90.
_ROOM = 2 << 20


def applies(model: Any) -> bool:
    """Whether the model's attention is what is computed here: full (no sliding window), no soft cap, on a CPU."""
    config = model.config.get_text_config()
    full = set(group_layers_by_attn_type(config)) == {"full_attention"}
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return bool(model.device.type == "cpu" and full and not capped and config._attn_implementation == "sdpa")


def take_over(model: Any, paged: Any) -> None:
    """Has the attention functions of this module write the pages, whoever else would. Mutates `paged`, the library's cache.

    5.23's layers leave that to the attention function, which is given the cache. 5.24's layers do it before; they then gather the keys
    of the whole batch, and numbers that are not finite are in the pages already (and GPT-NeoX's leave out an argument). What the layers
    call is made to hand the cache on to the attention function behind it, `_handed`.
    """
    if model.config.get_text_config()._attn_implementation not in (PER_REQUEST, *_MENDED):
        return  # flash attention is the library's own

    def update(key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        _kept.cache = paged
        return key_states, value_states

    paged.update = update


class _Plan:
    """How one forward pass is cut up; made once and used by all its layers.

    Places are rows of what holds the keys: the cache's pages, or the new tokens themselves where no request reads from the cache.
    prompts: (query start, query end, places (K,) or a slice) of requests with several query tokens. Those with one stand in `order` (R,),
    by their number of keys; decode cuts them into groups of similar length whose keys fit `_ROOM`: the part of `order` (a slice), places
    (G, K) and additive mask (G, 1, 1, K), None where all have K keys.
    """

    def __init__(self, ends_q: torch.Tensor, ends_k: torch.Tensor, read: torch.Tensor, key: torch.Tensor) -> None:
        self.key, self.paged = ends_q, read.numel() > 0
        q, k = ends_q.tolist(), ends_k.tolist()
        spans = [(q[i], q[i + 1], k[i], k[i + 1]) for i in range(len(q) - 1) if q[i + 1] > q[i]]
        self.covered = sum(span[1] - span[0] for span in spans)
        self.prompts = [
            (q0, q1, read[k0:k1] if self.paged else slice(k0, k1)) for q0, q1, k0, k1 in spans if q1 - q0 > 1
        ]
        singles = sorted(((q0, k0, k1 - k0) for q0, q1, k0, k1 in spans if q1 - q0 == 1), key=lambda single: single[2])
        self.order = torch.tensor([query for query, *_ in singles], device=ends_q.device)
        self.decode = []
        for part in _groups([count for *_, count in singles], _ROOM // (key.shape[1] * key.shape[3] * 4)):
            at, mask = _padded(singles[part], ends_q.device)
            self.decode.append((part, read[at] if self.paged else at, mask))


def _groups(counts: Sequence[int], room: int) -> list[slice]:
    """Cuts requests of ascending length: no group is padded to more than `room` keys in all, or to more than twice what any of it has."""
    starts = [0] if counts else []
    for i, count in enumerate(counts):
        if (i + 1 - starts[-1]) * count > room or count > 2 * counts[starts[-1]]:
            starts.append(i)
    return [slice(start, end) for start, end in itertools.pairwise([*starts, len(counts)]) if end > start]


def _padded(group: Sequence[tuple[int, int, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    _, start, count = torch.tensor(group, device=device).T
    least, longest = group[0][2], group[-1][2]
    offset = torch.arange(longest, device=device)[None]
    if least == longest:
        return start[:, None] + offset, None
    inside = offset < count[:, None]
    mask = torch.zeros(inside.shape, device=device).masked_fill(~inside, float("-inf"))
    return start[:, None] + torch.where(inside, offset, 0), mask[:, None, None]


class _Kept(threading.local):
    """What a generation thread keeps between layers and passes: the plan of the pass, and what keys and values are gathered to, by name.

    New memory costs more than the copy. Each engine has its own thread, and what it keeps goes with it.
    """

    plan: _Plan | None = None
    cache: Any = None  # between a layer's update and its attention

    def __init__(self) -> None:
        self._room: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def room(self, name: str, rows: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """(rows, ...) as the rows of `like` are, with anything in it."""
        room = self._room.get((name, dtype))
        if room is None or room.device != like.device or room.shape[1:] != like.shape[1:] or len(room) < rows:
            room = like.new_empty(1 << (rows - 1).bit_length(), *like.shape[1:], dtype=dtype)
            self._room[name, dtype] = room
        return room[:rows]


_kept = _Kept()


def _handed(kwargs: dict[str, Any]) -> Any:
    """The paged cache that attention is over, None outside the engine. Takes it out of `kwargs`, or takes what `take_over` handed on."""
    handed, _kept.cache = _kept.cache, None
    return kwargs.pop("cache", handed)


def _gathered(name: str, source: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rows of source (tokens, kv heads, d) at the places `at` (R, K), in float32, as (R, kv heads, K, d)."""
    rows = torch.index_select(source, 0, at.flatten(), out=_kept.room(name, at.numel(), source, source.dtype))
    if rows.dtype != torch.float32:
        rows = _kept.room(name, at.numel(), source, torch.float32).copy_(rows)
    return rows.view(*at.shape, *source.shape[1:]).transpose(1, 2)


def per_request_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001, the interface has it; nothing to mask here
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query (1, heads, T, d), key and value (1, kv heads, T, d) of the new tokens; returns (1, T, heads, d). Writes the paged cache.

    Each request's keys and values are read from the pages once, straight into the shape that the product needs.
    """
    cache = _handed(kwargs)
    if cache is None:
        raise RuntimeError(f"{PER_REQUEST} attends over a paged cache only; use sdpa outside the engine")
    allocator, ends = cache.layer_to_allocator[module.layer_idx], kwargs["cu_seq_lens_q"]
    plan, gqa = _kept.plan, query.shape[1] != key.shape[1]
    if plan is None or plan.key is not ends:
        read = kwargs["read_index"][allocator.index]
        plan = _kept.plan = _Plan(ends, kwargs["cu_seq_lens_k"][allocator.layer_type], read, key)
    # The pages are written first: what a request reads there holds its new tokens too.
    new, pages = tuple(x[0].transpose(0, 1) for x in (key, value)), allocator._kv_token_views[module.layer_idx]
    for page, states in zip(pages, new, strict=True):
        page.index_copy_(0, kwargs["write_index"][allocator.index], states)
    sources = pages if plan.paged else new

    # Padding at the end has no answer; it must be a number all the same.
    out = (torch.empty_like if plan.covered == query.shape[2] else torch.zeros_like)(query.transpose(1, 2))
    for q0, q1, at in plan.prompts:
        keys, values = (source[at].transpose(0, 1)[None] for source in sources)
        causal = _causal(q1 - q0, keys.shape[2], query) if keys.shape[2] > q1 - q0 else None  # keys from earlier chunks
        answer = scaled_dot_product_attention(
            query[:, :, q0:q1], keys, values,
            attn_mask=causal, is_causal=causal is None, scale=scaling, enable_gqa=gqa,
        )  # fmt: skip
        out[:, q0:q1] = answer.transpose(1, 2)
    if plan.decode:
        # In float32: what torch has for one bfloat16 query takes four times as long, the conversion counted in.
        singles = query[0].index_select(1, plan.order).float().transpose(0, 1)[:, :, None]  # (R, heads, 1, d)
        answers = []
        for part, at, mask in plan.decode:
            keys, values = (
                _gathered(name, source, at) for name, source in zip(("keys", "values"), sources, strict=True)
            )
            answers.append(
                scaled_dot_product_attention(
                    singles[part], keys, values, attn_mask=mask, scale=scaling, enable_gqa=gqa
                )[:, :, 0]
            )
        out[0].index_copy_(0, plan.order, torch.cat(answers).to(out.dtype))
    return out, None


def _causal(queries: int, keys: int, like: torch.Tensor) -> torch.Tensor:
    """Bottom-right causal mask (queries, keys), boolean."""
    return torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril(keys - queries)


Attention = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


def _apart(inner: Attention) -> Attention:
    """`inner`, with the numbers of each request kept from its neighbours: what a mask hides is multiplied by 0, and 0 · NaN is NaN.

    A token whose keys or values are not finite is written as zeros, and gets an answer that is not finite either: its own request fails.
    """

    def attention(
        module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        cache = _handed(kwargs)
        if cache is None:
            return inner(module, query, key, value, *args, **kwargs)
        broken = (key * 0).sum((1, 3)) + (value * 0).sum((1, 3))  # (1, T): 0, or NaN
        key, value = (states.nan_to_num(0.0, 0.0, 0.0) for states in (key, value))
        key, value = PagedAttentionCache.update(cache, key, value, module.layer_idx, kwargs)
        out, weights = inner(module, query, key, value, *args, **kwargs)
        return out + broken[..., None, None], weights

    return attention


def _eager(
    module: torch.nn.Module,  # noqa: ARG001, the interface has it
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None = None,
    **kwargs: Any,  # noqa: ARG001
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The library's attention over pages, and the soft cap of the scores (Gemma 2) that it leaves out."""
    key, value = (states.repeat_interleave(query.shape[1] // states.shape[1], 1) for states in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights


_MENDED: dict[str, Attention] = {"paged|eager": _apart(_eager), "sdpa": _apart(sdpa_attention_forward)}
AttentionInterface.register(PER_REQUEST, per_request_attention)
for _name, _attention in _MENDED.items():
    AttentionInterface.register(_name, _attention)
