"""The report of a run: what was decided, what it is worth on the test split, and what the trivial fixes are worth there.

Its fields are those of docs/method.md section 5; pairs are [unsteered, steered]. `pipeline.summary` says it in words.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merasteer.errors import InvalidInput
from merasteer.method.scores import balanced_accuracy, confusion, majority_accuracy, recall, spi, spi_interval
from merasteer.method.settling import rows_to_settle
from merasteer.pipeline.batch import Answers
from merasteer.pipeline.beside import Beside
from merasteer.pipeline.job import Job
from merasteer.pipeline.workspace import replace_file
from merasteer.store import certificate_of

__all__ = ["LEVEL", "Report", "accuracies", "certificate_in", "complete", "measured", "read_report", "write_report"]

Report = dict[str, Any]
LEVEL = 0.95
CERTIFICATE = (
    "test",
    "delta",
    "level",
    "attempt",
    "epsilon",
    "p_value",
    "gain",
    "lower_bound",
    "candidates",
    "chances",
)
COUNTS = ("n", "gained", "lost")
EFFECTS = ("collapse", "below_majority", "broken")
CANDIDATE = ("key", "hook_point", "direction", "alpha", "gain", "gained", "lost")  # strength beside it, of some
NEEDED = ("task", "model", "decision", "reason", "n", "accuracy", "recall", "certificate")  # of what is read back


def measured(job: Job, document: Mapping[str, Any], unsteered: Answers, steered: Answers, others: Beside) -> Report:
    """All of the report that follows from answers. document: calibration.json; others: what stands beside them."""
    labels = [example.label for example in job.splits.test]
    before, after = unsteered.correct(labels), steered.correct(labels)
    rows = {row["key"]: row for row in document["candidates"]}
    chosen = rows.get(document["chosen"], {"method": None, "alpha": None, "hook_point": None, "direction": None})
    names, pair = job.served.labels, (unsteered, steered)
    classes, free = len(names), job.served.choose == "free"
    recalls = [recall(labels, answers.label, classes) for answers in pair]
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
        "strength": chosen.get("strength"),
        "n": {name: len(getattr(job.splits, name)) for name in ("train", "calibration", "test")},
        "accuracy": accuracies(labels, unsteered, steered, others),
        "balanced_accuracy": [balanced_accuracy(labels, answers.label, classes) for answers in pair],
        "spi": spi(float(after.mean()), float(before.mean())),
        "spi_interval": list(spi_interval(before, after, LEVEL, seed=job.options.seed)),
        "level": LEVEL,
        "recall": {label: [rate[i] for rate in recalls] for i, label in enumerate(names)},
        "confusion": {
            name: confusion(labels, answers.label, classes, missing=free)
            for name, answers in zip(("unsteered", "steered"), pair, strict=True)
        },
        "baselines": {
            name: {
                "balanced_accuracy": balanced_accuracy(labels, answers, classes),
                "recall": dict(zip(names, recall(labels, answers, classes), strict=True)),
                **_where(name, others),
            }
            for name, answers in others.answers.items()
        },
        "certificate": certificate_in(document),
        "candidates": [
            {"method": row.get("method", "mera"), **{name: row[name] for name in CANDIDATE}}
            | ({"strength": row["strength"]} if "strength" in row else {})
            for row in document["candidates"]
        ],
    }


def accuracies(labels: Sequence[int], unsteered: Answers, steered: Answers, others: Beside) -> dict[str, float]:
    """unsteered, steered, majority, logit_bias, label_probe and text_classifier, on the test split whose labels are given."""
    return {
        "unsteered": float(unsteered.correct(labels).mean()),
        "steered": float(steered.correct(labels).mean()),
        "majority": majority_accuracy(labels),
        **{name: float((answers == labels).mean()) for name, answers in others.answers.items()},
    }


def certificate_in(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """What was tested and what came of it, as reports show it; None where there was no probe. document: calibration.json.

    candidate: the one that was tested, n, gained and lost its counts on the calibration split. rows_to_settle: about how many
    calibration rows the test would take to pass (`method.settling`), None where it passed or where no number would be expected to.
    """
    tested = None if document["reason"] == "no_probe" else certificate_of(document)
    if tested is None:
        return None
    level = tested["level"] / tested["chances"]
    return {
        **{name: tested[name] for name in CERTIFICATE},
        "candidate": tested["key"],
        **{name: tested[name] for name in (*COUNTS, *EFFECTS)},
        "rows_to_settle": None if tested["p_value"] <= level else _rows_to_settle(document, tested, level),
    }


def _rows_to_settle(document: Mapping[str, Any], tested: Mapping[str, Any], level: float) -> int | None:
    """From all the rows that the candidate was tried on: those of the ordering subset alone flatter it, since it was chosen there."""
    row: Mapping[str, Any] = next((row for row in document["candidates"] if row["key"] == tested["key"]), {})
    counts = [{name: tested[name] for name in COUNTS}]
    if (size := _ordering_size(document)) and "gained" in row and "lost" in row:
        counts.append({"n": size, "gained": row["gained"], "lost": row["lost"]})
    gained, lost, n = (sum(part[name] for part in counts) for name in ("gained", "lost", "n"))
    return rows_to_settle(gained, lost, n, level, max(tested["epsilon"], 0.0))


def _ordering_size(document: Mapping[str, Any]) -> int:
    """Rows of the ordering subset: gain = (gained − lost)/n for every candidate. 0 where none says."""
    telling = (row for row in document["candidates"] if row["gain"] and "gained" in row)
    return next((round((row["gained"] - row["lost"]) / row["gain"]) for row in telling), 0)


def _where(name: str, others: Beside) -> dict[str, Any]:
    probe = others.label_probe
    return {"hook_point": probe.hook_point, "layer": probe.layer} if name == "label_probe" else {}


def complete(report: Report, artifact: str | None, seconds: Mapping[str, float]) -> Report:
    """The report with the digest of the published artifact and the seconds that each stage took when it ran."""
    return {**report, "artifact": artifact, "seconds": {name: round(value, 3) for name, value in seconds.items()}}


def write_report(path: Path, report: Report) -> None:
    """Writes the report as JSON: the old file or the new one, never half."""
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_report(path: Path) -> Report:
    """A report that was written. Raises InvalidInput where the file is none."""
    remedy = "give a file that mera run --report wrote"
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"report: {path} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise InvalidInput(f"report: {path} is not JSON; {remedy}") from error
    lacking = NEEDED if not isinstance(found, dict) else [name for name in NEEDED if name not in found]
    if lacking:
        raise InvalidInput(f"report: {path} is no report of a run, it lacks {lacking[0]!r}; {remedy}")
    return dict(found)
