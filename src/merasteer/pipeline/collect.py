"""Stage 1: the model as it is, over the training split: activations, class probabilities and answers.

tensors: probabilities (N, C) float64; label (N,), −1 where the answer is missing; activations.<hook point> (N, L, d) float32
"""

from __future__ import annotations

import numpy as np
import torch

from merasteer.pipeline.batch import Answers, generations, running
from merasteer.pipeline.job import Job
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.workspace import Output

__all__ = ["answers_of", "collect"]


def collect(job: Job, bars: Bars) -> Output:
    """One unsteered run per training item, read at the answer position."""
    prompts, points = job.prompts(job.splits.train), job.options.hook_points
    n = len(prompts.tokens)
    held = {point: torch.empty(n, job.loaded.layers, job.loaded.width) for point in points}
    label = torch.empty(n, dtype=torch.int64)
    probabilities = torch.empty(n, len(job.served.labels), dtype=torch.float64)
    with running(job.loaded, prompts.longest, points) as engine, bars.bar("collect", n) as bar:
        for i, generation in enumerate(generations(engine, prompts.requests(), bar)):
            if generation.answer is None or generation.activations is None:
                raise RuntimeError("the engine answered without class probabilities or activations")
            label[i] = -1 if generation.answer.label is None else generation.answer.label
            probabilities[i] = torch.tensor(generation.answer.probabilities, dtype=torch.float64)
            for point in points:
                held[point][i] = generation.activations[point]
    activations = {f"activations.{point}": rows for point, rows in held.items()}
    return Output({}, {"label": label, "probabilities": probabilities, **activations})


def answers_of(output: Output) -> Answers:
    """The unsteered answers on the training split."""
    return Answers(np.asarray(output.tensors["label"].numpy()), np.asarray(output.tensors["probabilities"].numpy()))
