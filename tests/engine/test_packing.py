"""Packed weights: the same products, and the model as it was afterwards, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from merasteer.engine import Engine, EngineConfig, LoadedModel, packing, wrap_model
from merasteer.engine.packing import _rounded, can_pack, packed, warm_up
from merasteer.types import GenerationRequest, Policy, PredictedError, SteeringVectors

from .conftest import tiny

pytestmark = pytest.mark.skipif(not can_pack(nn.Linear(1, 1)), reason="this torch has no oneDNN")


def small(dtype: torch.dtype, *, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=48, intermediate_size=100, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied, attention_bias=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_products_are_the_same_and_weights_come_back(dtype: torch.dtype, close: float, tied: bool, rows: int) -> None:
    model, ids = small(dtype, tied=tied), torch.randint(0, 300, (1, rows))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        plain = model(ids).logits
        with packed(model):
            packs = can_pack(model)  # then the plain one is not held twice, but for what the embedding holds too
            assert model.model.layers[0].mlp.gate_proj.weight.numel() == (0 if packs else 100 * 48)
            assert model.lm_head.weight.numel() == (0 if packs and not tied else 300 * 48)
            assert packs or torch.equal(model(ids).logits, plain)
            torch.testing.assert_close(model(ids).logits, plain, atol=close, rtol=close)
        assert torch.equal(model(ids).logits, plain)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any("forward" in module.__dict__ for module in model.modules())


RESIDENT = """
import os, sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
from merasteer.engine.packing import packed

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

with packed(torch.nn.Sequential(torch.nn.Linear(64, 64))) as _, torch.no_grad():
    config = LlamaConfig(
        vocab_size=64_000, hidden_size=512, intermediate_size=512, num_hidden_layers=1, num_attention_heads=8,
        tie_word_embeddings=sys.argv[1] == "True",
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    before = resident()
    with packed(model):
        model(torch.zeros(1, 4, dtype=torch.long))
        print((resident() - before) / model.lm_head.in_features / 64_000 / 4)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_embedding_is_held_twice_and_nothing_else_is(tied: bool) -> None:
    """In copies of the embedding, 125 MiB of resident memory (docs/performance.md)."""
    ran = subprocess.run([sys.executable, "-c", RESIDENT, str(tied)], capture_output=True, text=True, check=True)
    assert float(ran.stdout) == pytest.approx(1.0 if tied else 0.0, abs=0.2)


def test_weights_come_back_after_an_error() -> None:
    model = small(torch.float32, tied=False)
    before = model.lm_head.weight.clone()
    with pytest.raises(ZeroDivisionError), packed(model):
        1 / 0  # noqa: B018
    assert torch.equal(model.lm_head.weight, before)


def test_an_engine_packs_and_gives_back() -> None:
    loaded: LoadedModel = tiny("llama")
    request = GenerationRequest((5, 6, 7, 8), 6)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    answers = []
    for pack in (True, False):
        with Engine(loaded, EngineConfig(pack_weights=pack)) as engine:
            assert (loaded.model.lm_head.weight.numel() == 0) == pack
            answers.append(engine.submit(request).result(30).tokens)
    assert answers[0] == answers[1]
    assert all(torch.equal(before[name], value) for name, value in loaded.model.state_dict().items())


def test_this_cpu_packs_what_it_has_instructions_for() -> None:
    """float32 wherever there is oneDNN; bfloat16 with AVX-512, unless oneDNN is told to do without."""
    assert can_pack(small(torch.float32, tied=True))
    has = torch.cpu.get_capabilities()
    if "ONEDNN_MAX_CPU_ISA" not in os.environ and all(has.get(f"avx512_{part}") for part in ("bw", "vl", "dq")):
        assert can_pack(small(torch.bfloat16, tied=True))
    assert not can_pack(small(torch.float64, tied=True))


@pytest.fixture
def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """oneDNN as on a CPU without AVX-512: nothing in bfloat16."""
    reorder = torch.ops.mkldnn._reorder_linear_weight

    def refuse(weight: torch.Tensor, rows: int) -> torch.Tensor:
        if weight.dtype == torch.bfloat16:
            raise RuntimeError(
                "mkldnn_reorder_linear_weight: bf16 path needs a cpu with avx512bw, avx512vl and avx512dq"
            )
        return reorder(weight, rows)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
    packing._packs.cache_clear()
    yield
    packing._packs.cache_clear()


@pytest.mark.usefixtures("without_bfloat16")
def test_what_the_cpu_cannot_pack_is_served_from_plain_weights(make_vectors: Callable[..., SteeringVectors]) -> None:
    whole, short = tiny("llama"), tiny("llama")
    short = wrap_model(short.model.to(torch.bfloat16), short.tokenizer, "tiny-bfloat16")
    prompts = [tuple(range(first, first + 12)) for first in range(5, 45, 10)]
    requests = [GenerationRequest(prompt, 6, policy) for prompt in prompts for policy in (Policy("v", 0.2), None)]
    found: dict[tuple[str, bool], list[tuple[tuple[int, ...], PredictedError | None]]] = {}
    for loaded in (whole, short):
        size = loaded.model.lm_head.weight.numel()
        for pack in (True, False):
            with Engine(loaded, EngineConfig(pack_weights=pack, warm_up=True, max_batch_tokens=32)) as engine:
                assert loaded.model.lm_head.weight.numel() == (0 if pack and loaded is whole else size)
                engine.register("v", make_vectors(3, "residual"))
                answers = [engine.submit(request).result(60) for request in requests]
            found[loaded.dtype, pack] = [(answer.tokens, answer.predicted_error) for answer in answers]
    assert found["bfloat16", True] == found["bfloat16", False]
    assert [tokens for tokens, _ in found["float32", True]] == [tokens for tokens, _ in found["float32", False]]
    steered = [error for _, error in found["bfloat16", True] if error is not None]
    assert len(steered) == len(prompts)
    assert any(error.before > 0.3 for error in steered)
    assert all(error.after < 0.25 for error in steered)


def test_a_start_that_fails_leaves_the_model_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = tiny("llama")
    engine = Engine(loaded, EngineConfig())
    monkeypatch.setattr(engine._steering, "rehook", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.start()
    assert loaded.model.lm_head.weight.numel() == loaded.vocab * loaded.width


def test_few_numbers_of_rows_are_computed_for() -> None:
    """Each would leave code of its own behind, for as long as the process lives."""
    rounded = {count: _rounded(count) for count in range(1, 513)}
    assert all(count <= found <= 9 / 8 * count for count, found in rounded.items())
    assert len(set(rounded.values())) == 56


def test_warming_up_meets_every_size_that_a_batch_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    model, met = small(torch.float32, tied=False), set()
    multiply = packing._multiply
    monkeypatch.setattr(
        packing,
        "_multiply",
        lambda weight, bias, rows: (met.add((weight.shape, rows.shape[-2])), multiply(weight, bias, rows))[1],
    )
    with torch.no_grad(), packed(model):
        warm_up(model, rows=40, requests=5)
        warm, _ = set(met), met.clear()
        for rows in range(1, 41):
            model(torch.zeros(1, rows, dtype=torch.long), logits_to_keep=min(rows, 5))
        assert {(shape, _rounded(rows)) for shape, rows in met} == warm
        met.clear()
        warm_up(model, rows=40, requests=5, seconds=0.0)
        assert not met
