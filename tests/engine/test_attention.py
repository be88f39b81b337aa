"""Attention over one request at a time, also where a window slides: held against one prompt at a time in one piece."""

from __future__ import annotations

import pytest
import torch

from merasteer.engine import Engine, EngineConfig, attention
from merasteer.types import GenerationRequest, Policy

from .comparing import assert_same


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3"])
@pytest.mark.parametrize("window", [5, 16, 64])
@pytest.mark.parametrize("batch_tokens", [8, 24, 512])
def test_chunks_and_neighbours_see_what_one_prompt_alone_sees(
    make_tiny, make_vectors, prompts, plain, name, window, batch_tokens
):
    """Windows that end inside a chunk, behind it and never; answers that slide them on."""
    more = {} if name == "llama" else {"sliding_window": window}
    if name == "gemma3":
        more["layer_types"] = ["sliding_attention", "full_attention"] * 2
    loaded = make_tiny(name, **more)
    v, policy = make_vectors(1, "residual"), Policy("p", 0.3)
    asked = [
        GenerationRequest(prompt, 1 + 5 * (i % 3), policy if i % 2 else None) for i, prompt in enumerate(prompts[:9])
    ]
    with Engine(loaded, EngineConfig(max_requests=8, max_batch_tokens=batch_tokens, page_size=4)) as engine:
        engine.register("p", v)
        assert loaded.model.config._attn_implementation == attention.PER_REQUEST
        with engine.held():
            futures = [engine.submit(request) for request in asked]
        answers = [future.result(60) for future in futures]
    for request, answer in zip(asked, answers, strict=True):
        expected = plain(loaded.model, request.prompt, request.budget, request.policy and v, request.policy)
        assert list(answer.tokens) == expected.tokens


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_the_librarys_own_attention_gives_the_same_answers(make_tiny, prompts, monkeypatch, name):
    asked = [GenerationRequest(prompt, 6, logprobs=True) for prompt in prompts[:8]]

    def answers():
        with Engine(make_tiny(name), EngineConfig(max_batch_tokens=40, share_prefixes=False)) as engine:
            with engine.held():
                futures = [engine.submit(request) for request in asked]
            return [future.result(60) for future in futures], engine.loaded.model.config._attn_implementation

    ours, named = answers()
    monkeypatch.setattr("merasteer.engine.batching.applies", lambda _: False)
    theirs, other = answers()
    assert (named, other) == (attention.PER_REQUEST, "sdpa")
    for one, two in zip(ours, theirs, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("window", [None, 3, 4, 9])
@pytest.mark.parametrize(("queries", "keys"), [(2, 2), (5, 5), (3, 8), (4, 4)])
def test_the_mask_by_its_definition(queries, keys, window):
    """Query i stands at position keys − queries + i and sees what is not behind it and fewer than `window` before."""
    at = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    seen = (at >= 0) & (at < (window or keys))
    mask = attention._mask(queries, keys, window, torch.zeros(1))
    if mask is None:
        assert queries == keys
        assert torch.equal(seen, torch.ones(keys, keys, dtype=torch.bool).tril())
    else:
        assert torch.equal(mask == 0, seen)
        assert torch.equal(mask.isneginf(), ~seen)
