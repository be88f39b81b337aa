"""Stage 1: the model as it is, over every split: activations, class probabilities and answers.

tensors of the training split: probabilities (N, C) float64; label (N,), −1 where the answer is missing;
                               first (N,): the first token of the answer, −1 where it has none;
                               activations.<hook point> (N, L, d), at the answer position, in the dtype that the model computes in
        of the others:         the same behind `calibration.` and `test.`

Activations go to the disk as they come (`pipeline.stored`), some thousand prompt tokens at a time. Each such part is batched by itself,
so that a run that was killed goes on behind the last one and leaves the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from merasteer.engine import Engine
from merasteer.errors import NonFinite
from merasteer.pipeline.batch import BATCH_TOKENS, Answers, Prompts, generations, parts, running
from merasteer.pipeline.draft import Draft, draft_of
from merasteer.pipeline.job import Job
from merasteer.pipeline.progress import Bar, Bars
from merasteer.pipeline.stored import DTYPES, ByLayer, Layout
from merasteer.pipeline.workspace import Output
from merasteer.types import Generation, HookPoint

__all__ = [
    "SPLITS",
    "Split",
    "activations_of",
    "answers_of",
    "by_layer",
    "collect",
    "first_tokens_of",
    "layer_rows",
    "layout_of",
]

Split = Literal["train", "calibration", "test"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "test")
PART_TOKENS = 2 * BATCH_TOKENS  # what may have to be done again
PART_ROWS = 256


def collect(job: Job, bars: Bars) -> Output:
    """One unsteered run per item. What is measured on the other splits is measured against these answers."""
    start = time.perf_counter()
    prompts = {split: job.prompts(getattr(job.splits, split)) for split in SPLITS}
    total = sum(len(asked.tokens) for asked in prompts.values())
    with draft_of(job.ground.folder, "collect", layout_of(job)) as draft:
        with (
            running(job.loaded, max(asked.longest for asked in prompts.values()), job.options.hook_points) as engine,
            bars.bar("collect", total) as bar,
        ):
            _fill(job, engine, draft, prompts, bar)
        draft.close({"seconds": time.perf_counter() - start}, job.ground.path("collect"))
    found = job.ground.load("collect")
    if found is None:
        raise RuntimeError("the file that was just written cannot be read")
    return found


def layout_of(job: Job) -> Layout:
    """What the stage's file holds."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    dtype = names.get(job.loaded.model.dtype, "F32")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for split in SPLITS:
        n = len(getattr(job.splits, split))
        tensors[_name(split, "label")] = ("I64", (n,))
        tensors[_name(split, "first")] = ("I64", (n,))
        tensors[_name(split, "probabilities")] = ("F64", (n, len(job.served.labels)))
    for split in SPLITS:  # behind all that is wider, so that everything lies at a multiple of its size
        for point in job.options.hook_points:
            shape = (job.loaded.layers, len(getattr(job.splits, split)), job.loaded.width)
            tensors[_name(split, f"activations.{point}")] = (dtype, shape)
    return Layout(tensors)


def _fill(job: Job, engine: Engine, draft: Draft, prompts: dict[Split, Prompts], bar: Bar) -> None:
    number = 0
    for split, asked in prompts.items():
        for rows in parts(asked, PART_TOKENS, PART_ROWS):
            number += 1
            if number <= draft.done:
                bar.skip(len(rows))
                continue
            _part(job, engine, draft, split, asked.some(rows), rows.start, bar)
            draft.finish(number)


def _part(job: Job, engine: Engine, draft: Draft, split: Split, asked: Prompts, first: int, bar: Bar) -> None:
    """Writes the rows from `first` on."""
    found = list(generations(engine, asked.requests(), bar, asked.where, afresh=True))
    label, probabilities = zip(*map(_answer, found), strict=True)
    tokens = [one.tokens[0] if one.tokens else -1 for one in found]
    draft.write(_name(split, "label"), first, torch.tensor(label, dtype=torch.int64))
    draft.write(_name(split, "first"), first, torch.tensor(tokens, dtype=torch.int64))
    draft.write(_name(split, "probabilities"), first, torch.stack(probabilities))
    for point in job.options.hook_points:
        name = _name(split, f"activations.{point}")
        draft.write(name, first, torch.stack(list(_activations(found, point, asked.where, draft.dtype(name))), dim=1))


def _activations(
    found: Sequence[Generation], point: HookPoint, where: Sequence[str], dtype: torch.dtype
) -> Iterator[torch.Tensor]:
    """(L, d) of every answer. Raises NonFinite where one exceeds what it is stored in."""
    for generation, place in zip(found, where, strict=True):
        if generation.activations is None:
            raise RuntimeError("the engine answered without activations")
        rows = generation.activations[point].to(dtype)
        if not bool(rows.isfinite().all()):
            raise NonFinite(f"{place}: an activation at {point} does not fit {dtype}; load the model in float32")
        yield rows


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
    """Activations (N, L, d) at the answer position of a split: a view of the file, of which only what is touched is read."""
    return output.tensors[_name(split, f"activations.{point}")]


def by_layer(output: Output, point: HookPoint, split: Split = "train") -> torch.Tensor | ByLayer:
    """The same for who takes [items, layer] of it, layer after layer: none of it stays mapped."""
    name = _name(split, f"activations.{point}")
    return ByLayer(output.stored[name]) if name in output.stored else output.tensors[name]


def layer_rows(output: Output, point: HookPoint, layer: int, split: Split = "train") -> torch.Tensor:
    """Activations (N, d) float32 of one layer, in memory of their own."""
    name = _name(split, f"activations.{point}")
    stored = output.stored.get(name)
    return (output.tensors[name][:, layer] if stored is None else stored.layer(layer)).float()


def _name(split: Split, name: str) -> str:
    return name if split == "train" else f"{split}.{name}"
