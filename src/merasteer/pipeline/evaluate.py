"""Stage 4: the decision measured on the test split, beside what keeps it honest.

facts: `report` is the report (`pipeline.report`) but for the artifact's digest and the seconds
tensors: label (n,) and probabilities (n, C) of the test split under the decision
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from merasteer.method.steering import readout
from merasteer.pipeline.asking import Asker
from merasteer.pipeline.batch import Answers, running
from merasteer.pipeline.beside import beside
from merasteer.pipeline.calibrate import correction_in
from merasteer.pipeline.collect import answers_of, first_tokens_of, layer_rows
from merasteer.pipeline.draft import journal_of
from merasteer.pipeline.fit import vectors_of
from merasteer.pipeline.gates import Known
from merasteer.pipeline.job import Job
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.report import measured
from merasteer.pipeline.workspace import Output
from merasteer.probes.selection import auroc
from merasteer.types import Correction

__all__ = ["evaluate", "predicted_errors"]

COMMONEST = 5  # first tokens of free answers that are told


def evaluate(job: Job, collected: Output, fitted: Output, calibrated: Output, bars: Bars) -> Output:
    """One run per test item under the certified candidate, if there is one; else the unsteered answers are the answers."""
    steered = unsteered = answers_of(collected, "test")
    if (chosen := correction_in(calibrated)) is not None:
        steered = _steered(job, collected, fitted, chosen, bars)
    subject, document = calibrated.facts["subject"], calibrated.facts["calibration"]
    report = {
        **measured(job, document, unsteered, steered, beside(job, collected)),
        "auroc": {
            "probe": _auroc(job, unsteered, predicted_errors(collected, fitted, subject) if subject else None),
            "token_probability": _auroc(job, unsteered, _doubt(unsteered)),
        },
        "coverage": _coverage(job, collected, unsteered),
    }
    tensors = {"label": torch.from_numpy(steered.label), "probabilities": torch.from_numpy(steered.probabilities)}
    return Output({"report": report}, tensors)


def _auroc(job: Job, unsteered: Answers, scores: Sequence[float] | None) -> float | None:
    """How well the scores tell the wrong unsteered answers of the test split from the right ones; None where there is only one kind."""
    wrong = ~unsteered.correct([example.label for example in job.splits.test])
    if scores is None or wrong.all() or not wrong.any():
        return None
    return auroc(np.asarray(scores, dtype=np.float64), wrong.astype(np.float64))


def _doubt(unsteered: Answers) -> list[float]:
    """1 − q of the answer that was given, of every item; 1 where it is missing."""
    given = np.take_along_axis(unsteered.probabilities, np.maximum(unsteered.label, 0)[:, None], axis=1)[:, 0]
    return [float(value) for value in np.where(unsteered.label >= 0, 1.0 - given, 1.0)]


def _coverage(job: Job, collected: Output, unsteered: Answers) -> dict[str, Any] | None:
    """Of free answers: the share that is a label, and the commonest first tokens with their shares. None where labels are chosen."""
    if job.served.choose != "free":
        return None
    first = first_tokens_of(collected, "test")
    texts = Counter("" if token < 0 else str(job.loaded.tokenizer.decode([token])) for token in first)
    return {
        "unsteered": float((unsteered.label >= 0).mean()),
        "first_tokens": [[text, count / len(first)] for text, count in texts.most_common(COMMONEST)],
    }


def predicted_errors(collected: Output, fitted: Output, key: str) -> list[float]:
    """σ(z) of every unsteered test item at the report layer of a readout."""
    vectors = vectors_of(fitted)[key]
    layer = vectors.report_layer
    rows = layer_rows(collected, vectors.hook_point, layer, "test")
    return [float(value) for value in readout(rows, vectors.weight[layer], vectors.bias[layer]).sigmoid()]


def _steered(job: Job, collected: Output, fitted: Output, chosen: Correction, bars: Bars) -> Answers:
    held = vectors_of(fitted)
    vectors = {} if chosen.readout is None else {chosen.readout: held[chosen.readout]}
    prompts, known = (
        job.prompts(job.splits.test),
        Known.of(job.served, job.loaded.dtype, collected, vectors, "test"),
    )
    if known.shut(chosen).all():
        return known.answers(chosen)
    with (
        running(job.loaded, prompts.longest, vectors=vectors) as engine,
        journal_of(job.workspace.folder, "evaluate") as journal,
    ):
        [found] = Asker(engine, prompts, known, journal).ask("evaluate", [chosen], bars)
    return found.answers
