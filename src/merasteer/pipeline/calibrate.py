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
from merasteer.pipeline.asking import Asker, Found
from merasteer.pipeline.attempts import attempt_of, effects_of, standing
from merasteer.pipeline.batch import running
from merasteer.pipeline.canaries import WORDS, measured
from merasteer.pipeline.draft import journal_of
from merasteer.pipeline.fit import label_bias_of, vectors_of
from merasteer.pipeline.gates import Known
from merasteer.pipeline.job import Job
from merasteer.pipeline.options import Options
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.ranking import Ranking, key_of
from merasteer.pipeline.workspace import Output
from merasteer.store.ledger import Entry
from merasteer.types import Correction, Positions

__all__ = ["COMBINED", "RANKING", "Choice", "calibrate", "choose", "correction_in", "key_of", "steps_of"]

RANKING = "ranking"  # the journal that rows of a bench share which rank the same steps
COMBINED = 5  # steps that are tried with the bias on top: the best by gain

Correct = npt.NDArray[np.bool_]


def correction_in(calibrated: Output) -> Correction | None:
    """The certified candidate of a finished stage."""
    raw = calibrated.facts["chosen"]
    if raw is None:
        return None
    values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in raw.items()}
    return Correction(**values)  # JSON knows no tuples


@dataclass(frozen=True)
class Choice:
    """The candidates that were ranked, their gains on the ordering subset, and the certificate.

    readout: key of the readout that the artifact gets; None when there is no readout at all. alone: of a bench's row that is not
    certified at its column's level: the candidate that passes at δ, as if nothing else had been tested on these rows.
    """

    candidates: tuple[Correction, ...]
    gains: Mapping[str, float]
    certificate: Certificate
    readout: str | None
    refused: bool = False  # it passed its test, and its answers collapse
    alone: str | None = None

    @property
    def passed(self) -> str | None:
        """Key of the candidate that passed its test."""
        return self.certificate.chosen or self.alone

    @property
    def chosen(self) -> Correction | None:
        """The candidate that passed, unless its answers collapse."""
        if self.refused:
            return None
        return next((one for one in self.candidates if key_of(one) == self.passed), None)

    @property
    def served(self) -> Correction:
        """What a server does under the artifact: the certified candidate, and the readout that it reports."""
        return Correction(readout=self.readout) if self.chosen is None else self.chosen.under(self.readout)


def steps_of(fitted: Output, positions: Positions) -> list[Correction]:
    """Every hook point × direction × strength × α, in the order in which equal gains are preferred; the label that a probe says last."""
    return [
        Correction("label_probe" if facts["direction"] == "label_probe" else "mera", key, alpha, strength, positions)
        for key, facts in fitted.facts["readouts"].items()
        for alpha in reversed(facts["alphas"])  # of equal gains the one that moves least
        for strength in facts["strengths"]
    ]


def choose(
    steps: Sequence[Correction],
    bias: tuple[float, ...],
    gains_of: Callable[[Sequence[Correction]], Sequence[float]],
    outcomes: Callable[[Correction], tuple[Correct, Correct]],
    options: Options,
    level: Callable[[], float],
) -> Choice:
    """Ranks the candidates that the options allow and tests the best.

    gains_of: accuracy gains on the ordering subset. outcomes: which calibration items are answered right without the candidate
    and with it; asked for the tested candidates only. bias: the labels', of the candidates that have one. Equal gains: the bias alone
    before any step, a step before the same with the bias on top: what does less is preferred. level: at which the best is tested, asked
    for once all is ranked (`store.ledger`).
    """
    wanted = options.candidates
    alone = [Correction("logit_bias", bias=bias)] if "logit_bias" in wanted else []
    said = [one for one in steps if one.method == "label_probe"]
    steps = [one for one in steps if one.method == "mera"]
    ranked_too = said if "label_probe" in wanted else []
    by_gain: dict[Correction, float] = {}
    for some in (steps if {"mera", "mera+bias"} & set(wanted) else [], ranked_too):
        by_gain |= dict(zip(some, gains_of(some), strict=True)) if some else {}
    best = sorted((one for one in by_gain if one.method == "mera"), key=lambda step: by_gain[step], reverse=True)
    on_top = [replace(step, method="mera+bias", bias=bias) for step in best[:COMBINED]] if "mera+bias" in wanted else []
    if biased := [*alone, *on_top]:
        by_gain |= dict(zip(biased, gains_of(biased), strict=True))
    candidates = (*alone, *(steps if "mera" in wanted else ()), *on_top, *ranked_too)
    gains = {key_of(one): by_gain[one] for one in candidates}
    known = {key_of(one): one for one in candidates}
    ranked = rank(gains)
    certificate = certify(
        ranked,
        lambda key: outcomes(known[key]),
        delta=level() if ranked else options.delta,
        epsilon=options.epsilon,
        chances=options.chances,
        test=options.test,
    )
    subject = known[certificate.chosen or ranked[0]] if ranked else None
    readout = subject.readout if subject else None
    if readout is None and (steps or said):
        readout = next(iter([*best, *steps, *said])).readout
    return Choice(candidates, gains, certificate, readout)


