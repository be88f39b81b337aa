"""Tiny random models, and a slow plain implementation of steering written from the equations (docs/method.md), sharing no code."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from merasteer.engine import Engine, LoadedModel, wrap_model
from merasteer.types import ClassReadouts, Policy, SteeringVectors

VOCAB, LAYERS, WIDTH = 300, 4, 48


def word_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


_KV: dict[str, Any] = {"num_key_value_heads": 2}
_GEMMA: dict[str, Any] = {**_KV, "head_dim": 12, "sliding_window": 16}  # shorter than the prompts
BORDER = 24  # the original context of the long ropes: prompts and answers lie on both sides
LONGROPE: dict[str, Any] = {  # factors of a size that a wrong side shows
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.5, 2.0, 3.0, 5.0, 8.0, 9.0], "original_max_position_embeddings": BORDER,
}  # fmt: skip
DYNAMIC: dict[str, Any] = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}  # up to four times the field
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, _KV),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, _KV),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {**_KV, "head_dim": 12}),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig, {**_KV, "sliding_window": 16}),
    "phi3": (transformers.Phi3ForCausalLM, transformers.Phi3Config, {**_KV, "sliding_window": None}),
    "phi3_longrope": (
        transformers.Phi3ForCausalLM,
        transformers.Phi3Config,
        {
            **_KV,
            "sliding_window": None,
            "original_max_position_embeddings": BORDER,
            "rope_parameters": LONGROPE,
        },
    ),
    "granite": (
        transformers.GraniteForCausalLM,
        transformers.GraniteConfig,
        {
            **_KV,
            "residual_multiplier": 0.8,
            "embedding_multiplier": 2.0,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.3,
        },
    ),
    "smollm3": (transformers.SmolLM3ForCausalLM, transformers.SmolLM3Config, _KV),
    "gemma2": (
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config,
        {**_GEMMA, "attn_logit_softcapping": 20.0, "final_logit_softcapping": 10.0},
    ),
    "gemma3": (transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig, _GEMMA),
    "olmo2": (transformers.Olmo2ForCausalLM, transformers.Olmo2Config, _KV),
    "gpt_neox": (transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig, {}),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, {"n_inner": 96}),
}


def tiny(family: str, seed: int = 0, **more: Any) -> LoadedModel:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    model_class, config_class, extra = FAMILIES[family]
    model = model_class(config_class(**{**sizes, **extra, **more}))
    with torch.no_grad():  # random weights of a size that makes activations and steps matter
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    return wrap_model(model, word_tokenizer(), f"tiny-{family}")


def blocks_of(model: Any) -> Any:
    """The decoder blocks, where each family keeps them."""
    if hasattr(model, "gpt_neox"):
        return model.gpt_neox.layers
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def vectors(
    seed: int, hook_point: str, *, idle: tuple[int, ...] = (), report: int = 2, skew: bool = True
) -> SteeringVectors:
    """Random readouts with w·ũ = 1; `skew` makes the step another direction than the readout."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(LAYERS, WIDTH, generator=generator) * 0.3
    direction = weight + (0.3 * torch.randn(LAYERS, WIDTH, generator=generator) if skew else 0.0)
    step = direction / (weight * direction).sum(-1, keepdim=True)
    bias = torch.randn(LAYERS, generator=generator) * 0.3
    for layer in idle:
        weight[layer], step[layer], bias[layer] = 0, 0, 5.0  # a bias that would move it if idleness were forgotten
    return SteeringVectors(hook_point, weight, bias, step, report)  # type: ignore[arg-type]


def acting(
    seed: int, hook_point: str, law: str, *, layers: tuple[int, ...] = (0, 1, 2, 3), labels: int = 0
) -> SteeringVectors:
    """Random gates with steps of about the activations' size; with class readouts where there are labels."""
    plain = vectors(seed, hook_point, idle=tuple(set(range(LAYERS)) - set(layers)), report=layers[-1])
    generator = torch.Generator().manual_seed(1000 + seed)
    step = torch.randn(LAYERS, WIDTH, generator=generator) * (plain.weight.abs().sum(-1, keepdim=True) > 0)
    classes = None
    if labels:
        shape = (len(layers), labels, WIDTH)
        weight, steps = (torch.randn(shape, generator=generator) for _ in range(2))
        step = torch.zeros(LAYERS, WIDTH)
        if law == "label_probe":
            steps = torch.zeros(shape)
        classes = ClassReadouts(weight, torch.randn(shape[:2], generator=generator), steps)
    return SteeringVectors(hook_point, plain.weight, plain.bias, step, layers[-1], law, classes)  # type: ignore[arg-type]


@dataclass
class PlainAnswer:
    tokens: list[int] = field(default_factory=list)
    z: list[list[tuple[float, float]]] = field(
        default_factory=list
    )  # per step, per layer: before and after at the choosing position
    shifts: list[float] = field(default_factory=list)  # of moved cells, each position once
    moved: set[tuple[int, int]] = field(default_factory=set)  # (position, layer)
    logits: torch.Tensor | None = None  # at the first step
    said: int | None = None  # by class readouts, at the end of the prompt


