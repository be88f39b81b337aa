"""What sharing prompts between candidates saves a calibration: ratios of medians in one run, interleaved.

    python benchmarks/prefix.py [--size 56M|tiny|FOLDER] [--rounds 3] [--policies 60] [--items 50] [--prompt 57]

Every item is asked once under every policy, candidate by candidate, and answers with one token, in the engine as the pipeline sizes it.
Prints a Markdown table and, as its last line, JSON. Models have random weights and are made on the spot; any other name is loaded.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from dataclasses import replace

import torch
import transformers
from models import make_model, make_vectors

from merasteer.engine import Engine, LoadedModel
from merasteer.pipeline.batch import generations, sizes
from merasteer.pipeline.progress import Bars
from merasteer.types import GenerationRequest, Policy

READOUTS = 6  # resident steering vectors; the policies differ in threshold beyond that


def measure(loaded: LoadedModel, requests: list[GenerationRequest], share: bool) -> tuple[float, float]:
    """(requests per second, tokens through the model per request)."""
    longest = max(len(request.prompt) for request in requests) + 1
    tokens = 0

    def count(_module: object, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        nonlocal tokens
        tokens += kwargs["input_ids"].shape[1]

    with (
        Engine(loaded, replace(sizes(loaded, longest), share_prefixes=share)) as engine,
        Bars().bar("", len(requests)) as bar,
    ):
        for seed in range(READOUTS):
            engine.register(f"v{seed}", make_vectors(loaded, seed))
        engine.submit(GenerationRequest((1, 2, 3), 1)).result()  # warm
        hook = loaded.model.register_forward_pre_hook(count, with_kwargs=True)
        try:
            start = time.perf_counter()
            answered = sum(1 for _ in generations(engine, requests, bar))
            return answered / (time.perf_counter() - start), tokens / answered
        finally:
            hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="56M")
    for name, default in (("rounds", 3), ("policies", 60), ("items", 50), ("prompt", 57)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    loaded = make_model(given.size)
    prompts = [tuple(torch.randint(1, loaded.vocab, (given.prompt,)).tolist()) for _ in range(given.items)]
    policies = [Policy(f"v{i % READOUTS}", (i + 1) / (given.policies + 1)) for i in range(given.policies)]
    requests = [
        GenerationRequest(prompt, 1, policy, variants=((1,), (2,))) for policy in policies for prompt in prompts
    ]
    cases = {"shared": True, "not shared": False}
    rates: dict[str, list[float]] = {name: [] for name in cases}
    computed: dict[str, float] = {}
    for _ in range(given.rounds):  # interleaved: a machine that slows down slows both
        for name, share in cases.items():
            rate, computed[name] = measure(loaded, requests, share)
            rates[name].append(rate)
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratio = statistics.median([a / b for a, b in zip(rates["shared"], rates["not shared"], strict=True)])
    print("| prompts | requests/s (median) | tokens computed per request |\n|---|---|---|")
    print("\n".join(f"| {name} | {median[name]:.1f} | {computed[name]:.1f} |" for name in cases))
    print(f"\nshared ÷ not shared, round by round (median): {ratio:.2f}")
    setup = {
        **vars(given),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps({"requests_per_second": median, "tokens_per_request": computed, "ratio": ratio, "setup": setup}))


if __name__ == "__main__":
    main()
