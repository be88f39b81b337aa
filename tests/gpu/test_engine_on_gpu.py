"""The batch truth on a CUDA device: synchronous, asynchronous, and inside captured graphs. Run by `make test-gpu`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merasteer.engine import Engine, EngineConfig, LoadedModel, wrap_model
from merasteer.types import Generation, GenerationRequest, Policy, SteeringVectors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

MODES = [
    EngineConfig(),
    EngineConfig(async_batching=True),
    EngineConfig(cuda_graphs=True),
    EngineConfig(async_batching=True, cuda_graphs=True),
]
NAMES = ["eager", "async", "graphs", "async-graphs"]
POLICIES = [
    None,
    Policy("v", 0.3),
    Policy("v", 0.2, positions="all"),
    Policy("v", 0.4, layers=(0, 2)),
    Policy("w", None, 0.5),
]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return tiny(max_position_embeddings=512)


def tiny(**more: Any) -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, **more
    )
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(300)}, unk_token="w0"))
    return wrap_model(LlamaForCausalLM(config).cuda(), PreTrainedTokenizerFast(tokenizer_object=words), "tiny")


ROPES: list[dict[str, Any]] = [
    {
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 24,
            "short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [1.5 + i for i in range(8)],
        },
    },
    {
        "max_position_embeddings": 24,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    },
]  # fmt: skip


def vectors(seed: int, hook_point: str = "residual") -> SteeringVectors:
    weight = 0.3 * torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    return SteeringVectors(hook_point, weight, torch.zeros(4), weight / (weight * weight).sum(-1, keepdim=True), 2)  # type: ignore[arg-type]


def answers(engine: Engine, requests: list[GenerationRequest], *, together: bool) -> list[Generation]:
    if not together:
        return [engine.submit(request).result(120) for request in requests]
    with engine.held():
        futures = [engine.submit(request) for request in requests]
    return [future.result(120) for future in futures]


def assert_same(some: list[Generation], others: list[Generation]) -> None:
    for a, b in zip(some, others, strict=True):
        assert a.tokens == b.tokens
        for name in ("tokens", "steered_tokens", "cells", "steered_cells"):
            assert getattr(a.steering, name) == getattr(b.steering, name)
        assert a.steering.mean_shift == pytest.approx(b.steering.mean_shift, abs=1e-4)
        assert (a.predicted_error is None) == (b.predicted_error is None)
        if a.predicted_error is not None and b.predicted_error is not None:
            assert a.predicted_error.before == pytest.approx(b.predicted_error.before, abs=1e-3)
            assert a.predicted_error.after == pytest.approx(b.predicted_error.after, abs=1e-3)


@pytest.mark.parametrize("config", MODES, ids=NAMES)
def test_mixed_policies_equal_each_alone(loaded: LoadedModel, config: EngineConfig) -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [tuple(torch.randint(1, 300, (5 + 7 * i % 40,), generator=generator).tolist()) for i in range(25)]
    requests = [GenerationRequest(prompt, 8, POLICIES[i % 5]) for i, prompt in enumerate(prompts)]
    with Engine(loaded, EngineConfig()) as engine:
        engine.register("v", vectors(0))
        engine.register("w", vectors(1, "mlp_input"))
        truth = answers(engine, requests, together=False)
    with Engine(loaded, config) as engine:
        engine.register("v", vectors(0))
        engine.register("w", vectors(1, "mlp_input"))
        assert_same(answers(engine, requests, together=True), truth)
        assert_same(answers(engine, requests, together=False), truth)
    assert sum(answer.steering.steered_cells for answer in truth) > 50


@pytest.mark.parametrize("config", MODES, ids=NAMES)
def test_equal_prompts_under_different_policies_share_nothing_that_one_has_moved(
    loaded: LoadedModel, config: EngineConfig
) -> None:
    prompt = tuple(1 + 3 * i for i in range(96))  # three pages
    requests = [GenerationRequest(prompt, 6, POLICIES[i % 5]) for i in range(20)]
    with Engine(loaded, EngineConfig(share_prefixes=False)) as engine:
        engine.register("v", vectors(0))
        engine.register("w", vectors(1, "mlp_input"))
        truth = answers(engine, requests[:5], together=False)
    with Engine(loaded, config) as engine:
        engine.register("v", vectors(0))
        engine.register("w", vectors(1, "mlp_input"))
        for order in (requests, requests[::-1]):
            found = answers(engine, order, together=True)
            expected = [truth[POLICIES.index(request.policy)] for request in order]
            assert_same(found, expected)


@pytest.mark.parametrize("config", MODES[2:], ids=NAMES[2:])
def test_graphs_are_captured_again_when_the_hooks_change(loaded: LoadedModel, config: EngineConfig) -> None:
    request = GenerationRequest(tuple(range(1, 20)), 8, Policy("late", 0.3))
    with Engine(loaded, EngineConfig()) as engine:
        engine.register("late", vectors(3))
        truth = answers(engine, [request], together=False)
    with Engine(loaded, config) as engine:
        bare = GenerationRequest(request.prompt, 8)
        before = answers(engine, [bare], together=False)  # captures graphs without a hook
        engine.register("late", vectors(3))
        assert_same(answers(engine, [request], together=False), truth)
        engine.unregister("late")
        assert answers(engine, [bare], together=False)[0].tokens == before[0].tokens
    assert truth[0].steering.steered_cells > 0


@pytest.mark.parametrize("config", MODES, ids=NAMES)
def test_cancellations_and_stop_strings_in_flight_leave_nothing(loaded: LoadedModel, config: EngineConfig) -> None:
    with Engine(loaded, config) as engine:
        engine.register("v", vectors(0))
        whole = engine.submit(GenerationRequest((5, 6, 7), 12, Policy("v", 0.3))).result(60)
        for turn in range(6):
            futures = [engine.submit(GenerationRequest((5 + i, 6, 7), 64, Policy("v", 0.3))) for i in range(16)]
            for future in futures[turn % 2 :: 2]:
                future.cancel()
        again = engine.submit(GenerationRequest((5, 6, 7), 12, Policy("v", 0.3))).result(60)
        assert again.tokens == whole.tokens
        for future in futures:
            if not future.cancelled():
                future.result(60)
        engine.submit(GenerationRequest((1, 2), 2)).result(60)
        assert engine.stats().waiting == 0


@pytest.mark.parametrize("config", MODES, ids=NAMES)
@pytest.mark.parametrize("rope", ROPES, ids=["longrope", "dynamic"])
def test_positions_that_follow_the_length_are_each_requests_own(rope: dict[str, Any], config: EngineConfig) -> None:
    """Prompts on both sides of the border, each the beginning of the longest, so that keys could be shared wrongly."""
    long = tiny(**rope)
    text = torch.randint(1, 300, (44,), generator=torch.Generator().manual_seed(4)).tolist()
    requests = [GenerationRequest(tuple(text[: 4 + 8 * i % 41]), 8, POLICIES[i % 2]) for i in range(20)]
    with Engine(long, EngineConfig(share_prefixes=False)) as engine:
        engine.register("v", vectors(0))
        truth = answers(engine, requests, together=False)
    with Engine(long, replace(config, page_size=4)) as engine:
        engine.register("v", vectors(0))
        assert_same(answers(engine, requests, together=True), truth)
        assert_same(answers(engine, requests, together=True), truth)