def plain_generate(
    model: Any, prompt: tuple[int, ...], new: int, v: SteeringVectors | None, policy: Policy | None
) -> PlainAnswer:
    """One prompt at a time, the whole sequence again for every token, one hook per layer, scalar loops over positions."""
    answer, sequence = PlainAnswer(), list(prompt)
    for _ in range(new):
        seen: dict[int, tuple[float, float]] = {}

        def move(layer: int, hidden: torch.Tensor, seen: dict[int, tuple[float, float]] = seen) -> torch.Tensor:
            assert v is not None
            assert policy is not None
            out = hidden.clone()
            w, b, u = v.weight[layer], float(v.bias[layer]), v.step[layer]
            if float(w.abs().sum()) == 0.0:
                return out
            last = len(prompt) - 1
            acting = {"all": range(10**6), "generation": range(last, 10**6), "last": [last]}
            where = policy.positions if isinstance(policy.positions, tuple) else acting[policy.positions]
            for position in range(hidden.shape[1]):
                h = hidden[0, position]
                z = float(w @ h) + b
                after = z
                if position in where and (policy.layers is None or layer in policy.layers):
                    t = 0.0
                    opened = policy.alpha is not None and z > math.log(policy.alpha / (1 - policy.alpha))
                    if v.law != "closed_form":
                        t = -policy.strength if opened else 0.0
                        t *= 1 / (1 + math.exp(-z)) if v.law == "proportional" else 1.0
                        if v.classes is not None:
                            i = v.active_layers.index(layer)
                            label = int((v.classes.weight[i] @ h + v.classes.bias[i]).argmax())
                            u = v.classes.step[i, label]
                            if opened and position == len(prompt) - 1:
                                answer.said = label
                    else:
                        if opened:
                            t = math.log(policy.alpha / (1 - policy.alpha)) - z
                        t -= policy.strength
                    if t != 0.0:
                        out[0, position] = h + t * u
                        after = float(w @ out[0, position]) + b
                        if (position, layer) not in answer.moved:
                            answer.moved.add((position, layer))
                            answer.shifts.append(float((t * u).norm() / h.norm()))
                if position == hidden.shape[1] - 1:
                    seen[layer] = (z, after)
            return out

        handles = (
            [_plain_hook(block, index, v.hook_point, move) for index, block in enumerate(blocks_of(model))] if v else []
        )
        try:
            with torch.no_grad():
                logits = model(torch.tensor([sequence])).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        answer.logits = logits if answer.logits is None else answer.logits
        answer.z.append([seen.get(layer, (0.0, 0.0)) for layer in range(LAYERS)])
        answer.tokens.append(int(logits.argmax()))
        sequence.append(answer.tokens[-1])
    return answer


def _plain_hook(block: Any, layer: int, hook_point: str, move: Callable[[int, torch.Tensor], torch.Tensor]) -> Any:
    if hook_point == "residual":
        return block.register_forward_hook(lambda _m, _i, output: move(layer, output))
    if hook_point == "mlp_input":
        return block.mlp.register_forward_pre_hook(lambda _m, inputs: (move(layer, inputs[0]),))
    return block.post_attention_layernorm.register_forward_hook(lambda _m, _i, output: move(layer, output))


@pytest.fixture(scope="session")
def llama() -> LoadedModel:
    return tiny("llama")


@pytest.fixture(scope="session")
def qwen() -> LoadedModel:
    return tiny("qwen2")


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[str, LoadedModel]:
    """Every family of the hook table in turn."""
    return request.param, tiny(request.param)


@pytest.fixture(scope="session")
def make_tiny() -> Callable[..., LoadedModel]:
    return tiny


@pytest.fixture(scope="session")
def make_vectors() -> Callable[..., SteeringVectors]:
    return vectors


@pytest.fixture(scope="session")
def make_acting() -> Callable[..., SteeringVectors]:
    return acting


@pytest.fixture(scope="session")
def plain() -> Callable[..., PlainAnswer]:
    return plain_generate


@pytest.fixture(scope="session")
def settled() -> Callable[[Engine], bool]:
    """Whether slots, queue and cache of an engine are all empty within a few seconds."""

    def check(engine: Engine, seconds: float = 10.0) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stats = engine.stats()
            if (stats.running, stats.waiting, stats.cache_used_ratio) == (0, 0, 0.0):
                return True
            time.sleep(0.01)
        return False

    return check


@pytest.fixture(scope="session")
def prompts() -> list[tuple[int, ...]]:
    """24 random prompts of 5 to 44 tokens."""
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randint(1, VOCAB, (5 + 7 * i % 40,), generator=generator).tolist()) for i in range(24)]
