"""The candidates' gains on the ordering subset, with no more passes than tell them apart.

Each candidate is first asked about the `FIRST` items with the highest predicted error of its own readout (at its report layer,
unsteered; of equal ones the earlier item), for these are what it is to repair. A step that changes no answer among them, or is not among
the `KEPT` that gain most there (of equal ones the earlier), is dropped: it is not asked about the others, its gain counts as 0, and
calibration.json says `dropped`. The gains of all others are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from merasteer.pipeline.asking import Asker, Found
from merasteer.pipeline.gates import Flags, Known
from merasteer.pipeline.progress import Bars
from merasteer.types import Correction

__all__ = ["FIRST", "KEPT", "Ranking", "key_of"]

FIRST = 50
KEPT = 40
TITLES = {"mera": "candidates", "label_probe": "the label probe"}


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
        self.changes: dict[str, npt.NDArray[np.int64]] = {}
        self.dropped: set[str] = set()

    def gains(self, candidates: Sequence[Correction]) -> list[float]:
        """The accuracy gained by each on the ordering subset. candidates: one or more of one kind: steps, label probes, or what has a
        bias.
        """
        title = f"calibrate: {TITLES.get(candidates[0].method, 'with the bias')}"
        found = [self._asker.known(one) for one in candidates]
        wanted = [self._asker.open(one) for one in candidates]
        first = [self.first(one) for one in candidates]
        now = [flags & early for flags, early in zip(wanted, first, strict=True)]
        self._asker.fill(f"{title}, first", candidates, now, found, self._bars)
        later = [flags & ~early for flags, early in zip(wanted, first, strict=True)]
        waiting = [k for k, one in enumerate(candidates) if later[k].any() and one.method == "mera"]
        promising = [k for k in waiting if self._changes(found[k], first[k])]
        promising.sort(key=lambda k: self._gain(found[k], first[k]), reverse=True)
        for k in set(waiting) - set(promising[:KEPT]):
            self.dropped.add(key_of(candidates[k]))
            later[k][:] = False
        self._asker.fill(title, candidates, later, found, self._bars)
        before = self._known.unsteered.label == self._labels
        for one, what in zip(candidates, found, strict=True):
            changed = (what.answers.label == self._labels).astype(np.int64) - before
            self.changes[key_of(one)] = changed * (key_of(one) not in self.dropped)
        return [float(self.changes[key_of(one)].mean()) for one in candidates]

    def first(self, candidate: Correction) -> Flags:
        """The items that a candidate is asked about first, (M,)."""
        chosen = np.zeros(len(self._labels), dtype=np.bool_)
        if candidate.readout is None:
            chosen[:] = True
        else:
            chosen[np.argsort(-self._known.reads[candidate.readout].error, kind="stable")[:FIRST]] = True
        return chosen

    def _gain(self, found: Found, items: Flags) -> int:
        """Right answers more than before."""
        now, before = (answers.label == self._labels for answers in (found.answers, self._known.unsteered))
        return int(now[items].sum()) - int(before[items].sum())

    def _changes(self, found: Found, items: Flags) -> bool:
        return bool((found.answers.label != self._known.unsteered.label)[items].any())
