"""Every benchmark of speed in one run, its results under the date: `make bench`, `make bench-gpu`.

    python benchmarks/suite.py [--gpu] [--size 56M|0.5B|FOLDER] [--rounds N] [--out benchmarks/results]
                               [--only engine sampling server growth bfloat16]

Writes DATE-cpu.md or DATE-gpu.md, and the same as JSON lines beside it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from engine import Load, drawing_section, engine_section
from growth import bfloat16_section, growth_section
from measure import Section, setup, write
from models import make_model

from server import server_section

OUT = Path(__file__).parent / "results"


def cpu_sections(size: str, rounds: int) -> dict[str, Callable[[], Section]]:
    threads = max(1, (os.cpu_count() or 2) // 2)
    return {
        "engine": lambda: engine_section(make_model(size), Load(32, 57, 32), rounds),
        "sampling": partial(drawing_section, rounds, Load(32, 4, 32, policies=0)),
        "server": lambda: server_section(size, 57, 32, rounds, threads),
        "growth": partial(growth_section, size, max(1, rounds // 2)),
        "bfloat16": partial(bfloat16_section, size, rounds),
    }


def gpu_sections(size: str, rounds: int) -> dict[str, Callable[[], Section]]:
    """bfloat16, 64 requests, CUDA graphs and async batching; and the same without them."""

    def section(graphs: bool) -> Section:
        loaded = make_model(size, torch.bfloat16, "cuda")
        found = engine_section(loaded, Load(64, 57, 128), rounds, cuda_graphs=graphs, async_batching=graphs)
        found.title += ", CUDA graphs, async batching" if graphs else ", eager"
        return found

    return {"engine": partial(section, True), "eager": partial(section, False)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--size", help="default 56M, on a GPU 1B")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    if given.gpu and not torch.cuda.is_available():
        parser.exit(2, "bench: --gpu, and torch sees no CUDA device; install a CUDA build of torch\n")
    size = given.size or ("1B" if given.gpu else "56M")
    sections = gpu_sections(size, given.rounds) if given.gpu else cpu_sections(size, given.rounds)
    unknown = set(given.only or ()) - set(sections)
    if unknown:
        parser.exit(2, f"bench: --only {' '.join(sorted(unknown))} is not one of {', '.join(sections)}\n")
    done, start = [], time.monotonic()
    for name, measure in sections.items():
        if given.only is None or name in given.only:
            done.append(measure())
            print(done[-1].markdown() + "\n", flush=True)
    facts = setup(size=size, rounds=given.rounds, seconds=round(time.monotonic() - start))
    print(write(done, facts, given.out, f"{facts['date']}-{'gpu' if given.gpu else 'cpu'}"))


if __name__ == "__main__":
    main()
