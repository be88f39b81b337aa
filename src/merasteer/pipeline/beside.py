"""What stands beside an accuracy on the test split, whatever is steered: the trivial fix, what the model knows, what needs no model.

facts: label_probe: its hook point and layer
tensors: <name> (n,): the answers of logit_bias, label_probe and text_classifier; label_probe.weight (C, d), label_probe.bias (C,)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from merasteer.method.scores import apply_logit_bias, fit_logit_bias
from merasteer.pipeline.collect import answers_of, by_layer, layer_rows
from merasteer.pipeline.job import Job
from merasteer.pipeline.text_classifier import text_classifier_answers
from merasteer.pipeline.workspace import Output
from merasteer.probes import LabelProbe, fit_label_probe, fit_label_probe_at
from merasteer.types import HookPoint

__all__ = ["NAMES", "Beside", "beside", "label_probe_at"]

NAMES = ("logit_bias", "label_probe", "text_classifier")
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Beside:
    """answers: name -> class of every test item, (n,), none missing. label_probe: the one that answered."""

    answers: Mapping[str, Ints]
    label_probe: LabelProbe


def beside(job: Job, collected: Output) -> Beside:
    """Taken from the work folder where they are: they follow from the unsteered model, the seed and the fitting rows alone."""
    name = f"beside-{job.options.seed}-{len(job.ordering)}"
    found = job.ground.load(name)
    if found is None:
        found = _measure(job, collected)
        job.ground.save(name, found)
    where, tensors = found.facts["label_probe"], found.tensors
    probe = LabelProbe(where["hook_point"], where["layer"], tensors["label_probe.weight"], tensors["label_probe.bias"])
    return Beside({name: np.asarray(tensors[name].numpy()) for name in NAMES}, probe)


def _label_probe(job: Job, collected: Output) -> LabelProbe:
    """Fit to the rows that the error probes are fit to; layer and penalty are chosen on these too."""
    labels = np.array([example.label for example in job.splits.train])
    rows = {point: by_layer(collected, point) for point in job.options.hook_points}
    return fit_label_probe(rows, labels, job.fitting, len(job.served.labels), job.options.seed)


def label_probe_at(job: Job, collected: Output, point: HookPoint, layer: int) -> LabelProbe:
    """Fit to the same rows at one place."""
    labels = np.array([example.label for example in job.splits.train])[job.fitting]
    rows = layer_rows(collected, point, layer)[torch.from_numpy(job.fitting)]
    return fit_label_probe_at(point, layer, rows, labels, len(job.served.labels))


def _measure(job: Job, collected: Output) -> Output:
    probe, splits = _label_probe(job, collected), job.splits
    rows = layer_rows(collected, probe.hook_point, probe.layer, "test")
    texts = [[example.prompt for example in split] for split in (splits.train, splits.test)]
    labels = [example.label for example in splits.train]
    answers = {
        "logit_bias": torch.from_numpy(_logit_bias(job, collected)),
        "label_probe": probe.predict(rows),
        "text_classifier": torch.from_numpy(text_classifier_answers(texts[0], labels, texts[1], job.options.seed)),
    }
    held = {"label_probe.weight": probe.weight, "label_probe.bias": probe.bias}
    return Output({"label_probe": {"hook_point": probe.hook_point, "layer": probe.layer}}, answers | held)


def _logit_bias(job: Job, collected: Output) -> Ints:
    """The test split under a bias fit to the calibration labels."""
    calibration, test = answers_of(collected, "calibration"), answers_of(collected, "test")
    bias = fit_logit_bias(calibration.scores, [example.label for example in job.splits.calibration])
    return apply_logit_bias(test.scores, bias)
