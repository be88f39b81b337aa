"""What the server can serve: tasks by name, the artifact of each, and plain facts about every artifact. Frozen: a reload makes another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mera_server.replies import Caution, TaskReply, TasksReply
from merasteer.conditions import Conditions, differences
from merasteer.engine.canaries import Canaries
from merasteer.errors import MeraError, UnknownTask, Unsupported
from merasteer.store import Entry, certificate_of, resolve_prefix
from merasteer.tasks import Prompter
from merasteer.types import Artifact, Correction, Method, ServedTask

__all__ = ["Catalog", "Certificate", "Probe", "probe_of"]

Baseline = Literal["additive", "contrastive"]


@dataclass(frozen=True)
class Certificate:
    """What was tested on the calibration split; nulls where nothing was."""

    test: str | None = None
    gain: float | None = None
    lower_bound: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    level: float | None = None
    attempt: int | None = None
    n: int | None = None


@dataclass(frozen=True)
class Probe:
    """An artifact as requests see it.

    certified: as the artifact says. mismatch: why its test says nothing of this server, a sentence that names what differs, else None.
    baselines: the fixed-strength methods whose vectors are resident.
    correction: its own, the one that was tested. label_bias: one value per label, for the methods that bias the answer.
    caution: what its test found beside the gain: answers that collapse, or that stay below the majority.
    canaries: what the engine that was certified gave for some prompts; None where the artifact is not certified, or from before.
    calibration_error: mean predicted error over the calibration rows as they are served; None where the artifact does not hold it.
    says: whether what it holds is a label probe, and no step. strength: κ of its step, 0 where the step knows its length.
    """

    digest: str
    task: ServedTask
    certified: bool
    correction: Correction
    active: tuple[int, ...]
    mismatch: str | None = None
    certificate: Certificate = field(default_factory=Certificate)
    baselines: frozenset[str] = frozenset({"additive", "contrastive"})
    label_bias: tuple[float, ...] | None = None
    calibration_error: float | None = None
    canaries: Canaries | None = None
    caution: Caution | None = None
    says: bool = False
    strength: float = 0.0

    @property
    def method(self) -> Method:
        """Its own."""
        return self.correction.method

    @property
    def alpha(self) -> float | None:
        """The threshold that was tested; None where nothing passed, or nothing moves."""
        return self.correction.alpha

    @property
    def guaranteed(self) -> bool:
        """Whether its certificate holds on this server."""
        return self.certified and self.mismatch is None

    def baseline(self, method: Baseline) -> str:
        """The name of a baseline's vectors. Raises Unsupported where the artifact has none."""
        if method not in self.baselines:
            raise Unsupported(
                f"steering.method: this artifact has no vectors for {method}; use another method or probe"
            )
        return f"{self.digest}/{method}"

    def bias(self, method: Method) -> tuple[float, ...]:
        """The label bias that `method` applies. Raises Unsupported where the artifact has none."""
        if self.label_bias is None:
            raise Unsupported(
                f"steering.method: this artifact has no label bias for {method}; use another method or probe"
            )
        return self.label_bias


