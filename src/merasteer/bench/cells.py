"""One cell of the study: a method measured on a model and a task, as one JSON record.

schema, key                                           the record's version; hash of everything that it follows from
model, task, position, method                         which cell; position is the task's answer position
status, error                                         "done", or "failed" and one line that says why (then nothing below is there)
decision, reason                                      certified (at its column's level) | alone (at δ alone, and steered) | abstained |
                                                      applied (a baseline: always on); uncertified | no_probe | collapse
correction, alpha, hook_point, direction,
report_layer                                          what was chosen; null where nothing was
claimed                                               of `--compat reference` alone: the accuracies that the research code itself sees
n, accuracy, balanced_accuracy, spi, spi_interval,
level, transitions, classes, percentiles              the test split; pairs are [unsteered, steered]; accuracy as in a run's report
probes, curve, tested, certificate                    held-out scores per layer; every candidate on the ordering subset; the test
seconds, seed, versions, runtime                      what it took, and what it takes to make it again
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from merasteer.method.scores import (
    balanced_accuracy,
    error_by_percentile,
    precision_recall_f1,
    spi,
    spi_interval,
    transitions,
)
from merasteer.pipeline import Job, Stage
from merasteer.pipeline.batch import Answers
from merasteer.pipeline.beside import beside
from merasteer.pipeline.collect import answers_of
from merasteer.pipeline.evaluate import predicted_errors
from merasteer.pipeline.report import LEVEL, accuracies, certificate_in
from merasteer.pipeline.workspace import Output
from merasteer.probes import errors

__all__ = ["SCHEMA", "Cell", "Measured", "failed", "from_stages", "identity", "record"]

SCHEMA = 3
Cell = dict[str, Any]
NOTHING = {"correction": None, "alpha": None, "hook_point": None, "direction": None}


@dataclass(frozen=True, eq=False)
class Measured:
    """What a method leaves: the steered answers on the test split, and the outputs of the stages that it went through.

    subject: key of the readout whose predicted error is shown. reason: why nothing was applied. A decision without
    `document` (calibration.json) is that of a baseline. unsteered: where they are not those of `collected`. shown: fields of the
    record that a baseline fills in itself.
    """

    collected: Output
    steered: Answers
    fitted: Output | None = None
    document: Mapping[str, Any] | None = None
    subject: str | None = None
    reason: str | None = None
    unsteered: Answers | None = None
    shown: Mapping[str, Any] = field(default_factory=dict)


def from_stages(done: Mapping[Stage, Output]) -> Measured:
    """The result of a pipeline that was run up to `evaluate`."""
    document = done["calibrate"].facts["calibration"]
    tensors = done["evaluate"].tensors
    steered = Answers(tensors["label"].numpy(), tensors["probabilities"].numpy())
    return Measured(
        done["collect"],
        steered,
        fitted=done["fit"],
        document=document,
        subject=done["calibrate"].facts["subject"],
        reason=document["reason"],
    )


def identity(job: Job, method: str) -> Cell:
    """Which cell it is, and what it follows from."""
    return {
        "schema": SCHEMA,
        "key": job.workspace.key,
        "model": job.identity.id,
        "task": job.served.name,
        "position": job.served.position,
        "method": method,
    }


def failed(which: Cell, error: BaseException) -> Cell:
    """The record of a cell that could not be measured."""
    lines = str(error).strip().splitlines()
    return {**which, "status": "failed", "error": f"{type(error).__name__}: {lines[0] if lines else 'no message'}"}


def record(job: Job, which: Cell, measured: Measured, seconds: float) -> Cell:
    """The record of a cell that was measured."""
    labels = [example.label for example in job.splits.test]
    unsteered = measured.unsteered or answers_of(measured.collected, "test")
    before, after = unsteered.correct(labels), measured.steered.correct(labels)
    return {
        **which,
        "status": "done",
        "error": None,
        **_decision(measured),
        "report_layer": _readouts(measured).get(measured.subject, {}).get("report_layer"),
        "n": {name: len(getattr(job.splits, name)) for name in ("train", "calibration", "test")},
        "accuracy": accuracies(labels, unsteered, measured.steered, beside(job, measured.collected)),
        "balanced_accuracy": [
            balanced_accuracy(labels, found.label, len(job.served.labels)) for found in (unsteered, measured.steered)
        ],
        "spi": spi(float(after.mean()), float(before.mean())),
        "spi_interval": list(spi_interval(before, after, LEVEL, seed=job.options.seed)),
        "level": LEVEL,
        "transitions": transitions(before, after),
        "classes": _classes(job, labels, unsteered, measured.steered),
        "percentiles": _percentiles(measured, labels, unsteered),
        "probes": measured.fitted.facts["probes"] if measured.fitted else [],
        "seconds": {"total": round(seconds, 3)},
        "seed": job.options.seed,
        "versions": job.versions,
        "runtime": {
            "dtype": job.loaded.dtype,
            "attention": job.loaded.attention,
            "device": job.loaded.device,
            "threads": torch.get_num_threads(),
        },
    }


def _decision(measured: Measured) -> Cell:
    document = measured.document
    if document is None:
        readout = _readouts(measured).get(measured.subject, {})
        return {
            "decision": "applied" if measured.reason is None else "abstained",
            "reason": measured.reason,
            **NOTHING,
            **{name: readout[name] for name in ("hook_point", "direction") if name in readout},
            **measured.shown,
            **{"curve": [], "tested": [], "certificate": None},
        }
    rows = {row["key"]: row for row in document["candidates"]}
    chosen = rows.get(document["chosen"])
    shown = dict(NOTHING)
    if chosen is not None:
        shown = {"correction": chosen.get("method", "mera")} | {
            name: chosen[name] for name in NOTHING if name in chosen
        }
    return {
        "decision": document["decision"],
        "reason": document["reason"],
        **shown,
        "curve": [{"method": "mera", **row} for row in document["candidates"]],
        "tested": document["tested"],
        "certificate": certificate_in(document),
    }


def _readouts(measured: Measured) -> Mapping[str | None, Mapping[str, Any]]:
    return {} if measured.fitted is None else measured.fitted.facts["readouts"]


def _classes(job: Job, labels: list[int], unsteered: Answers, steered: Answers) -> Cell:
    scores = [precision_recall_f1(labels, found.label, len(job.served.labels)) for found in (unsteered, steered)]
    return {
        label: {name: [getattr(score, name)[i] for score in scores] for name in ("precision", "recall", "f1")}
        for i, label in enumerate(job.served.labels)
    }


def _percentiles(measured: Measured, labels: list[int], unsteered: Answers) -> list[Cell] | None:
    """Error by predicted error, both of the untouched model: whether the probe knows where the mistakes are."""
    if measured.fitted is None or measured.subject is None:
        return None
    predicted = predicted_errors(measured.collected, measured.fitted, measured.subject)
    true = errors(unsteered.probabilities, labels, (unsteered.label >= 0).tolist())
    bins = error_by_percentile(predicted, true)
    # The last bits of a product depend on where its numbers lie in memory; a record is the same whenever it is made.
    return [{"predicted": round(part.predicted, 6), "error": round(part.error, 6), "n": part.n} for part in bins]
