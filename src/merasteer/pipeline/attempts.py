"""A run's attempt on its calibration rows: its place in the ledger, the level that follows, and what a test does not show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from merasteer.method.certify import Certificate
from merasteer.method.harm import broken, collapse
from merasteer.pipeline.batch import Answers
from merasteer.pipeline.job import Job
from merasteer.store import scan
from merasteer.store.ledger import Entry, Test, allot, entries

__all__ = ["attempt_of", "effects_of", "standing"]

GAIN = "gain"


def attempt_of(job: Job, test: str | None = None, what: str = "run", delta: float | None = None) -> Entry:
    """The ledger's entry of this job's test, made now if it has none: durable before any outcome is computed.

    test: what makes it the same test when it is repeated (None: the job's inputs, or its column, whose rows share the level).
    Raises InvalidInput where the ledger cannot be written, or is not what was written.
    """
    rows = tuple(job.splits.digests["calibration"])
    weights = job.identity.meaning.weights
    column = job.column
    name = test or (column.test if column else job.workspace.key)
    asked = Test(name, GAIN, weights, rows, "bench" if column else what, job.served.name)
    return allot(
        job.store,
        job.identity.slug,
        asked,
        delta=job.options.delta if delta is None else delta,
        parts=column.parts if column else 1,
        known=unentered(job),
    )


def unentered(job: Job) -> list[tuple[str, tuple[str, ...]]]:
    """(model, rows) of the tests that artifacts of the store speak of and no ledger knows: from before there was one, or it was removed."""
    known = {entry.test for entry in entries(job.store)}
    found = []
    for entry in scan([job.store], job.identity):
        if entry.artifact is None or not entry.artifact.calibration["tested"]:
            continue
        if entry.artifact.calibration.get("entry") not in known:
            found.append((job.identity.meaning.weights, tuple(entry.artifact.manifest["splits"]["calibration"])))
    return found


def standing(entered: Sequence[Entry]) -> dict[str, Any]:
    """What calibration.json says of the attempt; nothing where nothing was tested."""
    return (
        {"level": one.level / one.parts, "attempt": one.attempt, "entry": one.test}
        if (one := next(iter(entered), None))
        else {}
    )


def effects_of(job: Job, before: Answers, said: Answers, certificate: Certificate) -> dict[str, Any]:
    """Of a tested candidate's answers on the calibration split: collapse (a phrase or null), below_majority, broken (`method.harm`)."""
    labels = [example.label for example in job.splits.calibration]
    phrase, right = collapse(labels, before.label, said.label, job.served.labels), said.correct(labels)
    majority = max(labels.count(index) for index in set(labels)) / len(labels)
    harm = broken(before.correct(labels), right, certificate.delta / certificate.chances)
    return {
        "collapse": phrase,
        "below_majority": phrase is None and float(right.mean()) <= majority,
        "broken": asdict(harm),
    }
