"""The candidates' gains on the ordering subset, with no more passes than tell them apart.

Each candidate is first asked about the `FIRST` items with the highest predicted error of its own readout (at its report layer,
unsteered; of equal ones the earlier item), for these are what it is to repair. A step that changes no answer among them is dropped: it is
not asked about the others, its gain counts as 0, and calibration.json says `dropped`. The gains of all others are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from merasteer.pipeline.asking import Asker, Found
from merasteer.pipeline.gates import Flags, Known
from merasteer.pipeline.progress import Bars
from merasteer.types import Correction

__all__ = ["FIRST", "Ranking", "key_of"]

FIRST = 50


def key_of(candidate: Correction) -> str:
    """The name of a candidate in calibration.json."""
    if not candidate.moves:
        return "logit_bias"
    strength = f"/{candidate.strength:g}" * (candidate.strength != 0.0)
    return f"{candidate.readout}{strength}/{candidate.alpha:g}{'+bias' * (candidate.bias is not None)}"


class Ranking:
    """What each candidate changes. Mutated by `gains`.

    changes: key -> D of every ordering item (M,). dropped: keys of those that were not asked about all of them.
    """

    def __init__(self, asker: Asker, known: Known, labels: npt.NDArray[np.int64], bars: Bars) -> None:
        self._asker, self._known, self._labels, self._bars = asker, known, labels, bars
        self._batches = 0
        self.changes: dict[str, npt.NDArray[np.int64]] = {}
        self.dropped: set[str] = set()

    def gains(self, candidates: Sequence[Correction]) -> list[float]:
        """The accuracy gained by each on the ordering subset."""
        self._batches += 1
        title = "calibrate: candidates" if self._batches == 1 else "calibrate: with the bias"
        found = [self._asker.known(one) for one in candidates]
        wanted = [self._asker.open(one) for one in candidates]
        first = [self.first(one) for one in candidates]
        now = [flags & early for flags, early in zip(wanted, first, strict=True)]
        self._asker.fill(f"{title}, first", candidates, now, found, self._bars)
        later = [flags & ~early for flags, early in zip(wanted, first, strict=True)]
        for one, flags, early, what in zip(candidates, later, first, found, strict=True):
            if flags.any() and one.method == "mera" and not self._changes(what, early):
                self.dropped.add(key_of(one))
                flags[:] = False
        self._asker.fill(title, candidates, later, found, self._bars)
        before = self._known.unsteered.label == self._labels
        for one, what in zip(candidates, found, strict=True):
            self.changes[key_of(one)] = (what.answers.label == self._labels).astype(np.int64) - before
        return [float(self.changes[key_of(one)].mean()) for one in candidates]

    def first(self, candidate: Correction) -> Flags:
        """The items that a candidate is asked about first, (M,)."""
        chosen = np.zeros(len(self._labels), dtype=np.bool_)
        if candidate.readout is None:
            chosen[:] = True
        else:
            chosen[np.argsort(-self._known.reads[candidate.readout].error, kind="stable")[:FIRST]] = True
        return chosen

    def _changes(self, found: Found, items: Flags) -> bool:
        return bool((found.answers.label != self._known.unsteered.label)[items].any())
