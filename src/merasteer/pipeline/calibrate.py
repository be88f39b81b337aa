"""Stage 3: choose on the ordering subset, test once on the calibration split (docs/method.md section 6).

facts: `calibration` is calibration.json as it will be published; `chosen` the certified candidate, null when abstaining;
       `subject` the key of the readout that is published: the chosen candidate's, the best one's where it has none
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from merasteer.method.bounds import betting_lower_bounds
from merasteer.method.certify import Certificate, certify, rank
from merasteer.pipeline.batch import Prompts, answers, predicted_error, running
from merasteer.pipeline.collect import answers_of
from merasteer.pipeline.fit import vectors_of
from merasteer.pipeline.job import Job
from merasteer.pipeline.options import Options
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.workspace import Output
from merasteer.store.schema import Correction
from merasteer.types import GenerationRequest, Policy

__all__ = ["COMBINED", "Candidate", "Choice", "calibrate", "choose", "steps_of"]

COMBINED = 5  # steps that are tried with the bias on top: the best by gain

Correct = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Candidate:
    """A step (key of a fitted readout, and a threshold), the logit bias, or the bias on top of a step."""

    readout: str | None
    alpha: float | None
    biased: bool = False

    @property
    def key(self) -> str:
        if self.readout is None:
            return "logit_bias"
        return f"{self.readout}/{self.alpha:g}{'+bias' * self.biased}"

    @property
    def method(self) -> Correction:
        if self.readout is None:
            return "logit_bias"
        return "mera+bias" if self.biased else "mera"

    def requests(self, job: Job, fitted: Output, prompts: Prompts) -> list[GenerationRequest]:
        """What asks for this candidate's answers."""
        policy = None
        if self.readout is not None:
            policy = Policy(self.readout, alpha=self.alpha, positions=job.options.positions)
        bias = tuple(fitted.tensors["label_bias"].tolist()) if self.biased else None
        return prompts.requests(policy, bias)


@dataclass(frozen=True)
class Choice:
    """The candidates that were ranked, their gains on the ordering subset, and the certificate.

    readout: key of the readout that the artifact gets; None when there is no readout at all.
    """

    candidates: tuple[Candidate, ...]
    gains: Mapping[str, float]
    certificate: Certificate
    readout: str | None

    @property
    def chosen(self) -> Candidate | None:
        """The certified candidate."""
        return next((one for one in self.candidates if one.key == self.certificate.chosen), None)


def steps_of(fitted: Output) -> list[Candidate]:
    """Every hook point × direction × α, in the order in which equal gains are preferred."""
    return [Candidate(key, alpha) for key, facts in fitted.facts["readouts"].items() for alpha in facts["alphas"]]


def choose(
    steps: Sequence[Candidate],
    gains_of: Callable[[Sequence[Candidate]], Sequence[float]],
    outcomes: Callable[[Candidate], tuple[Correct, Correct]],
    options: Options,
) -> Choice:
    """Ranks the candidates that the options allow and tests the best.

    gains_of: accuracy gains on the ordering subset. outcomes: which calibration items are answered right without the candidate
    and with it; asked for the tested candidates only. Equal gains: the bias alone before any step, a step before the same
    with the bias on top: what does less is preferred.
    """
    wanted = options.candidates
    alone = [Candidate(None, None, True)] if "logit_bias" in wanted else []
    by_gain = dict(zip(steps, gains_of(steps), strict=True)) if {"mera", "mera+bias"} & set(wanted) else {}
    best = sorted(by_gain, key=lambda step: by_gain[step], reverse=True)
    on_top = [replace(step, biased=True) for step in best[:COMBINED]] if "mera+bias" in wanted else []
    if biased := [*alone, *on_top]:
        by_gain |= dict(zip(biased, gains_of(biased), strict=True))
    candidates = (*alone, *(steps if "mera" in wanted else ()), *on_top)
    gains = {one.key: by_gain[one] for one in candidates}
    known = {one.key: one for one in candidates}
    ranked = rank(gains)
    certificate = certify(
        ranked,
        lambda key: outcomes(known[key]),
        delta=options.delta,
        epsilon=options.epsilon,
        chances=options.chances,
        test=options.test,
    )
    subject = known[certificate.chosen or ranked[0]] if ranked else None
    readout = subject.readout if subject else None
    if readout is None and steps:
        readout = (best[0] if best else steps[0]).readout
    return Choice(candidates, gains, certificate, readout)