def calibrate(job: Job, collected: Output, fitted: Output, bars: Bars) -> Output:
    """All candidates over the ordering subset; the best (or the best `chances`) over the calibration split.

    Steps with the bias on top are a second, small batch: which of them are tried is known behind the first.
    """
    train, held_out = job.prompts([job.splits.train[i] for i in job.ordering]), job.prompts(job.splits.calibration)
    labels, vectors = [example.label for example in job.splits.calibration], vectors_of(fitted)
    tested: dict[str, Found] = {}
    entered: list[Entry] = []
    with (
        running(job.loaded, max(train.longest, held_out.longest), vectors=vectors) as engine,
        journal_of(job.workspace.folder, "calibrate") as journal,
        journal_of(job.readouts.folder, RANKING) as shared,
    ):
        ordering = Known.of(job.served, job.loaded.dtype, collected, vectors, "train", job.ordering)
        ranking = Ranking(Asker(engine, train, ordering, shared), ordering, _wanted(job), bars)
        calibration = Known.of(job.served, job.loaded.dtype, collected, vectors, "calibration")
        asker = Asker(engine, held_out, calibration, journal)

        def outcomes(candidate: Correction) -> tuple[Correct, Correct]:
            key = key_of(candidate)
            [tested[key]] = asker.ask(f"calibrate: test of {key}", [candidate], bars)
            return calibration.unsteered.correct(labels), tested[key].answers.correct(labels)

        def level() -> float:
            entered.append(attempt_of(job))
            return entered[0].level / entered[0].parts

        steps, bias = steps_of(fitted, job.options.positions), tuple(label_bias_of(job, fitted).tolist())
        choice = choose(steps, bias, ranking.gains, outcomes, job.options, level)
        if job.column:
            choice = _also_alone(choice, job.options)
        effects = {
            key: effects_of(job, calibration.unsteered, found.answers, choice.certificate)
            for key, found in tested.items()
        }
        passed = choice.passed
        if passed is not None and effects[passed]["collapse"] and not job.options.allow_collapse:
            choice = replace(choice, refused=True)
        served = choice.served
        found = tested.get(key_of(served)) if choice.chosen == served else None
        if found is None:
            [found] = asker.ask("calibrate: what is served", [served], bars)
        read, canaries = found.predicted_error, None
        if choice.chosen is not None:
            with bars.bar("calibrate: canaries", len(WORDS)) as bar:
                canaries = measured(engine, job.prompter, served, job.loaded.dtype, bar)
    facts = {
        "calibration": _document(job, fitted, choice, ranking, entered, effects)
        | ({"predicted_error": read} if read else {})
        | ({"canaries": canaries.to_json()} if canaries else {}),
        "chosen": asdict(choice.chosen) if choice.chosen else None,
        "subject": choice.readout,
    }
    return Output(facts)


def _wanted(job: Job) -> npt.NDArray[np.int64]:
    return np.asarray([job.splits.train[i].label for i in job.ordering], dtype=np.int64)


def _also_alone(choice: Choice, options: Options) -> Choice:
    """The choice; where it is not certified, with the first candidate that passes at δ/chances."""
    if choice.certificate.certified:
        return choice
    level = options.delta / options.chances
    passed = next((one.candidate for one in choice.certificate.tested if one.n and one.p_value <= level), None)
    subject = next((one for one in choice.candidates if key_of(one) == passed), None)
    return choice if subject is None else replace(choice, alone=passed, readout=subject.readout or choice.readout)


def _document(
    job: Job,
    fitted: Output,
    choice: Choice,
    ranking: Ranking,
    entered: Sequence[Entry],
    effects: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """calibration.json. A row of a bench may be decided "alone": it is never published."""
    certificate = choice.certificate
    # Without a readout nothing is published but a certified bias, so abstaining then is for want of a probe.
    failed = "collapse" if choice.refused else "uncertified" if choice.readout else "no_probe"
    decision = "abstained" if choice.chosen is None else "alone" if choice.alone else "certified"
    return {
        "test": certificate.test,
        "epsilon": certificate.epsilon,
        "delta": job.options.delta,
        **standing(entered),
        "chances": certificate.chances,
        **({"allowed": "collapse"} if job.options.allow_collapse else {}),
        "decision": decision,
        "reason": failed if choice.chosen is None else None,
        "chosen": None if choice.chosen is None else choice.passed,
        "candidates": list(_rows(fitted, choice, ranking)),
        "tested": [
            {
                "key": result.candidate,
                "n": result.n,
                "gained": result.gained,
                "lost": result.lost,
                "p_value": result.p_value,
                "gain": result.gain,
                "lower_bound": result.lower_bound,
                **effects[result.candidate],
            }
            for result in certificate.tested
        ],
    }


def _rows(fitted: Output, choice: Choice, ranking: Ranking) -> Iterator[dict[str, Any]]:
    """One row per candidate. Its bound stands for itself alone, as if no other had been tried: for looking, not for deciding."""
    if not choice.candidates:
        return
    rows = np.stack([ranking.changes[key_of(candidate)] for candidate in choice.candidates])
    bounds = betting_lower_bounds(rows, choice.certificate.delta)
    for candidate, row, bound in zip(choice.candidates, rows, bounds, strict=True):
        facts = fitted.facts["readouts"][candidate.readout] if candidate.readout else {}
        yield {
            "key": key_of(candidate),
            "hook_point": facts.get("hook_point"),
            "direction": facts.get("direction"),
            "alpha": candidate.alpha,
            "gain": choice.gains[key_of(candidate)],
            "gained": int((row > 0).sum()),
            "lost": int((row < 0).sum()),
            "lower_bound": float(bound),
            # "mera" goes without saying, as in artifacts from before there was another.
            **({} if candidate.method == "mera" else {"method": candidate.method}),
            **({"strength": candidate.strength} if candidate.strength else {}),
            # It changed no answer among the items of highest predicted error, and was not asked about the rest.
            **({"dropped": True} if key_of(candidate) in ranking.dropped else {}),
        }
