"""Rates measured side by side: interleaved, repeated, medians of round-by-round ratios; written as Markdown and JSON lines."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

Rates = dict[str, list[float]]


@dataclass(frozen=True)
class Ratio:
    """What is compared, and the least that is hoped for (None: reported only)."""

    name: str
    over: str
    under: str
    bar: float | None = None


@dataclass(frozen=True)
class Found:
    """A measured ratio, or a figure that is one already: median, smallest and largest of the rounds."""

    name: str
    value: float
    low: float
    high: float
    bar: float | None = None
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        return None if self.bar is None else self.value <= self.bar if self.at_most else self.value >= self.bar


@dataclass
class Section:
    """One benchmark: medians of its rates, what was compared, tables of its own, and what it could not measure."""

    title: str
    unit: str = "tokens/s"
    rates: dict[str, float] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        parts = [f"## {self.title}"]
        if self.found:
            rows = [f"| {f.name} | **{f.value:.3g}** | {f.low:.3g} – {f.high:.3g} | {_bar(f)} |" for f in self.found]
            parts.append("\n".join(["| ratio | median | rounds | bar |", "|---|---|---|---|", *rows]))
        if self.rates:
            rows = [f"| {name} | {rate:.1f} |" for name, rate in self.rates.items()]
            parts.append("\n".join([f"| case | {self.unit} |", "|---|---|", *rows]))
        return "\n\n".join([*parts, *self.tables, *(f"- {note}" for note in self.notes)])


def _bar(found: Found) -> str:
    if found.bar is None:
        return ""
    return f"{'≤' if found.at_most else '≥'} {found.bar:g} {'reached' if found.reached else 'missed'}"


def interleave(cases: Mapping[str, Callable[[], float]], rounds: int) -> Rates:
    """The rate of every case in every round. Every other round goes backwards: a machine that slows down slows all alike."""
    rates: Rates = {name: [] for name in cases}
    for turn in range(rounds):
        for name in cases if turn % 2 == 0 else reversed(list(cases)):
            rates[name].append(cases[name]())
    return rates


def compare(rates: Rates, ratios: Sequence[Ratio]) -> list[Found]:
    """The ratios of two rates, round by round."""
    found = []
    for ratio in ratios:
        if ratio.over in rates and ratio.under in rates:
            each = [a / b for a, b in zip(rates[ratio.over], rates[ratio.under], strict=True)]
            found.append(Found(ratio.name, statistics.median(each), min(each), max(each), ratio.bar))
    return found


def medians(rates: Rates) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in rates.items()}


def timed(work: Callable[[], int]) -> float:
    """Tokens per second of work that says how many tokens it made."""
    start = time.perf_counter()
    tokens = work()
    return tokens / (time.perf_counter() - start)


def setup(**given: Any) -> dict[str, Any]:
    """What a reader needs to know of the machine and the versions."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": gpu or _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **given,
    }


def write(sections: Sequence[Section], facts: Mapping[str, Any], folder: Path, name: str) -> Path:
    """Writes NAME.md, and NAME.jsonl with one line per section behind the line of the set-up. Returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    told = ", ".join(f"{key} {value}" for key, value in facts.items())
    (folder / f"{name}.md").write_text(
        "\n\n".join([f"# {name}", told + ".", *(section.markdown() for section in sections)]) + "\n", encoding="utf-8"
    )
    lines = [json.dumps({"setup": dict(facts)}), *(json.dumps(asdict(section)) for section in sections)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / f"{name}.md"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