@dataclass(frozen=True)
class Catalog:
    """tasks: those that some file or artifact describes; an error where this model cannot serve one. latest: task -> its default."""

    layers: int
    tasks: Mapping[str, ServedTask | MeraError] = field(default_factory=dict)
    probes: Mapping[str, Probe] = field(default_factory=dict)
    latest: Mapping[str, Probe] = field(default_factory=dict)
    entries: Sequence[Entry] = ()
    tokenizer: Any = None
    _prompters: dict[ServedTask, Prompter] = field(default_factory=dict, repr=False, compare=False)

    def prompter(self, task: ServedTask) -> Prompter:
        """What makes the prompts of a task; each is made once."""
        found = self._prompters.get(task)
        if found is None:
            found = self._prompters[task] = Prompter(task, self.tokenizer)
        return found

    @property
    def names(self) -> str:
        """The tasks that this model can serve, for messages."""
        return ", ".join(sorted(name for name, task in self.tasks.items() if isinstance(task, ServedTask))) or "none"

    def task(self, name: str) -> ServedTask:
        """The task of that name. Raises UnknownTask naming the known ones, or what keeps this model from serving it."""
        found = self.tasks.get(name)
        if found is None:
            raise UnknownTask(f"steering.task: no such task; known tasks: {self.names}")
        if isinstance(found, MeraError):
            raise type(found)(*found.args)  # raised again and again, one error would grow by a traceback each time
        return found

    def probe(self, prefix: str) -> Probe:
        """The resident artifact whose digest starts with `prefix`. Raises UnknownProbe."""
        here = [entry for entry in self.entries if entry.digest is None or entry.digest in self.probes]
        return self.probes[str(resolve_prefix(here, prefix).digest)]

    def listing(self) -> TasksReply:
        """Tasks with an artifact first, certified before uncertified, then by name; those that the model cannot serve are left out."""
        rows = [self._row(name, task) for name, task in self.tasks.items() if isinstance(task, ServedTask)]
        return TasksReply(tasks=sorted(rows, key=lambda row: (row.probe is None, not row.certified, row.name)))

    def _row(self, name: str, task: ServedTask) -> TaskReply:
        probe = self.latest.get(name)
        if probe is None:
            return TaskReply(name=name, labels=list(task.labels), probe=None, certified=False, alpha=None, caution=None)
        labels = list(probe.task.labels)
        facts = {"probe": probe.digest, "certified": probe.guaranteed, "alpha": probe.alpha, "caution": probe.caution}
        return TaskReply(name=name, labels=labels, **facts)


def probe_of(artifact: Artifact, here: Conditions, baselines: frozenset[str]) -> Probe:
    """The artifact's facts for a server under these conditions."""
    tested: dict[str, Any] = certificate_of(artifact.calibration) or {}
    bias, steering = artifact.label_bias, artifact.manifest["steering"]
    return Probe(
        digest=artifact.digest,
        task=artifact.task,
        certified=artifact.certified,
        correction=artifact.correction,
        active=tuple(steering["active_layers"]),
        mismatch=_mismatch(artifact, here),
        certificate=Certificate(**{name: tested.get(name) for name in Certificate.__dataclass_fields__}),
        baselines=baselines,
        label_bias=None if bias is None else tuple(bias.tolist()),
        calibration_error=_calibration_error(artifact.calibration),
        caution=_caution(artifact.calibration, tested),
        says=steering["direction"] == "label_probe",
        strength=float(steering.get("strength", 0.0)),
        canaries=Canaries.from_json(held) if (held := artifact.calibration.get("canaries")) is not None else None,
    )


def _caution(calibration: Mapping[str, Any], tested: Mapping[str, Any]) -> Caution | None:
    """Of what is certified, or would be without it: a candidate that failed its test is not served, and needs no word."""
    if calibration.get("reason") == "collapse" or (calibration.get("reason") is None and tested.get("collapse")):
        return "collapse"
    return "below_majority" if calibration.get("reason") is None and tested.get("below_majority") else None


def _mismatch(artifact: Artifact, here: Conditions) -> str | None:
    if artifact.conditions is None or (artifact.certified and "canaries" not in artifact.calibration):
        return "made before conditions and canaries were kept; test it again with mera recertify"
    found = "; ".join(differences(artifact.conditions, here))
    return f"the conditions of its test do not hold here: {found}" if found else None


def _calibration_error(calibration: Mapping[str, Any]) -> float | None:
    """Optional in an artifact, and the store does not check it: anything but a share is passed over."""
    found = calibration.get("predicted_error")
    mean = found.get("mean") if isinstance(found, Mapping) else None
    return float(mean) if isinstance(mean, (int, float)) and not isinstance(mean, bool) and 0 <= mean <= 1 else None
