"""How cost grows: with requests at once, prompt length, resident policies and layers; bfloat16; and short prompts behind long ones.

    python benchmarks/growth.py [--size 56M|tiny] [--rounds 3]

Prints Markdown and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from engine import Bench, Load, config_for, opened
from measure import Found, Ratio, Section, compare, interleave, medians, setup
from models import make_model, make_vectors, random_prompts

from merasteer.engine import LoadedModel
from merasteer.types import GenerationRequest, Policy, SteeringVectors

BASE = Load(32, 57, 32)
SWEEPS: Mapping[str, Sequence[Load]] = {
    "requests at once": [replace(BASE, requests=n) for n in (1, 2, 4, 8, 16, 32, 64)],
    "prompt tokens": [Load(8, n, 16) for n in (16, 64, 256, 1024)],
    "resident policies": [replace(BASE, policies=n, requests=64) for n in (1, 4, 16, 64)],
}


def sweep(loaded: LoadedModel, name: str, loads: Sequence[Load], rounds: int) -> str:
    """A table: tokens per second steered and with no hooks, tokens of prompts counted too, and the ratio of the two."""
    with opened(loaded, config_for(max(load.tokens for load in loads))) as bench:
        cases = {
            (load, steered): partial(bench.run, load if steered else replace(load, policies=0))
            for load in loads
            for steered in (True, False)
        }
        rates: dict[object, list[float]] = interleave(cases, rounds)  # type: ignore[arg-type, assignment]
    rows = []
    for load in loads:
        size = {"requests at once": load.requests, "prompt tokens": load.prompt, "resident policies": load.policies}[
            name
        ]
        steered, bare = rates[load, True], rates[load, False]
        [ratio] = compare({"a": steered, "b": bare}, [Ratio("", "a", "b")])
        through = (load.prompt + load.new) / load.new
        generated = medians({"": steered})[""]
        rows.append(f"| {size} | {generated:.0f} | {generated * through:.0f} | {ratio.value:.3f} |")
    head = (
        f"| {name} | generated tokens/s, steered | with the prompts' tokens | steered ÷ no hooks |\n|---|---|---|---|"
    )
    return "\n".join([head, *rows])


def layers_table(loaded: LoadedModel, rounds: int) -> str:
    """Readouts at some layers only: the others have no hook."""
    counts = [n for n in (0, 1, 2, 4, 8, 16, 32) if n <= loaded.layers]
    with opened(loaded, config_for(BASE.tokens)) as bench:
        for count in counts[1:]:
            bench.engine.register(f"layers{count}", _at_first_layers(loaded, count))
            bench.engine.unregister(f"layers{count}")
        rates = interleave({str(count): partial(_rate_at_layers, bench, loaded, count) for count in counts}, rounds)
    rows = []
    for count in counts:
        [ratio] = compare(rates, [Ratio("", str(count), "0")])
        rows.append(f"| {count} | {medians(rates)[str(count)]:.0f} | {ratio.value:.3f} |")
    return "\n".join(["| layers with a readout | generated tokens/s | ÷ none |", "|---|---|---|", *rows])


def _at_first_layers(loaded: LoadedModel, count: int) -> SteeringVectors:
    whole = make_vectors(loaded, 0)
    kept = (torch.arange(loaded.layers) < count).float()[:, None]
    return replace(whole, weight=whole.weight * kept, step=whole.step * kept, report_layer=0)


def _rate_at_layers(bench: Bench, loaded: LoadedModel, count: int) -> float:
    """The base load under one policy that reads `count` layers."""
    if not count:
        return bench.run(replace(BASE, policies=0))
    bench.resident(0)
    bench.engine.register("some", _at_first_layers(loaded, count))
    try:
        return bench.rate(
            [
                GenerationRequest(p, BASE.new, Policy("some", 0.5))
                for p in random_prompts(loaded, BASE.requests, BASE.prompt)
            ]
        )
    finally:
        bench.engine.unregister("some")


def fairness(loaded: LoadedModel, rounds: int) -> list[Found]:
    """How long 8 short prompts wait for their first token behind 16 of 768 tokens, as a share of what the long ones take."""
    long, short = random_prompts(loaded, 16, 768), random_prompts(loaded, 8, 32, seed=1)

    def measure(bench: Bench) -> float:
        with bench.engine.held():
            longs = [bench.engine.submit(GenerationRequest(prompt, 4)) for prompt in long]
            shorts = [bench.engine.submit(GenerationRequest(prompt, 4)) for prompt in short]
        answers = [future.result() for future in shorts]
        end = max(future.result().token_times[0] for future in longs)
        begin = min(future.result().queued_at for future in longs)
        return sum(answer.token_times[0] - begin for answer in answers) / len(answers) / (end - begin)

    with opened(loaded, config_for(16 * 800)) as bench:
        shares = interleave({"share": partial(measure, bench)}, rounds)["share"]
    middle = sorted(shares)[len(shares) // 2]
    return [
        Found(
            "short prompts' wait ÷ that of the long ones before them",
            middle,
            min(shares),
            max(shares),
            None,
            at_most=True,
        )
    ]


def bfloat16_section(size: str, rounds: int) -> Section:
    """The same load in bfloat16 and in float32."""
    section = Section(f"bfloat16, {size}")
    if not _has_bfloat16():
        section.notes.append("not measured: this processor has no AVX512-BF16")
        return section
    models = {"float32": make_model(size), "bfloat16": make_model(size, torch.bfloat16)}

    def rate(name: str) -> float:
        with opened(models[name], config_for(BASE.tokens)) as bench:
            return bench.run(BASE)

    rates = interleave({name: partial(rate, name) for name in models}, rounds)
    section.rates = medians(rates)
    section.found = compare(rates, [Ratio("bfloat16 ÷ float32, 32 requests steered", "bfloat16", "float32", 1.5)])
    return section


def _has_bfloat16() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text(encoding="utf-8")


def growth_section(size: str, rounds: int) -> Section:
    """Every sweep on one model."""
    loaded = make_model(size)
    section = Section(f"Growth, {loaded.id}, {loaded.dtype}")
    tables: list[Callable[[], str]] = [partial(sweep, loaded, name, loads, rounds) for name, loads in SWEEPS.items()]
    section.tables = [table() for table in [*tables, partial(layers_table, loaded, rounds)]]
    section.found = fairness(loaded, rounds)
    return section


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="56M")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    for section in (growth_section(given.size, given.rounds), bfloat16_section(given.size, given.rounds)):
        print(section.markdown() + "\n")
        print(json.dumps({"setup": setup(**vars(given)), **asdict(section)}))


if __name__ == "__main__":
    main()
