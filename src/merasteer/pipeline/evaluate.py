"""Stage 4: the decision measured on the test split, beside what keeps it honest.

facts: `report` is the report (`pipeline.report`) but for the artifact's digest and the seconds
"""

from __future__ import annotations

from merasteer.method.scores import apply_logit_bias, fit_logit_bias
from merasteer.pipeline.batch import answers, running
from merasteer.pipeline.calibrate import Candidate
from merasteer.pipeline.collect import answers_of
from merasteer.pipeline.fit import vectors_of
from merasteer.pipeline.job import Job
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.report import measured
from merasteer.pipeline.workspace import Output

__all__ = ["evaluate"]


def evaluate(job: Job, fitted: Output, calibrated: Output, bars: Bars) -> Output:
    """One unsteered run per test item, and one under the certified candidate if there is one."""
    prompts = job.prompts(job.splits.test)
    document = calibrated.facts["calibration"]
    with running(job.loaded, prompts.longest) as engine:
        with bars.bar("evaluate: unsteered", len(prompts.tokens)) as bar:
            unsteered = steered = answers(engine, prompts.requests(), bar)
        if calibrated.facts["chosen"] is not None:
            chosen = Candidate(**calibrated.facts["chosen"])
            if chosen.readout is not None:
                engine.register(chosen.readout, vectors_of(fitted)[chosen.readout])
            with bars.bar("evaluate: steered", len(prompts.tokens)) as bar:
                steered = answers(engine, chosen.requests(job, fitted, prompts), bar)
    bias = fit_logit_bias(answers_of(calibrated).scores, [example.label for example in job.splits.calibration])
    return Output({"report": measured(job, document, unsteered, steered, apply_logit_bias(unsteered.scores, bias))})
