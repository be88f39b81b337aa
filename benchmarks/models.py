"""Random models made on the spot, readouts for them, and the loop that research code runs: what the benchmarks share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merasteer.engine import LoadedModel, load_model, wrap_model
from merasteer.engine.layers import decoder_layers, site
from merasteer.types import ClassReadouts, HookPoint, Law, Policy, SteeringVectors

LABELS = 3  # of vectors with class readouts
SIZES = {  # hidden, MLP, layers, heads, key-value heads, vocabulary
    "tiny": (128, 336, 4, 4, 4, 700),
    "56M": (512, 1376, 8, 8, 8, 32_000),
    "0.5B": (1024, 2816, 24, 16, 8, 64_000),
    "1B": (2048, 8192, 16, 32, 8, 64_000),
    "135M-128k": (576, 1536, 30, 9, 3, 128_000),  # SmolLM2-135M, but for the vocabulary
}
KINDS = ("closed_form", "gated", "proportional", "by_label", "label_probe")


def make_model(size: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> LoadedModel:
    """A Llama of random weights with a tokenizer of numbered words; any other name is loaded as a model folder or hub id."""
    if size not in SIZES:
        return load_model(size, device=device, dtype=str(dtype).removeprefix("torch."))
    hidden, mlp, layers, heads, kv_heads, vocab = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=2048, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with torch.device(device):
        model = LlamaForCausalLM(config).to(dtype)
    return wrap_model(model, PreTrainedTokenizerFast(tokenizer_object=words), f"random-{size}")


def random_prompts(loaded: LoadedModel, count: int, length: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Different prompts of as many tokens each."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(row) for row in torch.randint(1, loaded.vocab, (count, length), generator=generator).tolist()]


def make_vectors(loaded: LoadedModel, seed: int, hook_point: HookPoint = "residual") -> SteeringVectors:
    """Random readouts of unit length at every layer."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(loaded.layers, loaded.width, generator=generator)
    weight /= weight.norm(dim=-1, keepdim=True)
    return SteeringVectors(hook_point, weight, torch.zeros(loaded.layers), weight.clone(), loaded.layers // 2)


def make_kind(loaded: LoadedModel, seed: int) -> SteeringVectors:
    """Random readouts whose step is of one kind after the other; as the pipeline makes them, those with classes act at one layer each."""
    kind, plain = KINDS[seed % len(KINDS)], make_vectors(loaded, seed)
    if kind in ("closed_form", "gated", "proportional"):
        return replace(plain, law=kind)
    layer, generator = seed % loaded.layers, torch.Generator().manual_seed(seed)
    weight = torch.zeros_like(plain.weight)
    weight[layer] = plain.weight[layer]
    scores, steps = (torch.randn(1, LABELS, loaded.width, generator=generator) for _ in range(2))
    steps = torch.zeros_like(steps) if kind == "label_probe" else steps / loaded.width**0.5
    law: Law = "label_probe" if kind == "label_probe" else "gated"
    classes = ClassReadouts(scores, torch.zeros(1, LABELS), steps)
    return SteeringVectors("residual", weight, plain.bias, torch.zeros_like(weight), layer, law, classes)


def make_policy(number: int, kinds: bool) -> Policy:
    """What asks for the vectors that are held as `p{number}`."""
    acts = kinds and KINDS[number % len(KINDS)] in ("gated", "proportional", "by_label")
    return Policy(f"p{number}", 0.5, 0.3 if acts else 0.0)


@torch.inference_mode()
def hook_loop(
    loaded: LoadedModel,
    prompts: Sequence[tuple[int, ...]],
    new: int,
    vectors: SteeringVectors | None,
    alpha: float = 0.5,
) -> list[list[int]]:
    """The generated tokens of each prompt, one prompt at a time with a hook per layer, then a second pass that scores the answer.

    Steered from the last prompt position on; not at all where `vectors` is None.
    """
    model, handles, prompt = loaded.model, [], ()
    limit, answers = math.log(alpha / (1.0 - alpha)), []

    def move(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        # `prompt` is the one that the loop below is at; what is shorter is a single token, behind the cache.
        first = len(prompt) - 1 if hidden.shape[1] >= len(prompt) else 0
        acting = hidden[:, first:]
        z = acting @ vectors.weight[layer] + vectors.bias[layer]
        hidden = hidden.clone()
        hidden[:, first:] = acting + (limit - z).clamp(max=0.0)[..., None] * vectors.step[layer]
        return hidden

    def attach(layer: int, module: torch.nn.Module, side: str) -> Any:
        if side == "input":
            return module.register_forward_pre_hook(lambda _module, args: (move(layer, args[0]), *args[1:]))
        return module.register_forward_hook(lambda _module, _args, output: move(layer, output))

    try:
        if vectors is not None:
            where = site(model, vectors.hook_point)
            for layer, block in enumerate(decoder_layers(model)):
                handles.append(attach(layer, block.get_submodule(where.module), where.side))
        for prompt in prompts:
            ids = torch.tensor([prompt])
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
            )
            model(whole)
            answers.append(whole[0, len(prompt) :].tolist())
    finally:
        for handle in handles:
            handle.remove()
    return answers
