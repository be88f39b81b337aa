"""An artifact tested again as things are now: other versions of the libraries, another dtype, another kind of attention.

The candidate is not chosen anew: it is the one that the artifact serves, and it is asked on the same calibration split, at the
level at which it was tested before (δ / chances). Each new certificate holds with probability 1 − δ by itself; whoever tests under
many settings and keeps what passed has tested many times. The split's rows are compared by content; their labels are taken as the
task has them now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from merasteer.engine import LoadedModel
from merasteer.errors import BadSplits, BadTask, InvalidInput
from merasteer.method.certify import Certificate, certify
from merasteer.pipeline.attempts import attempt_of, effects_of, standing
from merasteer.pipeline.batch import answers, predicted_error, running
from merasteer.pipeline.canaries import measured
from merasteer.pipeline.job import Job, prepare
from merasteer.pipeline.options import Options
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.report import certificate_in
from merasteer.store import ModelIdentity, load, publish, resolve_prefix, snapshot
from merasteer.store.documents import canonical
from merasteer.store.ledger import Entry
from merasteer.tasks import load_task
from merasteer.types import Artifact, Correction, Task

__all__ = ["Renewal", "recertify", "renewals"]

KEPT = (
    "test",
    "epsilon",
    "delta",
    "chances",
    "candidates",
)  # of calibration.json; all else was measured as things were then


@dataclass(frozen=True, eq=False)
class Renewal:
    """A certified artifact and all that it takes to test it again, compared with what it was made from."""

    artifact: Artifact
    job: Job

    def served(self, *, certified: bool) -> Correction:
        """What a server does under the new artifact, whose vectors are registered under the old one's digest."""
        return self.artifact.correction if certified else self.artifact.correction.watching()


def renewals(
    loaded: LoadedModel,
    identity: ModelIdentity,
    store: Path,
    *,
    task: str | None = None,
    probe: str | None = None,
    data: Path | None = None,
    search: Sequence[Path] = (),
) -> list[Renewal]:
    """What is to be tested again: the artifact whose digest starts with `probe`; else the default one of `task`, a name or a path,
    or of every task whose default is certified. identity: that of `loaded`. data, search: as for `pipeline.prepare`.

    Raises InvalidInput where nothing is certified, UnknownProbe, UnknownTask, and BadTask or BadSplits where task or rows changed.
    """
    entries, defaults = snapshot([store], identity)
    chosen = [resolve_prefix(entries, probe)] if probe is not None else [defaults[name] for name in sorted(defaults)]
    known = None if task is None else load_task(task, data=data, search=search)
    found = [
        entry.artifact
        for entry in chosen
        if entry.artifact and entry.artifact.certified and (known is None or entry.task == known.name)
    ]
    if not found:
        raise InvalidInput(
            f"recertify: {store} holds nothing certified for this model under the probe or task that was named; "
            "see mera probes list, and calibrate with mera run"
        )
    if data is not None and known is None:
        raise InvalidInput("data: given without the task whose rows they are; give --task too")
    return [_renewal(artifact, loaded, store, known, search) for artifact in found]


def _renewal(
    artifact: Artifact, loaded: LoadedModel, store: Path, known: Task | None, search: Sequence[Path]
) -> Renewal:
    """Raises BadTask or BadSplits unless task and calibration rows are those of the artifact."""
    job = prepare(loaded, known or artifact.task.name, store, Options(), search=search)
    then, now = asdict(artifact.task), asdict(job.served)
    for name, value in then.items():
        if now[name] != value:
            raise BadTask(
                f"task {artifact.task.name!r}: {name}: not what artifact {artifact.digest[:12]} was calibrated with; "
                "give that task file, or calibrate again with mera run"
            )
    rows = artifact.manifest["splits"]["calibration"]
    if not rows or job.splits.digests["calibration"] != rows:
        raise BadSplits(
            f"task {artifact.task.name!r}: splits.calibration: not the rows that artifact {artifact.digest[:12]} was "
            "calibrated with; give those with --data, or calibrate again with mera run"
        )
    return Renewal(artifact, job)