def calibrate(job: Job, collected: Output, fitted: Output, bars: Bars) -> Output:
    """All candidates over the ordering subset in one batch; the best (or the best `chances`) over the calibration split.

    Steps with the bias on top are a second, small batch: which of them are tried is known behind the first.
    """
    items = [job.splits.train[i] for i in job.ordering]
    train, held_out = job.prompts(items), job.prompts(job.splits.calibration)
    answers_wanted = np.asarray([example.label for example in items])
    labels = [example.label for example in job.splits.calibration]
    before = answers_of(collected).correct([example.label for example in job.splits.train])[job.ordering]
    unsteered = answers_of(collected, "calibration").correct(labels)
    changes: dict[str, npt.NDArray[np.int64]] = {}  # D of every ordering item, by candidate
    with running(job.loaded, max(train.longest, held_out.longest)) as engine:
        for key, vectors in vectors_of(fitted).items():
            engine.register(key, vectors)

        def gains_of(candidates: Sequence[Candidate]) -> list[float]:
            requests = [request for one in candidates for request in one.requests(job, fitted, train)]
            with bars.bar("calibrate: candidates", len(requests)) as bar:
                after = answers(engine, requests, bar).label.reshape(len(candidates), len(items)) == answers_wanted
            for one, row in zip(candidates, after, strict=True):
                changes[one.key] = row.astype(np.int64) - before
            return [float(changes[one.key].mean()) for one in candidates]

        def outcomes(candidate: Candidate) -> tuple[Correct, Correct]:
            with bars.bar("calibrate: test", len(labels)) as bar:
                steered = answers(engine, candidate.requests(job, fitted, held_out), bar)
            return unsteered, steered.correct(labels)

        choice = choose(steps_of(fitted), gains_of, outcomes, job.options)
        with bars.bar("calibrate: what is served", len(labels)) as bar:
            read = predicted_error(engine, _served(job, fitted, choice, held_out), bar)
    facts = {
        "calibration": _document(fitted, choice, changes) | ({"predicted_error": read} if read else {}),
        "chosen": asdict(choice.chosen) if choice.chosen else None,
        "subject": choice.readout,
    }
    return Output(facts)


def _served(job: Job, fitted: Output, choice: Choice, prompts: Prompts) -> list[GenerationRequest]:
    """What a server asks for these prompts under the artifact: its correction, and the readout that it reports."""
    chosen = choice.chosen
    if chosen is not None and chosen.readout is not None:
        return chosen.requests(job, fitted, prompts)
    bias = tuple(fitted.tensors["label_bias"].tolist()) if chosen is not None else None
    return prompts.requests(Policy(choice.readout) if choice.readout is not None else None, bias)


def _document(fitted: Output, choice: Choice, changes: Mapping[str, npt.NDArray[np.int64]]) -> dict[str, Any]:
    """calibration.json."""
    certificate = choice.certificate
    # Without a readout nothing is published but a certified bias, so abstaining then is for want of a probe.
    reason = None if certificate.certified else "uncertified" if choice.readout else "no_probe"
    return {
        "test": certificate.test,
        "epsilon": certificate.epsilon,
        "delta": certificate.delta,
        "chances": certificate.chances,
        "decision": "certified" if certificate.certified else "abstained",
        "reason": reason,
        "chosen": certificate.chosen,
        "candidates": list(_rows(fitted, choice, changes)),
        "tested": [
            {
                "key": result.candidate,
                "n": result.n,
                "gained": result.gained,
                "lost": result.lost,
                "p_value": result.p_value,
                "gain": result.gain,
                "lower_bound": result.lower_bound,
            }
            for result in certificate.tested
        ],
    }


def _rows(fitted: Output, choice: Choice, changes: Mapping[str, npt.NDArray[np.int64]]) -> Iterator[dict[str, Any]]:
    """One row per candidate. Its bound stands for itself alone, as if no other had been tried: for looking, not for deciding."""
    if not choice.candidates:
        return
    rows = np.stack([changes[candidate.key] for candidate in choice.candidates])
    bounds = betting_lower_bounds(rows, choice.certificate.delta)
    for candidate, row, bound in zip(choice.candidates, rows, bounds, strict=True):
        facts = fitted.facts["readouts"][candidate.readout] if candidate.readout else {}
        yield {
            "key": candidate.key,
            "hook_point": facts.get("hook_point"),
            "direction": facts.get("direction"),
            "alpha": candidate.alpha,
            "gain": choice.gains[candidate.key],
            "gained": int((row > 0).sum()),
            "lost": int((row < 0).sum()),
            "lower_bound": float(bound),
            # "mera" goes without saying, as in artifacts from before there was another.
            **({} if candidate.method == "mera" else {"method": candidate.method}),
        }
