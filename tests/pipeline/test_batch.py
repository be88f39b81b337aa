"""The engine as the pipeline sizes and drives it: answers in order, prompts shared between candidates, memory within bounds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from merasteer.engine import Engine, LoadedModel
from merasteer.engine.batching import cache_bytes_per_token
from merasteer.pipeline import Bars, batch
from merasteer.types import GenerationRequest

PROMPTS = [tuple(1 + (seed + seed * i) % 21 for i in range(33)) for seed in (1, 2, 4, 5, 8, 10)]
CANDIDATES = [GenerationRequest(prompt, 1, variants=((1,), (2,))) for _ in range(5) for prompt in PROMPTS]


def test_prompts_that_fit_together_are_asked_candidate_by_candidate() -> None:
    assert batch.sharing_order(CANDIDATES, 1000) == list(range(30))
    assert batch.sharing_order(CANDIDATES, 100)[:12] == [0, 1, 2, 6, 7, 8, 12, 13, 14, 18, 19, 20]
    assert sorted(batch.sharing_order(CANDIDATES, 1)) == list(range(30))
    assert batch.sharing_order([], 10) == []


def test_candidates_share_their_prompts_even_where_the_cache_cannot_hold_them_all(loaded: LoadedModel) -> None:
    small = replace(batch.sizes(loaded, 34), cache_tokens=256, max_requests=4)
    passes: list[int] = []
    with Engine(loaded, small) as engine, Bars().bar("", len(CANDIDATES)) as bar:
        hook = loaded.model.register_forward_pre_hook(
            lambda _module, _args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        try:
            found = list(batch.generations(engine, CANDIDATES, bar))
        finally:
            hook.remove()
    assert sum(passes) < 2 * sum(map(len, PROMPTS))  # of five times, and one token each at the least
    answers = [found[i].answer for i in range(len(PROMPTS))]
    for i, generation in enumerate(found):  # each in its own place
        expected, answer = answers[i % len(PROMPTS)], generation.answer
        assert expected is not None
        assert answer is not None
        assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    assert len({round(answer.probabilities[0], 4) for answer in answers if answer is not None}) > 1


def test_the_cache_stays_within_its_bytes_unless_one_request_needs_more(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = cache_bytes_per_token(loaded.model)
    config = loaded.model.config
    heads = config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    assert each == 2 * config.num_hidden_layers * heads * torch.tensor([], dtype=loaded.model.dtype).element_size()
    assert batch.sizes(loaded, 24).cache_tokens == 2 * batch.KEPT * batch.MAX_REQUESTS * 32
    assert batch.sizes(loaded, 500).cache_tokens == batch.CACHE_TOKENS
    monkeypatch.setattr(batch, "CACHE_BYTES", 1000 * each)
    assert batch.sizes(loaded, 50).cache_tokens == 1000
    assert batch.sizes(loaded, 5000).cache_tokens >= 5000
