"""Attention over the packed batch, one request at a time; and what the library's own paged attention gets wrong.

The library's paged SDPA lets every token attend over the whole batch and masks the other requests away: its cost grows with the square
of the batch (40 % of a step at 64 requests of 60 tokens). Here each request attends over its own keys alone: prompts one by one, and
single-token requests (decoding) in groups of similar length, their keys padded to the longest of the group. Layers with a sliding window
differ in which keys those are.

Where that is not done (a soft cap, a GPU) the library's runs, with two things mended (`_apart`, `_eager`).
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
    """Whether the model's attention is what is computed here: over all keys or a sliding window of them, no soft cap, on a CPU."""
    config = model.config.get_text_config()
    known = set(group_layers_by_attn_type(config)) <= {"full_attention", "sliding_attention"}
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return bool(model.device.type == "cpu" and known and not capped and config._attn_implementation == "sdpa")


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
    """How one forward pass is cut up for the layers of one kind; made once and used by all of them.

    prompts: (query start, query end, pages of the keys before them (K,), mask (queries, keys)) of requests with several query tokens;
    pages and mask are None where there is nothing before, or nothing to hide but what is to come. Those with one stand in `order` (R,), by
    their number of keys; decode cuts them into groups of similar length whose keys fit `_ROOM`: the part of `order` (a slice), places
    (G, K) and additive mask (G, 1, 1, K), None where all have K keys. Places are pages, or the new tokens themselves where no request
    of the pass reads from the cache.
    """

    def __init__(self, kwargs: dict[str, Any], allocator: Any, query: torch.Tensor, key: torch.Tensor) -> None:
        self.key, read = kwargs["cu_seq_lens_q"], kwargs["read_index"][allocator.index]
        self.paged, window = read.numel() > 0, getattr(allocator, "sliding_window", None)
        q, k = self.key.tolist(), kwargs["cu_seq_lens_k"][allocator.layer_type].tolist()
        spans = [(q[i], q[i + 1], k[i], k[i + 1]) for i in range(len(q) - 1) if q[i + 1] > q[i]]
        self.covered = sum(span[1] - span[0] for span in spans)
        self.prompts = [
            (q0, q1, read[k0 : k1 - (q1 - q0)] if k1 - k0 > q1 - q0 else None, _mask(q1 - q0, k1 - k0, window, query))
            for q0, q1, k0, k1 in spans
            if q1 - q0 > 1
        ]
        singles = sorted(((q0, k0, k1 - k0) for q0, q1, k0, k1 in spans if q1 - q0 == 1), key=lambda single: single[2])
        self.order = torch.tensor([query for query, *_ in singles], dtype=torch.long, device=query.device)
        if self.paged and singles:
            # Where there is a window the library does not say where the new token is read: it means to put it there itself.
            last = torch.tensor([k0 + count - 1 for _, k0, count in singles], device=query.device)
            read = read.index_copy(0, last, kwargs["write_index"][allocator.index][self.order].to(read.dtype))
        self.decode = []
        for part in _groups([count for *_, count in singles], _ROOM // (key.shape[1] * key.shape[3] * 4)):
            at, mask = _padded(singles[part], query.device)
            self.decode.append((part, read[at] if self.paged else at, mask))


def _mask(queries: int, keys: int, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
    """Additive (queries, keys) in the dtype of `like` for the last `queries` of `keys` tokens: what is to come is hidden, and what lies
    `window` or more behind. None where that is the plain causal mask of as many keys as queries.
    """
    slides = window is not None and keys > window
    if keys == queries and not slides:
        return None
    seen = torch.ones(queries, keys, dtype=torch.bool, device=like.device).tril(keys - queries)
    if slides and window is not None:
        seen = seen.triu(keys - queries - window + 1)
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(~seen, float("-inf"))


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
    """What a generation thread keeps between layers and passes: the plans of the pass by kind of layer, and what keys and values are
    gathered to, by name.

    New memory costs more than the copy. Each engine has its own thread, and what it keeps goes with it.
    """

    cache: Any = None  # between a layer's update and its attention

    def __init__(self) -> None:
        self.plans: dict[int, _Plan] = {}
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

    Each request's keys and values are read from the pages once, straight into the shape that the product needs: those of prompts before
    the new ones are written, since in a sliding window these take the places of others that the first tokens of a chunk still see.
    """
    cache = _handed(kwargs)
    if cache is None:
        raise RuntimeError(f"{PER_REQUEST} attends over a paged cache only; use sdpa outside the engine")
    allocator, gqa = cache.layer_to_allocator[module.layer_idx], query.shape[1] != key.shape[1]
    plan = _kept.plans.get(allocator.index)
    if plan is None or plan.key is not kwargs["cu_seq_lens_q"]:
        plan = _kept.plans[allocator.index] = _Plan(kwargs, allocator, query, key)
    new, pages = tuple(x[0].transpose(0, 1) for x in (key, value)), allocator._kv_token_views[module.layer_idx]
    # Padding at the end has no answer; it must be a number all the same.
    out = (torch.empty_like if plan.covered == query.shape[2] else torch.zeros_like)(query.transpose(1, 2))
    for q0, q1, before, mask in plan.prompts:
        keys, values = (
            states[q0:q1] if before is None else torch.cat([page[before], states[q0:q1]])
            for states, page in zip(new, pages, strict=True)
        )
        answer = scaled_dot_product_attention(
            query[:, :, q0:q1], keys.transpose(0, 1)[None], values.transpose(0, 1)[None],
            attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=gqa,
        )  # fmt: skip
        out[:, q0:q1] = answer.transpose(1, 2)
    for page, states in zip(pages, new, strict=True):
        page.index_copy_(0, kwargs["write_index"][allocator.index], states)
    if plan.decode:
        sources = pages if plan.paged else new
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
