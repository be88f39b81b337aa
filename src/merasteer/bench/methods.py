"""The methods of the study, one small object each: what it fits, what it may choose from, and how it is measured.

A MERA row is a run of the pipeline with some options fixed, so it ends certified or abstained. A baseline has nothing to calibrate: it is
applied to every item. `request` is the `method` of a request that serves the same thing, for those that are served.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from merasteer.bench.cells import Measured, from_stages
from merasteer.bench.reference import reference
from merasteer.errors import InvalidInput
from merasteer.pipeline import Bars, Job, Options
from merasteer.pipeline.batch import Answers, answers, running
from merasteer.pipeline.collect import answers_of
from merasteer.pipeline.fit import vectors_of
from merasteer.pipeline.run import stages
from merasteer.pipeline.workspace import Output
from merasteer.probes import Family
from merasteer.probes.directions import additive_vectors, contrastive_vectors
from merasteer.store.schema import OWN_METHODS, OwnMethod
from merasteer.types import Correction, Direction, SteeringVectors

__all__ = ["INSTRUCTION", "METHODS", "FixedStrength", "Instruction", "Mera", "Method", "Unsteered", "chosen_methods"]

INSTRUCTION = "Think carefully before you answer, and do not make a mistake.\n"
STEPS_ONLY: tuple[OwnMethod, ...] = ("mera",)  # the study's rows of MERA: no bias among the candidates


class Method(Protocol):
    """One row of the table."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def request(self) -> str | None: ...

    def options(self, base: Options) -> Options:
        """The options that this row's readouts are fit with."""

    def measure(self, job: Job, bars: Bars) -> Measured:
        """The row on one model and task. `job` has the options that `options` gave."""


@dataclass(frozen=True)
class Unsteered:
    """The model as it is."""

    name: str = "none"
    about: str = "the model as it is"
    request: str | None = "none"

    def options(self, base: Options) -> Options:
        return base

    def measure(self, job: Job, bars: Bars) -> Measured:
        done = stages(job, "fit" if job.options.sae else "collect", bars)  # autoencoders are looked at once: here
        return Measured(done["collect"], answers_of(done["collect"], "test"), fitted=done.get("fit"))


@dataclass(frozen=True)
class Instruction:
    """The model asked to take care. The instruction stands in front: the answer position is the end of the prompt."""

    name: str = "prompt"
    about: str = "no steering; an instruction to answer with care in front of the prompt"
    request: str | None = None

    def options(self, base: Options) -> Options:
        return base

    def measure(self, job: Job, bars: Bars) -> Measured:
        collected = stages(job, "collect", bars)["collect"]
        asked = [replace(example, prompt=INSTRUCTION + example.prompt) for example in job.splits.test]
        prompts = job.prompts(asked)
        with running(job.loaded, prompts.longest) as engine, bars.bar("prompt", len(asked)) as bar:
            return Measured(collected, answers(engine, prompts.requests(), bar))


@dataclass(frozen=True)
class FixedStrength:
    """A step of fixed length at every position that the policy acts on and every layer that reads the error; nothing is calibrated.

    readout: `error` and `logistic` move against the readout, h − λ·w/‖w‖; `contrastive` against the difference of means.
    """

    name: str
    about: str
    readout: Literal["error", "logistic", "contrastive"]
    request: str | None = None
    strength: float = 1.0

    def options(self, base: Options) -> Options:
        family: Family = "logistic" if self.readout == "logistic" else base.family
        direction: Direction = "contrastive" if self.readout == "contrastive" else "euclidean"
        return replace(base, family=family, directions=(direction,), candidates=STEPS_ONLY, sae=())

    def measure(self, job: Job, bars: Bars) -> Measured:
        done = stages(job, "fit", bars)
        collected, fitted = done["collect"], done["fit"]
        held = vectors_of(fitted)
        if not held:
            return Measured(collected, answers_of(collected, "test"), reason="no_probe", fitted=fitted)
        key = next(iter(held))  # of the first hook point that reads the error
        prompts = job.prompts(job.splits.test)
        with running(job.loaded, prompts.longest) as engine, bars.bar(self.name, len(prompts.tokens)) as bar:
            engine.register("fixed", self.vectors(held[key], fitted))
            steered = answers(engine, prompts.requests(self.correction("fixed", job)), bar)
        return Measured(collected, steered, fitted=fitted, subject=key)

    def vectors(self, readout: SteeringVectors, fitted: Output) -> SteeringVectors:
        """The readout with the steps of this baseline."""
        if self.readout == "contrastive":
            return contrastive_vectors(readout, fitted.tensors[f"contrast.{readout.hook_point}"])
        return additive_vectors(readout)

    def correction(self, key: str, job: Job) -> Correction:
        """What is done with vectors that are held under this key."""
        method: Literal["contrastive", "additive"] = "contrastive" if self.readout == "contrastive" else "additive"
        return Correction(method, key, strength=self.strength, positions=job.options.positions)


