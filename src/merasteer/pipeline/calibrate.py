"""Stage 3: choose on the ordering subset, test once on the calibration split (docs/method.md section 6).

facts: `calibration` is calibration.json as it will be published; `subject` the key of the readout that the decision is about
tensors: probabilities (n, C) and label (n,) of the unsteered calibration split, for the logit bias beside it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from merasteer.engine import Engine
from merasteer.method.certify import Certificate, certify, rank
from merasteer.pipeline.batch import answers, running
from merasteer.pipeline.collect import answers_of
from merasteer.pipeline.fit import vectors_of
from merasteer.pipeline.job import Job
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.workspace import Output
from merasteer.types import Policy

__all__ = ["Candidate", "calibrate", "candidates_of"]


@dataclass(frozen=True)
class Candidate:
    """A readout (key into the fitted ones) and a threshold."""

    readout: str
    alpha: float

    @property
    def key(self) -> str:
        return f"{self.readout}/{self.alpha:g}"

    def policy(self, job: Job) -> Policy:
        """What a request that tries this candidate asks for."""
        return Policy(self.readout, alpha=self.alpha, positions=job.options.positions)


def candidates_of(fitted: Output) -> list[Candidate]:
    """Every hook point × direction × α, in the order in which equal gains are preferred."""
    return [Candidate(key, alpha) for key, facts in fitted.facts["readouts"].items() for alpha in facts["alphas"]]


def calibrate(job: Job, collected: Output, fitted: Output, bars: Bars) -> Output:
    """All candidates over the ordering subset in one batch; the best (or the best `chances`) over the calibration split."""
    candidates = {candidate.key: candidate for candidate in candidates_of(fitted)}
    train = job.prompts([job.splits.train[i] for i in job.ordering])
    held_out = job.prompts(job.splits.calibration)
    labels = [example.label for example in job.splits.calibration]
    with running(job.loaded, max(train.longest, held_out.longest)) as engine:
        for key, vectors in vectors_of(fitted).items():
            engine.register(key, vectors)
        gains = _gains(job, engine, collected, list(candidates.values()), bars)
        with bars.bar("calibrate: unsteered", len(labels)) as bar:
            unsteered = answers(engine, held_out.requests(), bar)

        def outcomes(key: str) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
            with bars.bar("calibrate: test", len(labels)) as bar:
                steered = answers(engine, held_out.requests(candidates[key].policy(job)), bar)
            return unsteered.correct(labels), steered.correct(labels)

        ranked = rank(gains)
        options = job.options
        certificate = certify(
            ranked,
            outcomes,
            delta=options.delta,
            epsilon=options.epsilon,
            chances=options.chances,
            test=options.test,
        )
    subject = certificate.chosen or (ranked[0] if ranked else None)
    facts = {
        "calibration": _document(fitted, list(candidates.values()), gains, certificate),
        "subject": candidates[subject].readout if subject else None,
    }
    tensors = {"label": torch.from_numpy(unsteered.label), "probabilities": torch.from_numpy(unsteered.probabilities)}
    return Output(facts, tensors)


def _gains(job: Job, engine: Engine, collected: Output, candidates: list[Candidate], bars: Bars) -> dict[str, float]:
    """Accuracy gain of each candidate on the ordering subset."""
    items = [job.splits.train[i] for i in job.ordering]
    labels = [example.label for example in items]
    before = answers_of(collected).correct([example.label for example in job.splits.train])[job.ordering]
    prompts = job.prompts(items)
    requests = [request for candidate in candidates for request in prompts.requests(candidate.policy(job))]
    if not requests:
        return {}
    with bars.bar("calibrate: candidates", len(requests)) as bar:
        found = answers(engine, requests, bar)
    after = (found.label.reshape(len(candidates), -1) == np.asarray(labels)).mean(1)
    gains = after - before.mean()
    return {candidate.key: float(gain) for candidate, gain in zip(candidates, gains, strict=True)}


def _document(
    fitted: Output, candidates: list[Candidate], gains: dict[str, float], certificate: Certificate
) -> dict[str, Any]:
    """calibration.json."""
    reason = None if certificate.certified else "uncertified" if candidates else "no_probe"
    return {
        "test": certificate.test,
        "epsilon": certificate.epsilon,
        "delta": certificate.delta,
        "chances": certificate.chances,
        "decision": "certified" if certificate.certified else "abstained",
        "reason": reason,
        "chosen": certificate.chosen,
        "candidates": list(_rows(fitted, candidates, gains)),
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


def _rows(fitted: Output, candidates: list[Candidate], gains: dict[str, float]) -> Iterator[dict[str, Any]]:
    for candidate in candidates:
        facts = fitted.facts["readouts"][candidate.readout]
        yield {
            "key": candidate.key,
            "hook_point": facts["hook_point"],
            "direction": facts["direction"],
            "alpha": candidate.alpha,
            "gain": gains[candidate.key],
        }
