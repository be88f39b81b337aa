"""Items asked under corrections, as few passes as will do, and none of them twice: what is finished is in the stage's journal.

Items are asked in groups that fill a pass, all corrections of a group together, so that they share its prompts. Each group is batched by
itself, so that a run that was killed goes on behind the last one with the same numbers. Corrections that differ in an α whose gate an item
passes anyway, and whose step does not depend on it, ask about it once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from merasteer.engine import Engine
from merasteer.pipeline.batch import BATCH_TOKENS, MAX_REQUESTS, Answers, Prompts, generations, parts
from merasteer.pipeline.draft import Journal
from merasteer.pipeline.gates import Known
from merasteer.pipeline.progress import Bar, Bars
from merasteer.types import Correction, Generation

__all__ = ["Asker", "Found"]

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Found:
    """N items under one correction: their answers, and the predicted error before the step (N,), NaN where nothing is read."""

    answers: Answers
    error: npt.NDArray[np.float64]

    @property
    def predicted_error(self) -> dict[str, float | int] | None:
        """{"mean", "n"} over the items that are read; None where none is."""
        read = self.error[~np.isnan(self.error)]
        return {"mean": fmean(read.tolist()), "n": len(read)} if len(read) else None


class Asker:
    """One split's items on an engine that holds the vectors. Only the items whose answer does not follow are asked."""

    def __init__(self, engine: Engine, prompts: Prompts, known: Known, journal: Journal) -> None:
        self._engine, self._prompts, self._known, self._journal = engine, prompts, known, journal

    def known(self, correction: Correction) -> Found:
        """What holds of the items that need not be asked."""
        return Found(self._known.answers(correction), self._known.error(correction))

    def open(self, correction: Correction) -> Flags:
        """The items that have to be asked, (N,)."""
        return ~self._known.shut(correction)

    def ask(self, title: str, corrections: Sequence[Correction], bars: Bars) -> list[Found]:
        """All items under each of the corrections. title: of the bar, and the name in the journal."""
        found = [self.known(one) for one in corrections]
        self.fill(title, corrections, [self.open(one) for one in corrections], found, bars)
        return found

    def fill(
        self, title: str, corrections: Sequence[Correction], wanted: Sequence[Flags], found: Sequence[Found], bars: Bars
    ) -> None:
        """Asks the wanted items (N,) of each correction; writes what they answered to `found`."""
        total = sum(int(flags.sum()) for flags in wanted)
        if not total:
            return
        # Only of those that somebody asks: a group of fewer prompts than fill a pass would compute each several times.
        some = [i for i in range(len(self._prompts.tokens)) if any(flags[i] for flags in wanted)]
        alike = self._alike(corrections)
        with bars.bar(title, total) as bar:
            for number, rows in enumerate(parts(self._prompts.some(some), BATCH_TOKENS, MAX_REQUESTS)):
                pairs = [(k, some[i]) for k, flags in enumerate(wanted) for i in rows if flags[some[i]]]
                asked = [(int(alike[k, i]), i) for k, i in pairs]
                self._group(f"{title} {number}", corrections, pairs, asked, found, bar)

    def _alike(self, corrections: Sequence[Correction]) -> npt.NDArray[np.int64]:
        """(K, N): the first correction that gives an item the same answer as the k-th beyond doubt."""
        first = np.repeat(np.arange(len(corrections))[:, None], len(self._prompts.tokens), axis=1)
        leaders: dict[Correction, list[int]] = {}
        for k, correction in enumerate(corrections):
            mine = self._known.surely_open(correction)
            for other in leaders.setdefault(replace(correction, alpha=None), []):
                shared = mine & self._known.surely_open(corrections[other]) & (first[k] == k)
                first[k, shared] = first[other, shared]
            leaders[replace(correction, alpha=None)].append(k)
        return first

    def _group(
        self,
        name: str,
        corrections: Sequence[Correction],
        pairs: Sequence[tuple[int, int]],
        asked: Sequence[tuple[int, int]],
        found: Sequence[Found],
        bar: Bar,
    ) -> None:
        """Pairs of correction and item; asked: those that give the same answers."""
        once = list(dict.fromkeys(asked))
        name = f"{name} {_content(corrections, once)}"
        values = self._journal.get(name)
        if values is None:
            requests = [self._prompts.request(i, corrections[k]) for k, i in once]
            where = [self._prompts.where[i] for _, i in once] if self._prompts.where else ()
            values = [_plain(one) for one in generations(self._engine, requests, bar, where, afresh=True)]
            self._journal.add(name, values)
            bar.skip(len(pairs) - len(once))
        else:
            bar.skip(len(pairs))
        got = dict(zip(once, values, strict=True))
        for (k, i), pair in zip(pairs, asked, strict=True):
            label, probabilities, error = got[pair]
            found[k].answers.label[i], found[k].answers.probabilities[i] = label, probabilities
            found[k].error[i] = np.nan if error is None else error


def _content(corrections: Sequence[Correction], pairs: Sequence[tuple[int, int]]) -> str:
    """Which items are asked, and how: another code version may group them otherwise."""
    return hashlib.sha256(repr([(corrections[k], i) for k, i in pairs]).encode()).hexdigest()[:16]


def _plain(generation: Generation) -> list[Any]:
    """[label, probabilities, predicted error] as JSON."""
    answer, read = generation.answer, generation.predicted_error
    if answer is None:
        raise RuntimeError("the engine answered without class probabilities")
    return [
        -1 if answer.label is None else answer.label,
        list(answer.probabilities),
        None if read is None else read.before,
    ]