@dataclass(frozen=True)
class Mera:
    """A run of the pipeline with `fixed` options; the rest are those of the bench."""

    name: str
    about: str
    fixed: Mapping[str, Any] = field(default_factory=dict, hash=False)
    request: str | None = "mera"

    def options(self, base: Options) -> Options:
        return replace(base, **{"candidates": STEPS_ONLY, "sae": (), **self.fixed})

    def measure(self, job: Job, bars: Bars) -> Measured:
        return from_stages(stages(job, "evaluate", bars))


def _mera() -> list[Method]:
    """The rows of the paper: one readout and one direction each, at both ways of stepping."""
    found: list[Method] = []
    steps = {"euclidean": "the shortest step", "covariance": "the least surprising step"}
    for layer in ("best", "median", "worst"):
        for step, words in steps.items():
            about = f"the error probe of {layer} held-out score acts alone, {words}"
            found.append(Mera(f"mera-{layer}-{step}", about, {"layers": layer, "directions": (step,)}))
    for step, words in steps.items():
        about = f"a logistic probe of right and wrong at every layer, {words}"
        found.append(Mera(f"mera-logistic-{step}", about, {"family": "logistic", "directions": (step,)}))
    for k in (50, 100, 200):
        for step, words in steps.items():
            direction = "contrastive" if step == "euclidean" else "contrastive_covariance"
            about = f"difference of means over {k} items at either end, {words}"
            found.append(Mera(f"mera-contrastive-{k}-{step}", about, {"directions": (direction,), "top_k": k}))
    return found


PAPER = {"family": "lasso", "directions": ("euclidean",), "positions": "all", "grid": "paper"}

_ALL: tuple[Method, ...] = (
    Unsteered(),
    Instruction(),
    FixedStrength("additive-error", "a step of fixed length against the error probe", "error", "additive"),
    FixedStrength("additive-logistic", "a step of fixed length against the logistic probe", "logistic", "additive"),
    FixedStrength(
        "contrastive", "a step of fixed length against the difference of means", "contrastive", "contrastive"
    ),
    Mera("mera-paper", "the paper's setting: Lasso, shortest step, every position, its grid of α", PAPER),
    *_mera(),
    *(
        Mera(name, f"the error probe says when, {words} where to", {"directions": (name,)})
        for name, words in (
            ("gradient", "the mean gradient of the error"),
            ("proportional", "the mean gradient, as far as the predicted error is large,"),
            ("gradient_by_label", "the mean gradient of the class that a label probe reads"),
        )
    ),
    Mera("mera", "the best step of all: every hook point, direction, length and α is a candidate"),
    Mera(
        "logit_bias",
        "no step; a bias for each label on its logits where the answer is chosen",
        {"candidates": ("logit_bias",)},
        "logit_bias",
    ),
    Mera(
        "label_probe",
        "no step; behind the gate of the error probe the label is the one that a label probe reads",
        {"candidates": ("label_probe",)},
        "label_probe",
    ),
    Mera(
        "mera+bias",
        "the best steps, each with the bias behind it",
        {"candidates": ("mera+bias",)},
        "mera+bias",
    ),
    Mera(
        "certified-best",
        "what `mera run` publishes: steps, the bias, both together and the label probe compete",
        {"candidates": OWN_METHODS},
        "mera",
    ),
)
METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}


@dataclass(frozen=True)
class Reference:
    """The arithmetic of the released research code, mistakes included (`bench.reference`): for comparison only."""

    name: str
    about: str
    readout: Literal["error", "contrastive"]
    request: str | None = None

    def options(self, base: Options) -> Options:
        return base

    def measure(self, job: Job, bars: Bars) -> Measured:
        collected = stages(job, "collect", bars)["collect"]
        found = reference(job, self.readout, bars)
        labels = np.array([example.label for example in job.splits.test])
        return Measured(
            collected,
            Answers.of_labels(found.steered.label, len(job.served.labels)),
            unsteered=Answers.of_labels(found.unsteered.label, len(job.served.labels)),
            shown={
                "alpha": found.alpha,
                "hook_point": found.hook_point,
                "claimed": [float((part.late == labels).mean()) for part in (found.unsteered, found.steered)],
            },
        )


COMPAT: Mapping[str, Sequence[Method]] = {
    "reference": (
        Reference("reference-error", "the research code as released, error probe", "error"),
        Reference("reference-contrastive", "the research code as released, contrastive", "contrastive"),
    )
}


def chosen_methods(names: Sequence[str], compat: str | None = None) -> list[Method]:
    """The methods of these names in the order of the registry; `all` stands for all of them. compat: others' beside them."""
    if compat is not None and compat not in COMPAT:
        raise InvalidInput(f"compat: {compat!r} is unknown; give {', '.join(COMPAT)}")
    unknown = [name for name in names if name not in METHODS and name != "all"]
    if not names or unknown:
        shown = repr(unknown[0]) if unknown else "none given"
        raise InvalidInput(f"methods: {shown}; give one or more of all, {', '.join(METHODS)}")
    ours = [method for name, method in METHODS.items() if name in names or "all" in names]
    return [*ours, *(COMPAT[compat] if compat else ())]
