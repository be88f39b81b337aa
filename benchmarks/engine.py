"""What steering costs in the engine, and what batching gains: one engine, its policies registered and taken out between the cases.

    python benchmarks/engine.py [--size 56M|tiny|0.5B|1B|FOLDER] [--rounds 5] [--requests 32] [--new 32] [--prompt 57]
                                [--dtype float32] [--device cpu] [--graphs]

"No hooks" is the same engine with nothing resident: no layer has a hook then. Prints Markdown and, as its last line, JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from measure import Found, Rates, Ratio, Section, compare, interleave, medians, setup, timed
from models import hook_loop, make_kind, make_model, make_policy, make_vectors, random_prompts
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from merasteer.engine import Engine, EngineConfig, LoadedModel
from merasteer.types import GenerationRequest, Sampling

RATIOS = (
    Ratio("32 requests, all steered at all layers ÷ no hooks", "1 policy", "no hooks", 0.97),
    Ratio("32 requests, 16 policies ÷ no hooks", "16 policies", "no hooks", 0.96),
    Ratio("32 requests, 16 policies of every law ÷ no hooks", "16 policies, every law", "no hooks", 0.96),
    Ratio("steered ÷ one-at-a-time hook loop", "1 policy", "hook loop", 8),
    Ratio("one request: steered ÷ no hooks", "alone, 1 policy", "alone, no hooks", 0.97),
    Ratio("one request: steered ÷ model.generate unsteered", "alone, 1 policy, new engine", "alone, generate", 0.95),
    Ratio("details trace ÷ summary", "1 policy, trace", "1 policy", 0.95),
    Ratio("64 requests ÷ 8", "64 requests", "8 requests", 2),
    Ratio("no hooks ÷ the library's batching as it comes", "no hooks", "library"),
)
DRAWING = (
    Ratio("vocabulary of 128,000, 32 requests, one sampled ÷ none", "one sampled", "greedy", 0.9),
    Ratio("all sampled ÷ none", "all sampled", "greedy"),
)
POLICIES_RESIDENT = 64


@dataclass(frozen=True)
class Load:
    """One batch: how many requests of how many tokens under how many policies (0: none resident, no hooks).

    kinds: the policies' laws differ. sampled: how many of the requests are, at temperature .7 and top-p .9.
    """

    requests: int
    prompt: int
    new: int
    policies: int = 1
    trace: bool = False
    kinds: bool = False
    sampled: int = 0

    @property
    def tokens(self) -> int:
        return self.requests * (self.prompt + self.new)


class Bench:
    """An engine that stays; each load says what is resident."""

    def __init__(self, loaded: LoadedModel, engine: Engine) -> None:
        self.loaded, self.engine = loaded, engine
        self._resident, self._kinds = 0, False

    def resident(self, policies: int, kinds: bool = False) -> None:
        if kinds != self._kinds:
            self._keep(0)
        self._kinds = kinds
        for seed in range(self._resident, policies):
            self.engine.register(f"p{seed}", (make_kind if kinds else make_vectors)(self.loaded, seed))
        self._keep(policies)
        self._resident = policies

    def _keep(self, policies: int) -> None:
        for seed in range(policies, self._resident):
            self.engine.unregister(f"p{seed}")
        self._resident = min(self._resident, policies)

    def run(self, load: Load) -> float:
        """Generated tokens per second of one batch whose requests are all there at its start."""
        self.resident(load.policies, load.kinds)
        prompts = random_prompts(self.loaded, load.requests, load.prompt)
        requests = [
            GenerationRequest(
                prompt,
                load.new,
                make_policy(i % load.policies, load.kinds) if load.policies else None,
                sampling=Sampling(temperature=0.7, top_p=0.9, seed=i) if i < load.sampled else Sampling(),
                trace=load.trace,
            )
            for i, prompt in enumerate(prompts)
        ]
        return self.rate(requests)

    def rate(self, requests: Sequence[GenerationRequest]) -> float:
        """The same of requests whose policies are resident."""
        self._answer([replace(request, max_new_tokens=2) for request in requests])  # what is made once, the first time
        return timed(lambda: self._answer(requests))

    def _answer(self, requests: Sequence[GenerationRequest]) -> int:
        with self.engine.held():
            futures = [self.engine.submit(request) for request in requests]
        return sum(len(future.result().tokens) for future in futures)


@contextmanager
def opened(loaded: LoadedModel, config: EngineConfig) -> Iterator[Bench]:
    with Engine(loaded, config) as engine:
        yield Bench(loaded, engine)


def config_for(tokens: int, requests: int = 64, **switches: bool) -> EngineConfig:
    """An engine whose cache holds `tokens` and some more. Prompts are not shared: each is to be computed."""
    pages = -(-tokens // 32) + 2 * requests
    return EngineConfig(
        max_requests=requests, cache_tokens=32 * pages, share_prefixes=False, max_policies=POLICIES_RESIDENT, **switches
    )


def library_rate(loaded: LoadedModel, load: Load) -> float:
    """The library's own continuous batching, its own attention, unsteered."""
    pages = -(-load.tokens // 32) + load.requests
    batching = ContinuousBatchingConfig(page_size=32, num_blocks=pages, max_batch_tokens=512, max_requests_per_batch=64)
    generation = GenerationConfig(do_sample=False, max_new_tokens=load.new, pad_token_id=0, eos_token_id=-1)
    prompts = [list(prompt) for prompt in random_prompts(loaded, load.requests, load.prompt)]

    def answer() -> int:
        outputs = loaded.model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=batching, progress_bar=False
        )
        return sum(len(output.generated_tokens) for output in outputs.values())

    try:
        return timed(answer)
    finally:
        loaded.model.set_attn_implementation(loaded.attention)


