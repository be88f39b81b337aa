"""Rotary positions that follow a sequence's length: each request has those that `generate` gives it alone, whoever is beside it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers

from merasteer.engine import Engine, EngineConfig, LoadedModel, wrap_model
from merasteer.engine.rope import Rope, check_rope, context_of
from merasteer.errors import SeamMissing, UnsupportedModel
from merasteer.types import GenerationRequest, LabelChoice

from .conftest import BORDER, DYNAMIC, FAMILIES, LONGROPE, tiny

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
NEW = 6
ROPED = sorted(set(FAMILIES) - {"gpt2", "phi3_longrope"})
TIGHT = EngineConfig(max_requests=16, max_batch_tokens=20, cache_tokens=256, page_size=4)  # in chunks, with evictions


def roped(family: str, parameters: dict[str, Any], **more: Any) -> LoadedModel:
    """A tiny model with these rotary positions: Gemma 3 has them in the layers that attend to everything."""
    whole = {"partial_rotary_factor": 1.0} if family == "gpt_neox" else {}
    own: dict[str, Any] = {**parameters, **whole}
    if family == "gemma3":
        own = {"full_attention": own, "sliding_attention": PLAIN}
        more |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
    if family.startswith("phi3"):
        more |= {"original_max_position_embeddings": BORDER}
    return tiny(family, rope_parameters=own, **more)


def prompts(lengths: list[int]) -> list[tuple[int, ...]]:
    """Each the beginning of the next longer one, so that whatever may be shared would be."""
    tokens = torch.randint(1, 300, (max(lengths),), generator=torch.Generator().manual_seed(3)).tolist()
    return [tuple(tokens[:length]) for length in lengths]


Said = tuple[tuple[int, ...], Any]  # tokens, and the log-probability of each as pytest compares it


def generated(model: Any, prompt: tuple[int, ...], new: int = NEW) -> Said:
    """What the library's `generate` says to one prompt, on a copy that has seen no other: `dynamic` remembers."""
    fresh, ids = copy.deepcopy(model), torch.tensor([prompt])
    found = fresh.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    tokens = found.sequences[0, len(prompt) :].tolist()
    spoken = [float(row[0].log_softmax(-1)[token]) for row, token in zip(found.logits, tokens, strict=True)]
    return tuple(tokens), pytest.approx(spoken, abs=1e-4)


def ask(prompt: tuple[int, ...], new: int = NEW) -> GenerationRequest:
    return GenerationRequest(prompt, new, logprobs=True)


def answers(
    loaded: LoadedModel, asked: Sequence[tuple[int, ...]], config: EngineConfig = TIGHT
) -> list[tuple[tuple[int, ...], list[float]]]:
    """All at once, then all of them again in the other order."""
    requests = [ask(prompt) for prompt in asked]
    with Engine(loaded, config) as engine:
        found = [future.result(60) for future in engine.submit_all(requests) + engine.submit_all(requests[::-1])]
    return [(answer.tokens, list(answer.logprobs or ())) for answer in found]


def crossing(length: int) -> bool:
    return length <= BORDER < length + NEW - 1


@pytest.mark.parametrize("family", [name for name in ROPED if name != "phi3"] + ["phi3_longrope"])
def test_long_and_short_requests_in_one_batch_are_each_what_generate_gives(family: str) -> None:
    """Up to the border itself, and from one token behind it; half of the prompts would share with the other side."""
    loaded = roped(family, LONGROPE)
    asked = prompts([5, 12, BORDER - NEW, BORDER - NEW + 1, BORDER + 1, 31, 40])
    assert not any(crossing(len(prompt)) for prompt in asked)
    expected = [generated(loaded.model, prompt) for prompt in asked]
    found = answers(loaded, asked)
    assert found == expected + expected[::-1]


def test_a_request_that_may_cross_the_border_has_the_long_factors_from_the_start() -> None:
    loaded = roped("phi3", LONGROPE)
    far = roped("phi3", {**LONGROPE, "short_factor": LONGROPE["long_factor"]})  # the same weights
    near = roped("phi3", {**LONGROPE, "long_factor": LONGROPE["short_factor"]})
    asked = prompts([BORDER - NEW + 2, BORDER - 1, BORDER])
    assert all(crossing(len(prompt)) for prompt in asked)
    expected = [generated(far.model, prompt) for prompt in asked]
    assert answers(loaded, asked) == expected + expected[::-1]
    assert expected != [generated(near.model, prompt) for prompt in asked]


