"""Stage 1: the model as it is, over every split: activations, class probabilities and answers.

tensors of the training split: probabilities (N, C) float64; label (N,), −1 where the answer is missing;
                               first (N,): the first token of the answer, −1 where it has none;
                               activations.<hook point> (N, L, d) float32, at the answer position
        of the others:         the same behind `test.`; behind `calibration.` without activations
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from merasteer.engine import Engine
from merasteer.pipeline.batch import Answers, Prompts, generations, running
from merasteer.pipeline.job import Job
from merasteer.pipeline.progress import Bar, Bars
from merasteer.pipeline.workspace import Output
from merasteer.types import Generation, HookPoint

__all__ = ["Split", "activations_of", "answers_of", "collect", "first_tokens_of"]

Split = Literal["train", "calibration", "test"]
READ: tuple[Split, ...] = ("train", "test")  # the probes are fit on the one, and watched on the other


def collect(job: Job, bars: Bars) -> Output:
    """One unsteered run per item. What is measured on the other splits is measured against these answers."""
    splits: tuple[Split, ...] = ("train", "calibration", "test")
    prompts = {split: job.prompts(getattr(job.splits, split)) for split in splits}
    points, tensors = job.options.hook_points, dict[str, torch.Tensor]()
    total = sum(len(asked.tokens) for asked in prompts.values())
    with (
        running(job.loaded, max(asked.longest for asked in prompts.values()), points) as engine,
        bars.bar("collect", total) as bar,
    ):
        for split, asked in prompts.items():
            found = _read(job, engine, asked, points if split in READ else (), bar)
            tensors |= {_name(split, name): tensor for name, tensor in found.items()}
    return Output({}, tensors)


def _read(job: Job, engine: Engine, prompts: Prompts, points: Sequence[HookPoint], bar: Bar) -> dict[str, torch.Tensor]:
    """The tensors of one split, without its name."""
    n = len(prompts.tokens)
    held = {point: torch.empty(n, job.loaded.layers, job.loaded.width) for point in points}
    label, first = torch.empty(n, dtype=torch.int64), torch.empty(n, dtype=torch.int64)
    probabilities = torch.empty(n, len(job.served.labels), dtype=torch.float64)
    for i, generation in enumerate(generations(engine, prompts.requests(), bar, prompts.where)):
        label[i], probabilities[i] = _answer(generation)
        first[i] = generation.tokens[0] if generation.tokens else -1
        for point in points:
            if generation.activations is None:
                raise RuntimeError("the engine answered without activations")
            held[point][i] = generation.activations[point]
    activations = {f"activations.{point}": rows for point, rows in held.items()}
    return {"label": label, "first": first, "probabilities": probabilities, **activations}


def _answer(generation: Generation) -> tuple[int, torch.Tensor]:
    answer = generation.answer
    if answer is None:
        raise RuntimeError("the engine answered without class probabilities")
    return -1 if answer.label is None else answer.label, torch.tensor(answer.probabilities, dtype=torch.float64)


def answers_of(output: Output, split: Split = "train") -> Answers:
    """The unsteered answers on a split."""
    label, probabilities = (output.tensors[_name(split, name)].numpy() for name in ("label", "probabilities"))
    return Answers(np.asarray(label), np.asarray(probabilities))


def first_tokens_of(output: Output, split: Split = "train") -> list[int]:
    """The first token of each unsteered answer on a split, −1 where it has none."""
    return [int(token) for token in output.tensors[_name(split, "first")]]


def activations_of(output: Output, point: HookPoint, split: Split = "train") -> torch.Tensor:
    """Activations (N, L, d) at the answer position, on the training or the test split."""
    return output.tensors[_name(split, f"activations.{point}")]


def _name(split: Split, name: str) -> str:
    return name if split == "train" else f"{split}.{name}"
