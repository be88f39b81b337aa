"""The batch truth on a CUDA device: synchronous, asynchronous, and inside captured graphs. Run by `make test-gpu`."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merasteer.engine import Engine, EngineConfig, wrap_model
from merasteer.types import GenerationRequest, Policy, SteeringVectors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize(("asynchronous", "graphs"), [(False, False), (True, False), (True, True)])
def test_mixed_policies_equal_each_alone(asynchronous, graphs):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"w{i}": i for i in range(300)}, unk_token="w0"))
    )
    loaded = wrap_model(LlamaForCausalLM(config).cuda(), tokenizer, "tiny")
    weight = 0.3 * torch.randn(4, 64)
    vectors = SteeringVectors("residual", weight, torch.zeros(4), weight / (weight * weight).sum(-1, keepdim=True), 2)
    prompts = [tuple(torch.randint(1, 300, (5 + 7 * i % 40,)).tolist()) for i in range(24)]
    policies = [None, Policy("v", 0.3), Policy("v", 0.2, positions="all"), Policy("v", 0.4, layers=(0, 2))]
    requests = [GenerationRequest(prompt, 8, policies[i % 4]) for i, prompt in enumerate(prompts)]
    with Engine(loaded, EngineConfig(async_batching=asynchronous, cuda_graphs=graphs)) as engine:
        engine.register("v", vectors)
        together = [future.result(120) for future in [engine.submit(request) for request in requests]]
        alone = [engine.submit(request).result(120) for request in requests]
    for a, b in zip(together, alone, strict=True):
        assert a.tokens == b.tokens
        assert (a.steering.tokens, a.steering.cells, a.steering.steered_cells) == (
            b.steering.tokens,
            b.steering.cells,
            b.steering.steered_cells,
        )
        assert a.steering.mean_shift == pytest.approx(b.steering.mean_shift, abs=1e-4)
