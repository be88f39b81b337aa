"""Stage 4: the decision measured on the test split, beside what keeps it honest.

facts: `report` is the report (`pipeline.report`) but for the artifact's digest and the seconds
tensors: label (n,) and probabilities (n, C) of the test split under the decision
"""

from __future__ import annotations

import torch

from merasteer.method.scores import apply_logit_bias, fit_logit_bias
from merasteer.method.steering import readout
from merasteer.pipeline.asking import Asker
from merasteer.pipeline.batch import Answers, running
from merasteer.pipeline.calibrate import correction_in
from merasteer.pipeline.collect import answers_of, layer_rows
from merasteer.pipeline.draft import journal_of
from merasteer.pipeline.fit import vectors_of
from merasteer.pipeline.gates import Known
from merasteer.pipeline.job import Job
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.report import measured
from merasteer.pipeline.workspace import Output
from merasteer.types import Correction

__all__ = ["evaluate", "logit_bias_answers", "predicted_errors"]


def evaluate(job: Job, collected: Output, fitted: Output, calibrated: Output, bars: Bars) -> Output:
    """One run per test item under the certified candidate, if there is one; else the unsteered answers are the answers."""
    steered = unsteered = answers_of(collected, "test")
    if (chosen := correction_in(calibrated)) is not None:
        steered = _steered(job, collected, fitted, chosen, bars)
    biased = logit_bias_answers(job, collected)
    report = measured(job, calibrated.facts["calibration"], unsteered, steered, biased)
    tensors = {"label": torch.from_numpy(steered.label), "probabilities": torch.from_numpy(steered.probabilities)}
    return Output({"report": report}, tensors)


def logit_bias_answers(job: Job, collected: Output) -> Answers:
    """The test split under the trivial fix: a bias fit to the calibration labels. It answers every item."""
    calibration, test = answers_of(collected, "calibration"), answers_of(collected, "test")
    bias = fit_logit_bias(calibration.scores, [example.label for example in job.splits.calibration])
    return Answers(apply_logit_bias(test.scores, bias), test.probabilities)


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
    with running(job.loaded, prompts.longest) as engine, journal_of(job.workspace.folder, "evaluate") as journal:
        for key, one in vectors.items():
            engine.register(key, one)
        [found] = Asker(engine, prompts, known, journal).ask("evaluate", [chosen], bars)
    return found.answers
