"""What steering costs in the engine: ratios of medians in one run, interleaved.

    python benchmarks/engine.py [--size 56M|tiny] [--rounds 5] [--requests 32] [--new 32] [--prompt 57]

Prints a Markdown table and, as its last line, JSON. Models have random weights and are made on the spot.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from merasteer.engine import Engine, EngineConfig, LoadedModel, wrap_model
from merasteer.types import GenerationRequest, Policy, SteeringVectors

SIZES = {  # hidden, MLP, layers, heads, key-value heads, vocabulary
    "56M": (512, 1376, 8, 8, 8, 32_000),
    "tiny": (128, 336, 4, 4, 4, 700),
}


def make_model(size: str) -> LoadedModel:
    hidden, mlp, layers, heads, kv_heads, vocab = SIZES[size]
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=2048, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(vocab)}, unk_token="w0"))
    return wrap_model(LlamaForCausalLM(config), PreTrainedTokenizerFast(tokenizer_object=words), f"random-{size}")


def make_vectors(loaded: LoadedModel, seed: int) -> SteeringVectors:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(loaded.layers, loaded.width, generator=generator)
    weight /= weight.norm(dim=-1, keepdim=True)
    return SteeringVectors("residual", weight, torch.zeros(loaded.layers), weight.clone(), loaded.layers // 2)


def engine_rate(loaded: LoadedModel, requests: list[GenerationRequest], policies: int) -> float:
    """Generated tokens per second of one batch of requests."""
    with Engine(loaded, EngineConfig(max_requests=64)) as engine:
        for seed in range(policies):
            engine.register(f"p{seed}", make_vectors(loaded, seed))
        engine.submit(requests[0]).result()  # warm
        start = time.perf_counter()
        futures = [engine.submit(request) for request in requests]
        tokens = sum(len(future.result().tokens) for future in futures)
        return tokens / (time.perf_counter() - start)


def hook_loop_rate(loaded: LoadedModel, prompts: list[tuple[int, ...]], new: int) -> float:
    """One prompt at a time with a hook per layer, then a second pass that scores the answer: how research code runs."""
    vectors, model = make_vectors(loaded, 0), loaded.model

    def steer(layer: int) -> Callable[..., torch.Tensor]:
        def hook(_module: object, _inputs: object, hidden: torch.Tensor) -> torch.Tensor:
            z = hidden @ vectors.weight[layer]
            return hidden - z.clamp(min=0)[..., None] * vectors.step[layer]

        return hook

    handles = [block.register_forward_hook(steer(i)) for i, block in enumerate(model.model.layers)]
    start = time.perf_counter()
    try:
        for prompt in prompts:
            ids = torch.tensor([prompt])
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
            )
            with torch.no_grad():
                model(whole)
    finally:
        for handle in handles:
            handle.remove()
    return len(prompts) * new / (time.perf_counter() - start)


def cases(loaded: LoadedModel, prompts: list[tuple[int, ...]], new: int) -> dict[str, Callable[[], float]]:
    def requests(policies: int, n: int = len(prompts)) -> list[GenerationRequest]:
        pick = [Policy(f"p{i % policies}", 0.5) if policies else None for i in range(n)]
        return [GenerationRequest(prompt, new, policy) for prompt, policy in zip(prompts, pick, strict=False)]

    return {
        "no policy": lambda: engine_rate(loaded, requests(0), 0),
        "1 policy": lambda: engine_rate(loaded, requests(1), 1),
        "16 policies": lambda: engine_rate(loaded, requests(16), 16),
        "alone, no policy": lambda: engine_rate(loaded, requests(0, 1), 0),
        "alone, 1 policy": lambda: engine_rate(loaded, requests(1, 1), 1),
        "hook loop": lambda: hook_loop_rate(loaded, prompts[:2], new),
    }


RATIOS = {
    "steered ÷ unsteered": ("1 policy", "no policy"),
    "16 policies ÷ unsteered": ("16 policies", "no policy"),
    "alone: steered ÷ unsteered": ("alone, 1 policy", "alone, no policy"),
    "steered ÷ hook loop": ("1 policy", "hook loop"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="56M")
    for name, default in (("rounds", 5), ("requests", 32), ("new", 32), ("prompt", 57)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    loaded = make_model(given.size)
    prompts = [tuple(torch.randint(1, loaded.vocab, (given.prompt,)).tolist()) for _ in range(given.requests)]
    measured: dict[str, list[float]] = {}
    for _ in range(given.rounds):  # interleaved: a machine that slows down slows all of them
        for name, run in cases(loaded, prompts, given.new).items():
            measured.setdefault(name, []).append(run())
    median = {name: statistics.median(rates) for name, rates in measured.items()}
    ratios = {
        name: statistics.median([x / y for x, y in zip(measured[a], measured[b], strict=True)])
        for name, (a, b) in RATIOS.items()
    }
    print("| case | tokens/s (median) |\n|---|---|")
    print("\n".join(f"| {name} | {rate:.1f} |" for name, rate in median.items()))
    print("\n| ratio, round by round (median) | |\n|---|---|")
    print("\n".join(f"| {name} | {ratio:.3f} |" for name, ratio in ratios.items()))
    setup = {
        **vars(given),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    print(
        json.dumps(
            {"tokens_per_second": median, "ratios": ratios, "setup": {**setup, "python": platform.python_version()}}
        )
    )


if __name__ == "__main__":
    main()