def recertify(renewal: Renewal, bars: Bars | None = None) -> dict[str, Any]:
    """Publishes the artifact with its new certificate, or abstaining, as the task's default; a report of it, JSON-able."""
    job, old = renewal.job, renewal.artifact
    prompts = job.prompts(job.splits.calibration)
    labels = [example.label for example in job.splits.calibration]
    asked = [prompts.requests(), prompts.requests(old.correction)]
    with (
        running(job.loaded, prompts.longest, vectors={old.digest: old.vectors}) as engine,
        (bars or Bars()).bar("recertify", 3 * len(labels)) as bar,
    ):
        entry = attempt_of(job, _test_of(renewal), "recertify", delta=old.calibration["delta"])
        before, after = (answers(engine, requests, bar, prompts.where) for requests in asked)
        how = {name: old.calibration[name] for name in ("epsilon", "chances", "test")}
        outcomes = before.correct(labels), after.correct(labels)
        certificate = certify([old.calibration["chosen"]], lambda _: outcomes, delta=entry.level, **how)
        effects = effects_of(job, before, after, certificate)
        certified = certificate.certified and (effects["collapse"] is None or bool(old.calibration.get("allowed")))
        read = predicted_error(engine, prompts.requests(renewal.served(certified=certified)), bar)
        canaries = None
        if certified:
            canaries = measured(engine, job.prompter, old.correction, job.loaded.dtype, bar)
    document = (
        _document(old, certificate, entry, effects, certified=certified)
        | ({"predicted_error": read} if read else {})
        | ({"canaries": canaries.to_json()} if canaries else {})
    )
    manifest = _manifest(renewal, certified=certified)
    folder = publish(job.store, manifest=manifest, calibration=document, tensors=_tensors(old))
    return {
        "task": old.task.name,
        "recertifies": old.digest,
        "artifact": load(folder).digest,
        "decision": document["decision"],
        "reason": document["reason"],
        "runtime": manifest["runtime"],
        "certificate": certificate_in(document),
        "before": certificate_in(old.calibration),
    }


def _test_of(renewal: Renewal) -> str:
    """What makes it the same test when it is repeated: artifact, conditions and versions."""
    follows = [renewal.artifact.digest, renewal.job.identity.manifest(), renewal.job.conditions.runtime()]
    return hashlib.sha256(canonical([*follows, renewal.job.versions])).hexdigest()[:12]


def _document(
    old: Artifact, certificate: Certificate, entry: Entry, effects: dict[str, Any], *, certified: bool
) -> dict[str, Any]:
    """calibration.json: what was ranked then, what was tested now."""
    tested = {"key" if name == "candidate" else name: value for name, value in asdict(certificate.tested[0]).items()}
    failed = "uncertified" if old.vectors.active_layers else "no_probe"
    failed = "collapse" if certificate.certified else failed
    return {
        **{name: old.calibration[name] for name in KEPT},
        **standing([entry]),
        "decision": "certified" if certified else "abstained",
        "reason": None if certified else failed,
        "chosen": certificate.chosen if certified else None,
        "tested": [tested | effects],
        "recertifies": old.digest,
    }


def _manifest(renewal: Renewal, *, certified: bool) -> dict[str, Any]:
    """The artifact's own, with the present runtime and versions. Abstaining, there is no α and no method to serve."""
    old, job = renewal.artifact.manifest, renewal.job
    steering = dict(old["steering"])
    if not certified:
        steering = {name: value for name, value in steering.items() if name != "method"} | {"alpha": None}
    return {
        **old,
        "certified": certified,
        "model": job.identity.manifest(),
        "steering": steering,
        "runtime": job.conditions.runtime(),
        "versions": job.versions,
    }


def _tensors(artifact: Artifact) -> dict[str, torch.Tensor]:
    names = ("weight", "bias", "step", "contrastive", "label_bias", "class_weight", "class_bias", "class_step")
    return {name: tensor for name in names if (tensor := getattr(artifact, name)) is not None}
