"""Every family of the hook table: hooks sit where the block's equations say, and the engine moves exactly what it should."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from merasteer.engine import Engine, EngineConfig, wrap_model
from merasteer.engine.layers import ARCHITECTURES, decoder_layers, family_of, site
from merasteer.errors import InvalidInput, UnsupportedModel
from merasteer.types import HOOK_POINTS, GenerationRequest, Policy

GEMMA = {"gemma2", "gemma3"}


def equations(name, block, seen):
    """(what the MLP is given, what the block returns) from the block's input, attention output and MLP output, family by family."""
    x, attention, mlp = seen["in"], seen["attention"], seen["mlp_out"]
    if name == "gpt_neox":  # parallel residual
        return block.post_attention_layernorm(x), x + attention + mlp
    if name == "gpt2":
        return block.ln_2(x + attention), x + attention + mlp
    if name in GEMMA:
        middle = x + block.post_attention_layernorm(attention)
        return block.pre_feedforward_layernorm(middle), middle + block.post_feedforward_layernorm(mlp)
    if name == "olmo2":
        middle = x + block.post_attention_layernorm(attention)
        return middle, middle + block.post_feedforward_layernorm(mlp)
    scale = 0.8 if name == "granite" else 1.0
    middle = x + scale * attention
    return block.post_attention_layernorm(middle), middle + scale * mlp


def test_hook_sites_are_what_the_block_computes(family):
    name, loaded = family
    block, seen = decoder_layers(loaded.model)[1], {}
    attention = next(getattr(block, part) for part in ("self_attn", "attention", "attn") if hasattr(block, part))
    kept = [
        attention.register_forward_hook(lambda _m, _i, out: seen.__setitem__("attention", out[0])),
        block.register_forward_pre_hook(lambda _m, args: seen.__setitem__("in", args[0])),
        block.mlp.register_forward_hook(lambda _m, _i, out: seen.__setitem__("mlp_out", out)),
    ]
    for point in family_of(loaded.model).sites:
        where = site(loaded.model, point)
        module = block.get_submodule(where.module) if where.module else block
        if where.side == "input":
            kept.append(
                module.register_forward_pre_hook(lambda _m, args, point=point: seen.__setitem__(point, args[0]))
            )
        else:
            kept.append(module.register_forward_hook(lambda _m, _i, out, point=point: seen.__setitem__(point, out)))
    with torch.no_grad():
        loaded.model(torch.tensor([[5, 6, 7]]))
        mlp_input, residual = equations(name, block, seen)
        assert torch.allclose(seen["mlp_input"], mlp_input, atol=1e-5)
        assert torch.allclose(seen["residual"], residual, atol=1e-4)
        if name == "gpt2":
            assert "reference" not in seen
        elif name in GEMMA or name == "olmo2":
            assert torch.allclose(seen["reference"], block.post_attention_layernorm(seen["attention"]), atol=1e-5)
        else:
            assert torch.allclose(seen["reference"], mlp_input, atol=1e-5)
    for handle in kept:
        handle.remove()


def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def test_engine_equals_plain_at_every_hook_point(family, prompts, make_vectors, plain):
    _, loaded = family
    points = list(family_of(loaded.model).sites)
    prompts = [prompts[3], prompts[5], prompts[11]]
    cases = [(point, prompt, policy) for point in points for prompt, policy in zip(
        prompts, [Policy(point, 0.3), Policy(point, 0.3, positions="all"), Policy(point)], strict=True)]  # fmt: skip
    with Engine(loaded, EngineConfig(max_batch_tokens=64)) as engine:
        for i, point in enumerate(points):
            engine.register(point, make_vectors(20 + i, point, idle=(1,)))
        futures = [engine.submit(GenerationRequest(prompt, 4, policy)) for _, prompt, policy in cases]
        answers = [future.result(120) for future in futures]
    for (point, prompt, policy), answer in zip(cases, answers, strict=True):
        v = make_vectors(20 + points.index(point), point, idle=(1,))
        truth = plain(loaded.model, prompt, 4, v, policy)
        assert list(answer.tokens) == truth.tokens, point
        assert answer.steering.steered_cells == len(truth.moved)
        assert answer.predicted_error.before == pytest.approx(sigmoid(truth.z[0][v.report_layer][0]), abs=1e-4)
        assert answer.predicted_error.after == pytest.approx(sigmoid(truth.z[0][v.report_layer][1]), abs=1e-4)
        if truth.shifts:
            assert answer.steering.mean_shift == pytest.approx(sum(truth.shifts) / len(truth.shifts), abs=1e-4)


def test_a_point_that_the_family_lacks_is_refused():
    config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)
    gpt2 = wrap_model(transformers.GPT2LMHeadModel(config), None, "x")
    with pytest.raises(InvalidInput, match="GPT2LMHeadModel has no 'reference'; use one of residual, mlp_input"):
        site(gpt2.model, "reference")


def test_attention_is_capped_as_the_model_says(make_tiny, make_vectors, plain, prompts):
    """Scores of a size that the cap changes; the families above have small ones."""
    loaded, v = make_tiny("gemma2", query_pre_attn_scalar=1, attn_logit_softcapping=2.0), make_vectors(1, "residual")
    uncapped = make_tiny("gemma2", query_pre_attn_scalar=1, attn_logit_softcapping=None)
    with Engine(loaded, EngineConfig(max_requests=8, max_batch_tokens=64)) as engine:
        engine.register("a", v)
        asked = [GenerationRequest(prompt, 4, Policy("a", 0.3)) for prompt in prompts[:8]]
        found = [future.result(60) for future in engine.submit_all(asked)]
    apart = 0
    for prompt, answer in zip(prompts, found, strict=False):
        truth = plain(loaded.model, prompt, 4, v, Policy("a", 0.3))
        assert list(answer.tokens) == truth.tokens
        assert answer.predicted_error.before == pytest.approx(
            1 / (1 + math.exp(-truth.z[0][v.report_layer][0])), abs=1e-4
        )
        apart += truth.tokens != plain(uncapped.model, prompt, 4, v, Policy("a", 0.3)).tokens
    assert apart > 0


def test_a_family_outside_the_table_is_refused_at_load(tmp_path):
    from merasteer.engine import load_model

    config = transformers.StableLmConfig(
        vocab_size=60, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(UnsupportedModel, match="StableLmForCausalLM is not in the hook table"):
        wrap_model(transformers.StableLmForCausalLM(config), None, "x")
    with pytest.raises(InvalidInput, match=r"holds no config\.json"):
        load_model(tmp_path)


def test_every_hook_point_of_the_table_is_known():
    assert all(set(row.sites) <= set(HOOK_POINTS) for row in ARCHITECTURES.values())
