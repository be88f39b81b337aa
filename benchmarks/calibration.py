"""How much faster candidates are tried in one batch than by research code: one prompt at a time, with hooks, scored in a second pass.

    python benchmarks/calibration.py [--size 56M demo] [--rounds 3] [--prompts 64] [--prompt 57] [--alphas 10] [--loop 20]

The batch asks every prompt once unsteered and once per candidate (2 hook points × α), the way `mera run` calibrates: engine, hooks and
tables are set up and taken down inside the time. The loop asks for `--loop` of these answers, drawn at random, half before and half
behind the batch. Tokens are the useful ones on either side: each request's prompt and what it generated. `demo` is the built-in
model with the prompts of its task; the others have random weights and hardly ever answer with a label. Prints a Markdown table and, as
its last line, JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import transformers
from models import SIZES, hook_loop, make_model, make_vectors

from merasteer.demo import model_dir, tasks_dir
from merasteer.engine import LoadedModel, load_model
from merasteer.pipeline import Bars
from merasteer.pipeline.batch import Prompts, answers, running
from merasteer.tasks import Prompter, load_task, make_splits, resolve
from merasteer.types import UNCORRECTED, Correction, HookPoint, ServedTask, SteeringVectors

POINTS: tuple[HookPoint, ...] = ("residual", "mlp_input")


@dataclass(frozen=True)
class Round:
    """Useful tokens per second on either side, their ratio per processor second (which other programs disturb less), and of
    the loop's answers that name a label the share that the batch gives too."""

    batch: float
    loop: float
    processor_ratio: float
    same: float | None


class Stopwatch:
    """Seconds on the wall and of the processor (all threads) between entry and exit."""

    def __enter__(self) -> Stopwatch:
        self.wall, self.processor = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter()
        self.processor += time.process_time()


def random_case(size: str, prompts: int, length: int) -> tuple[LoadedModel, Prompts]:
    loaded = make_model(size)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, loaded.vocab, (prompts, length), generator=generator).tolist()
    task = ServedTask("random", ("one", "two"), (((1,),), ((2,),)), "{text}")
    return loaded, Prompts(task, tuple(tuple(row) for row in tokens))


def demo_case(prompts: int) -> tuple[LoadedModel, Prompts]:
    loaded = load_model(model_dir(), device="cpu")
    task = load_task("demo_spam", search=[tasks_dir()])
    items = make_splits(task).train[:prompts]
    return loaded, Prompts.of(Prompter(resolve(task, loaded.tokenizer), loaded.tokenizer), items)


def measure(loaded: LoadedModel, prompts: Prompts, alphas: int, loop: int, rng: random.Random) -> Round:
    vectors = {point: make_vectors(loaded, seed, point) for seed, point in enumerate(POINTS)}
    grid = torch.linspace(0.05, 0.95, alphas).tolist()
    steps = [UNCORRECTED, *(Correction("mera", point, alpha) for point in POINTS for alpha in grid)]
    requests = [request for step in steps for request in prompts.requests(step)]
    drawn = rng.sample(range(len(requests)), min(loop, len(requests)))
    halves = [drawn[::2], drawn[1::2]]

    def looped(indices: Sequence[int]) -> list[list[int]]:
        found = []
        for i in indices:
            request, policy = requests[i], requests[i].policy
            chosen: SteeringVectors | None = vectors[policy.vectors] if policy else None
            alpha = policy.alpha if policy and policy.alpha else 0.5
            found += hook_loop(loaded, [request.prompt], request.max_new_tokens, chosen, alpha)
        return found

    looped(drawn[:1])  # warm
    said: list[list[int]] = []
    with Stopwatch() as first:
        said += looped(halves[0])
    with Stopwatch() as batch, running(loaded, prompts.longest) as engine, Bars().bar("batch", len(requests)) as bar:
        for point, one in vectors.items():
            engine.register(point, one)
        label = answers(engine, requests, bar).label
    with Stopwatch() as second:
        said += looped(halves[1])

    where = [i for half in halves for i in half]
    labels = {token: index for index, ids in enumerate(prompts.task.variants) for (token, *_) in ids}
    pairs = [(labels[tokens[0]], int(label[i])) for i, tokens in zip(where, said, strict=True) if tokens[0] in labels]
    same = sum(one == other for one, other in pairs) / len(pairs) if pairs else None
    useful = sum(len(requests[i].prompt) + len(tokens) for i, tokens in zip(where, said, strict=True))
    everything = sum(len(request.prompt) + request.budget for request in requests)
    wall, processor = first.wall + second.wall, first.processor + second.processor
    return Round(everything / batch.wall, useful / wall, (everything / batch.processor) / (useful / processor), same)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", choices=[*SIZES, "demo"], default=["56M", "demo"])
    for name, default in (("rounds", 3), ("prompts", 64), ("prompt", 57), ("alphas", 10), ("loop", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args(arguments)
    rng, load = random.Random(0), os.getloadavg()
    sides = {
        size: demo_case(given.prompts) if size == "demo" else random_case(size, given.prompts, given.prompt)
        for size in given.size
    }
    measured: dict[str, list[Round]] = {size: [] for size in sides}
    for _ in range(given.rounds):  # interleaved: a machine that slows down slows all of them
        for size, (loaded, prompts) in sides.items():
            measured[size].append(measure(loaded, prompts, given.alphas, given.loop, rng))
    print(
        "| model | prompts × candidates, + 1 | batch, tokens/s | loop, tokens/s | ratio (median) | range | CPU time | same answers |"
    )
    print("|---|---|---|---|---|---|---|---|")
    results = {}
    for size, rounds in measured.items():
        ratios = [one.batch / one.loop for one in rounds]
        batch, loop = (statistics.median(getattr(one, side) for one in rounds) for side in ("batch", "loop"))
        agreed = [one.same for one in rounds if one.same is not None]
        same = statistics.mean(agreed) if agreed else None
        processor = statistics.median(one.processor_ratio for one in rounds)
        ratio, tried = statistics.median(ratios), len(POINTS) * given.alphas + 1
        print(
            f"| {size} | {len(sides[size][1].tokens)} × {tried} | {batch:.0f} | {loop:.0f} | {ratio:.1f} | "
            f"{min(ratios):.1f}–{max(ratios):.1f} | {processor:.1f} | {'–' if same is None else f'{same:.0%}'} |"
        )
        results[size] = {
            "prompt_tokens": statistics.mean(len(tokens) for tokens in sides[size][1].tokens),
            "batch": batch,
            "loop": loop,
            "ratio": ratio,
            "ratios": ratios,
            "processor_ratio": processor,
            "same_answers": same,
        }
    setup = {
        **vars(given),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": {"before": load, "after": os.getloadavg()},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    print(
        json.dumps(
            {
                "tokens_per_second": results,
                "ratios": {size: one["ratio"] for size, one in results.items()},
                "setup": setup,
            }
        )
    )


if __name__ == "__main__":
    main()