def test_later_branching_points_have_the_factors_of_their_request() -> None:
    """Asked about with one new token, of a request that crosses the border by what follows its label."""
    choice = LabelChoice((((7, 9), (7, 11)), ((7, 13),), ((20,),)))
    loaded, far = roped("phi3", LONGROPE), roped("phi3", {**LONGROPE, "short_factor": LONGROPE["long_factor"]})
    near = roped("phi3", {**LONGROPE, "long_factor": LONGROPE["short_factor"]})
    requests = [GenerationRequest(prompt, 12, choice=choice) for prompt in prompts([15, 18, 20])]
    found = []
    for model in (loaded, far, near):
        with Engine(model, TIGHT) as engine:
            found.append([future.result(60).answer.probabilities for future in engine.submit_all(requests)])
    mine, long, short = (torch.tensor(one) for one in found)
    assert torch.allclose(mine, long, atol=1e-5)
    assert not torch.allclose(mine, short, atol=1e-3)


@pytest.mark.parametrize("family", [name for name in ROPED if name != "phi3"])
def test_a_dynamic_base_is_each_requests_own(family: str) -> None:
    """On either side of the border and across it; the engine's model has seen longer sequences before."""
    loaded = roped(family, DYNAMIC, max_position_embeddings=BORDER)
    assert loaded.context == 4 * BORDER
    asked = prompts([5, BORDER - 3, BORDER, BORDER + 1, 31, 40])
    expected = [generated(loaded.model, prompt) for prompt in asked]
    with torch.no_grad():
        loaded.model(torch.ones(1, 80, dtype=torch.long))  # the library keeps what this stretched
    found = answers(loaded, asked)
    assert found == expected + expected[::-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("parameters", [LONGROPE, DYNAMIC], ids=["longrope", "dynamic"])
def test_what_a_packed_pass_turns_by_is_what_each_request_alone_does(dtype: Any, parameters: Any) -> None:
    loaded = roped("llama", parameters, **({"max_position_embeddings": BORDER} if parameters is DYNAMIC else {}))
    loaded.model.to(dtype)
    module, lengths = loaded.model.model.rotary_emb, {1: 9, 2: 30, 3: BORDER, 4: BORDER + 1}
    alone = [copy.deepcopy(module)(torch.zeros(1, n, 48, dtype=dtype), torch.arange(n)[None]) for n in lengths.values()]
    rope, seen = Rope(loaded.model, 5), Packed(lengths)
    for slot, length in lengths.items():
        rope.assign(slot, length, length)
    with rope.attached(lambda: seen):
        packed = module(torch.zeros(1, sum(lengths.values()), 48, dtype=dtype), seen.position[None])
    for together, parts in zip(packed, zip(*alone, strict=True), strict=True):
        apart = torch.cat(parts, 1)
        # A power of many numbers at once may differ from that of one in the last bit.
        assert torch.equal(together, apart) if parameters is LONGROPE else torch.allclose(together, apart, atol=1e-5)
        assert together.dtype == dtype


class Packed:
    """A pass over whole prompts of these lengths, by slot."""

    def __init__(self, lengths: dict[int, int]) -> None:
        self.slot = torch.cat([torch.full((n,), slot) for slot, n in lengths.items()])
        self.position = torch.cat([torch.arange(n) for n in lengths.values()])


@pytest.mark.parametrize(
    ("parameters", "sizes", "lengths", "computed"),
    [
        (LONGROPE, {}, [16, 16, 32, 36, 32], [16, 4, 32, 8, 4]),  # whole pages within a side, nothing across the border
        (DYNAMIC, {"max_position_embeddings": BORDER}, [16, 20, 20, 32, 32], [16, 8, 4, 32, 32]),  # nothing behind it
    ],
    ids=["longrope", "dynamic"],
)
def test_prompts_share_with_those_that_have_their_keys(
    parameters: Any, sizes: Any, lengths: list[int], computed: list[int]
) -> None:
    loaded, passes = roped("llama", parameters, **sizes), []
    hook = loaded.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: passes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    with Engine(loaded, EngineConfig(page_size=4, cache_tokens=1024)) as engine:
        for prompt in prompts(lengths):
            engine.submit(GenerationRequest(prompt, 1)).result(30)
    hook.remove()
    assert passes == computed


def test_the_comparison_notices_a_pass_that_is_looked_at_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above rest on: with the library's own positions, or keys shared across the border, answers are others."""
    loaded, asked = roped("phi3", LONGROPE), prompts([5, 12, 16, BORDER + 1, 31, 40])
    expected = [generated(loaded.model, prompt) for prompt in asked]
    together = EngineConfig(max_batch_tokens=512, page_size=4, cache_tokens=2048)
    with monkeypatch.context() as patched:
        patched.setattr(Rope, "named", lambda _self, tokens, _reach: tokens)
        assert answers(loaded, asked, together) != expected + expected[::-1]
    plain = Rope._forward
    with monkeypatch.context() as patched:
        patched.setattr(Rope, "_forward", lambda self, module, layers, _current: plain(self, module, layers, _nobody))
        assert answers(loaded, asked, together) != expected + expected[::-1]
    assert answers(loaded, asked, together) == expected + expected[::-1]


def _nobody() -> None:
    return None


def test_positions_that_cannot_be_given_per_token_fail_the_start_up(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = roped("phi3", LONGROPE)

    def other(self: Any, _x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = self.inv_freq[None, :, None] @ position_ids[:, None].float()
        return angles.cos(), angles.sin()

    monkeypatch.setattr(type(loaded.model.model.rotary_emb), "forward", other)
    with pytest.raises(SeamMissing, match=r"other: its rotary positions cannot be given per token; install"):
        Engine(loaded).start()
    assert "forward" not in vars(loaded.model.model.rotary_emb)


def test_the_model_is_the_librarys_own_for_everybody_else_and_afterwards() -> None:
    loaded = roped("phi3", LONGROPE)
    module, given = loaded.model.model.rotary_emb, (torch.zeros(1, 40, 48), torch.arange(40)[None])
    before = module(*given)
    with Engine(loaded) as engine:
        assert "forward" in vars(module)
        engine.submit(GenerationRequest((1, 2, 3), 2)).result(30)
        with pytest.raises(RuntimeError, match="over a paged cache only"):
            loaded.model(torch.ones(1, 40, dtype=torch.long))  # a pass of somebody else's
        assert all(map(torch.equal, module(*given), before))
    assert "forward" not in vars(module)
    assert all(map(torch.equal, module(*given), before))


@pytest.mark.parametrize("parameters", [PLAIN, {**PLAIN, "rope_type": "linear", "factor": 2.0}])
def test_models_whose_positions_look_at_nobody_are_left_alone(parameters: Any) -> None:
    loaded = roped("llama", parameters)
    with Engine(loaded):
        assert not any("rope_type" in vars(module) and "forward" in vars(module) for module in loaded.model.modules())


def test_a_kind_of_positions_that_nobody_knows_is_refused_at_load() -> None:
    loaded = tiny("llama")
    loaded.model.config.rope_parameters = {**PLAIN, "rope_type": "crowd"}
    with pytest.raises(UnsupportedModel, match=r"rope_type 'crowd' is not known here.*use a checkpoint whose"):
        wrap_model(loaded.model, loaded.tokenizer, "x")
    with pytest.raises(UnsupportedModel, match="crowd"):
        check_rope(loaded.model.config)


YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    ("parameters", "more", "context"),
    [
        (PLAIN, {}, 128),
        (YARN, {}, 512),  # Qwen2.5 and Qwen3 as their cards say: the field is that of before
        (YARN, {"max_position_embeddings": 160}, 512),
        (YARN, {"max_position_embeddings": 512}, 512),  # the field is the stretched one
        (LLAMA3, {}, 128),
        (LONGROPE, {}, 128),
        (DYNAMIC, {}, 512),
        ({**PLAIN, "rope_type": "linear", "factor": 4.0}, {}, 128),
        ({**PLAIN, "rope_type": "linear", "factor": 4.0}, {"max_sequence_length": 512}, 512),  # Vicuna
    ],
)
def test_the_context_is_what_the_positions_reach(parameters: Any, more: Any, context: int) -> None:
    sizes = {"max_position_embeddings": 128, "hidden_size": 48, "num_attention_heads": 4, **more}
    config = transformers.LlamaConfig(**sizes, rope_parameters=dict(parameters))
    assert context_of(config) == context


def test_a_request_as_long_as_the_stretched_context_is_taken() -> None:
    loaded = roped("llama", {**YARN, "original_max_position_embeddings": 32}, max_position_embeddings=32)
    [prompt] = prompts([100])
    expected, _ = generated(loaded.model, prompt, 28)
    with Engine(loaded) as engine:
        assert engine.max_tokens == 128
        assert engine.submit(ask(prompt, 28)).result(60).tokens == expected
