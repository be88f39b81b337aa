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
from models import SIZES, hook_loop, make_model, make_vectors

from merasteer.engine import Engine, EngineConfig, LoadedModel
from merasteer.types import GenerationRequest, Policy


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
    """The same of a loop, one prompt at a time with hooks and a second pass that scores the answer: how research code runs."""
    vectors = make_vectors(loaded, 0)
    start = time.perf_counter()
    tokens = sum(len(answer) for answer in hook_loop(loaded, prompts, new, vectors))
    return tokens / (time.perf_counter() - start)


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