@torch.inference_mode()
def generate_rate(loaded: LoadedModel, load: Load) -> float:
    """`model.generate`, one prompt."""
    ids = torch.tensor(random_prompts(loaded, 1, load.prompt), device=loaded.model.device)
    return timed(
        lambda: (
            loaded.model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=load.new, do_sample=False, pad_token_id=0
            ).shape[1]
            - load.prompt
        )
    )


def hook_loop_rate(loaded: LoadedModel, load: Load) -> float:
    """A loop, one prompt at a time with hooks and a second pass that scores the answer: how research code runs. Two prompts of the load."""
    prompts, vectors = random_prompts(loaded, load.requests, load.prompt)[:2], make_vectors(loaded, 0)
    return timed(lambda: sum(len(answer) for answer in hook_loop(loaded, prompts, load.new, vectors)))


def added_memory(loaded: LoadedModel, config: EngineConfig) -> Found | None:
    """Resident memory that 64 policies add, as a share of the model's: the same engine under load with them and with one."""
    if loaded.model.device.type != "cpu" or not Path("/proc/self/statm").exists():
        return None
    load = Load(POLICIES_RESIDENT, 16, 4)
    with opened(loaded, config) as bench:
        bench.run(load)
        bench.run(load)
        gc.collect()
        before = _resident_bytes()
        bench.run(replace(load, policies=POLICIES_RESIDENT))
        gc.collect()
        added = _resident_bytes() - before
    model = sum(parameter.nbytes for parameter in loaded.model.parameters())
    share = added / model
    return Found(f"memory added by {POLICIES_RESIDENT} policies ÷ the model's", share, share, share, 0.05, at_most=True)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


def batch_rates(loaded: LoadedModel, load: Load, rounds: int, config: EngineConfig) -> Rates:
    """What one engine does with loads of different kinds."""
    loads = {
        "no hooks": replace(load, policies=0),
        "1 policy": load,
        "16 policies": replace(load, policies=16),
        "16 policies, every law": replace(load, policies=16, kinds=True),
        "1 policy, trace": replace(load, trace=True),
        "8 requests": replace(load, requests=8),
        "64 requests": replace(load, requests=64),
        "alone, 1 policy": replace(load, requests=1),
        "alone, no hooks": replace(load, requests=1, policies=0),
    }
    with opened(loaded, config) as bench:
        return interleave({name: partial(_median_rate, bench.run, given) for name, given in loads.items()}, rounds)


def _median_rate(run: Callable[[Load], float], load: Load) -> float:
    """The rate at a load; of a request alone, which takes but a moment, the median of three."""
    return statistics.median(run(load) for _ in range(3 if load.requests == 1 else 1))


def other_rates(loaded: LoadedModel, load: Load, rounds: int, config: EngineConfig) -> Rates:
    """The engine against what needs the model's own attention: it is started anew each time, since it lends the model its own."""
    single = replace(load, requests=1)

    def alone() -> float:
        with opened(loaded, config) as bench:
            return _median_rate(bench.run, single)

    return interleave(
        {
            "alone, 1 policy, new engine": alone,
            "alone, generate": lambda: _median_rate(partial(generate_rate, loaded), single),
            "hook loop": lambda: hook_loop_rate(loaded, load),
            "library": lambda: library_rate(loaded, load),
        },
        rounds,
    )


def engine_section(loaded: LoadedModel, load: Load, rounds: int, **switches: bool) -> Section:
    """Every ratio of the engine on one model."""
    config = config_for(64 * (load.prompt + load.new), **switches)
    rates = batch_rates(loaded, load, rounds, config) | other_rates(loaded, load, rounds, config)
    section = Section(f"Engine, {loaded.id}, {loaded.dtype}", rates=medians(rates), found=compare(rates, RATIOS))
    memory = added_memory(loaded, config)
    section.found += [memory] if memory is not None else []
    section.notes.append(
        f"{load.requests} requests of {load.prompt} + {load.new} tokens unless said otherwise; {rounds} rounds"
    )
    return section


def drawing_section(rounds: int, load: Load) -> Section:
    """What sampling costs over a large vocabulary, on one thread: of the whole batch, prompts short, so that decoding is what counts."""
    threads, loaded = torch.get_num_threads(), make_model("135M-128k")
    loads = {
        "greedy": load,
        "one sampled": replace(load, sampled=1),
        "all sampled": replace(load, sampled=load.requests),
    }
    torch.set_num_threads(1)
    try:
        with opened(loaded, config_for(load.tokens, load.requests)) as bench:
            rates = interleave({name: partial(bench.run, given) for name, given in loads.items()}, rounds)
    finally:
        torch.set_num_threads(threads)
    note = f"{load.requests} requests of {load.prompt} + {load.new} tokens, temperature .7, top-p .9; {rounds} rounds"
    return Section(
        f"Sampling, {loaded.id}, one thread", "tokens/s", medians(rates), compare(rates, DRAWING), notes=[note]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="56M")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    for name, default in (("rounds", 5), ("requests", 32), ("new", 32), ("prompt", 57)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--graphs", action="store_true", help="CUDA graphs and async batching")
    given = parser.parse_args(arguments)
    loaded = make_model(given.size, getattr(torch, given.dtype), given.device)
    switches = {"cuda_graphs": given.graphs, "async_batching": given.graphs}
    section = engine_section(loaded, Load(given.requests, given.prompt, given.new), given.rounds, **switches)
    print(section.markdown())
    print(json.dumps({"setup": setup(**vars(given)), **asdict(section)}))


if __name__ == "__main__":
    main()
