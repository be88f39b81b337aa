"""The report of a run: what was decided, what it is worth on the test split, and what the trivial fixes are worth there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merasteer.method.scores import majority_accuracy, recall, spi, spi_interval
from merasteer.pipeline.batch import Answers
from merasteer.pipeline.job import Job
from merasteer.pipeline.workspace import replace_file
from merasteer.store import certificate_of

__all__ = ["LEVEL", "Report", "certificate_in", "complete", "measured", "write_report"]

Report = dict[str, Any]
LEVEL = 0.95
CERTIFICATE = ("test", "delta", "epsilon", "p_value", "gain", "lower_bound", "candidates", "chances")


def measured(job: Job, document: Mapping[str, Any], unsteered: Answers, steered: Answers, biased: Answers) -> Report:
    """All of the report that a run can know before it publishes. document: calibration.json; biased: under the trivial fix."""
    labels = [example.label for example in job.splits.test]
    before, after = unsteered.correct(labels), steered.correct(labels)
    rows = {row["key"]: row for row in document["candidates"]}
    chosen = rows.get(document["chosen"], {"method": None, "alpha": None, "hook_point": None, "direction": None})
    recalls = [recall(labels, answers.label, len(job.served.labels)) for answers in (unsteered, steered)]
    return {
        "task": job.served.name,
        "model": job.identity.id,
        "decision": document["decision"],
        "reason": document["reason"],
        "artifact": None,
        "method": chosen.get("method", "mera"),
        "alpha": chosen["alpha"],
        "hook_point": chosen["hook_point"],
        "direction": chosen["direction"],
        "n": {name: len(getattr(job.splits, name)) for name in ("train", "calibration", "test")},
        "accuracy": {
            "unsteered": float(before.mean()),
            "steered": float(after.mean()),
            "majority": majority_accuracy(labels),
            "logit_bias": float(biased.correct(labels).mean()),
        },
        "spi": spi(float(after.mean()), float(before.mean())),
        "spi_interval": list(spi_interval(before, after, LEVEL, seed=job.options.seed)),
        "level": LEVEL,
        "recall": {label: [rate[i] for rate in recalls] for i, label in enumerate(job.served.labels)},
        "certificate": certificate_in(document),
    }


def certificate_in(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was tested and what came of it, as reports show it; None where there was no probe. document: calibration.json."""
    tested = None if document["reason"] == "no_probe" else certificate_of(document)
    return None if tested is None else {name: tested[name] for name in CERTIFICATE}


def complete(report: Report, artifact: str | None, seconds: Mapping[str, float]) -> Report:
    """The report with the digest of the published artifact and the seconds that each stage took when it ran."""
    return {**report, "artifact": artifact, "seconds": {name: round(value, 3) for name, value in seconds.items()}}


def write_report(path: Path, report: Report) -> None:
    """Writes the report as JSON: the old file or the new one, never half."""
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
