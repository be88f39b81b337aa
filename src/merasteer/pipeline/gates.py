"""What the unsteered pass decides for other passes: items whose gate stays shut are answered as they were (docs/method.md section 6).

An answer that is chosen at the last prompt position is chosen in one pass over the prompt. Where a policy acts there alone and no active
layer's *unsteered* z exceeds logit α, the first active layer moves nothing, so the second one reads what it read unsteered, and so on:
D = 0, and no pass is needed. The label that a probe says follows from the unsteered pass altogether. And a step of given length at one
layer is the same whatever the α whose gate it passed. Numbers differ in their last bits between batches, so an item within the tolerance
of a canary (1e-3 in float32, in z and between the scores of two labels) is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit, log_softmax, logit

from merasteer.engine.canaries import LEAST
from merasteer.engine.choice import points
from merasteer.pipeline.batch import Answers
from merasteer.pipeline.collect import Split, answers_of, layer_rows
from merasteer.pipeline.workspace import Output
from merasteer.types import Correction, Law, ServedTask, SteeringVectors

__all__ = ["Known", "Reads", "decided_at_the_end", "reads_of"]

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
AT_THE_END = ("generation", "last")  # positions that begin with the last of the prompt


@dataclass(frozen=True, eq=False)
class Reads:
    """One readout over N items, unsteered: z (N, A) at its active layers, ascending, of which `report` is the place of its report layer.

    law: of its steps. scores (N, C): of a label probe, the class readouts; else None.
    """

    layers: tuple[int, ...]
    z: Floats
    report: int
    law: Law = "closed_form"
    scores: Floats | None = None

    @property
    def error(self) -> Floats:
        """The predicted error σ(z) at the report layer, (N,)."""
        return np.asarray(expit(self.z[:, self.report]))


def reads_of(
    output: Output,
    vectors: Mapping[str, SteeringVectors],
    split: Split,
    rows: npt.NDArray[np.int64] | None = None,
) -> dict[str, Reads]:
    """Every readout over a split, or some of its rows. A layer's activations are read once, and one layer at a time."""
    z: dict[str, list[Floats]] = {key: [] for key in vectors}
    scores: dict[str, Floats] = {}
    for point in sorted({one.hook_point for one in vectors.values()}):
        mine = {key: one for key, one in vectors.items() if one.hook_point == point}
        for layer in sorted({layer for one in mine.values() for layer in one.active_layers}):
            hidden = layer_rows(output, point, layer, split)
            hidden = (hidden if rows is None else hidden[torch.from_numpy(rows)]).double()
            for key, one in mine.items():
                if layer in one.active_layers:
                    read = hidden @ one.weight[layer].double() + one.bias[layer].double()
                    z[key].append(np.asarray(read.numpy()))
                    if one.law == "label_probe" and one.classes is not None:
                        scores[key] = np.asarray(
                            (hidden @ one.classes.weight[0].double().T + one.classes.bias[0].double()).numpy()
                        )
    return {
        key: Reads(
            one.active_layers,
            np.stack(z[key], axis=1),
            one.active_layers.index(one.report_layer),
            one.law,
            scores.get(key),
        )
        for key, one in vectors.items()
    }


def decided_at_the_end(task: ServedTask) -> bool:
    """Whether the answer is chosen at the last prompt position and nowhere behind it."""
    return not points(task.choice) if task.choice is not None else task.position == "last"


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of N items of a task before they are asked again: their unsteered answers, and what each readout reads."""

    task: ServedTask
    unsteered: Answers
    reads: Mapping[str, Reads]
    tolerance: float

    @classmethod
    def of(
        cls,
        task: ServedTask,
        dtype: str,
        collected: Output,
        vectors: Mapping[str, SteeringVectors],
        split: Split,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> Known:
        """Of a split, or some of its rows. dtype: what the model computes in."""
        found = answers_of(collected, split)
        kept = found if rows is None else Answers(found.label[rows], found.probabilities[rows])
        return cls(task, kept, reads_of(collected, vectors, split, rows), LEAST[dtype])

    def shut(self, correction: Correction) -> Flags:
        """Which items are answered as `answers` says without being asked, (N,)."""
        n = len(self.unsteered.label)
        if not correction.moves and correction.bias is None:
            return np.ones(n, dtype=np.bool_)
        if not decided_at_the_end(self.task):
            return np.zeros(n, dtype=np.bool_)
        return (self._gate(correction) | self._said(correction)) & self._settled(correction)

    def surely_open(self, correction: Correction) -> Flags:
        """Where the gate of the one layer that moves is open beyond doubt, (N,); nowhere for a correction whose step depends on α."""
        read = self._one_gate(correction)
        if read is None or read.law not in ("gated", "proportional"):
            return np.zeros(len(self.unsteered.label), dtype=np.bool_)
        return self._passed(read, correction)

    def _said(self, correction: Correction) -> Flags:
        """Where a label probe says its label beyond doubt."""
        read = self._one_gate(correction)
        if read is None or read.scores is None:
            return np.zeros(len(self.unsteered.label), dtype=np.bool_)
        best = np.sort(read.scores, axis=1)
        return np.asarray((best[:, -1] - best[:, -2] > self.tolerance) & self._passed(read, correction))

    def _one_gate(self, correction: Correction) -> Reads | None:
        """What is read where a correction has one gate, at the end of the prompt."""
        read = None if correction.readout is None else self.reads[correction.readout]
        single = read is not None and len(read.layers) == 1 and correction.positions in AT_THE_END
        return read if single and correction.alpha is not None and decided_at_the_end(self.task) else None

    def _passed(self, read: Reads, correction: Correction) -> Flags:
        return np.asarray(read.z[:, 0] > logit(correction.alpha or 0.0) + self.tolerance)

    def _gate(self, correction: Correction) -> Flags:
        """Where no active layer moves anything."""
        n = len(self.unsteered.label)
        if not correction.moves or correction.readout is None:
            return np.ones(n, dtype=np.bool_)
        read = self.reads[correction.readout]
        always = correction.strength != 0.0 and read.law == "closed_form"
        if correction.positions not in AT_THE_END or always or correction.alpha is None:
            return np.zeros(n, dtype=np.bool_)
        moved = [i for i, layer in enumerate(read.layers) if correction.layers is None or layer in correction.layers]
        return np.asarray((read.z[:, moved] < logit(correction.alpha) - self.tolerance).all(axis=1))

    def _settled(self, correction: Correction) -> Flags:
        """Where the bias, if there is one, leaves no doubt. The scores of free answers are not all known."""
        n = len(self.unsteered.label)
        if correction.bias is None:
            return np.ones(n, dtype=np.bool_)
        if self.task.choice is None:
            return np.zeros(n, dtype=np.bool_)
        best = np.sort(self._scores(correction.bias), axis=1)
        return np.asarray(best[:, -1] - best[:, -2] > self.tolerance)

    def _scores(self, bias: Sequence[float]) -> Floats:
        return np.asarray(self.unsteered.scores + np.asarray(bias, dtype=np.float64))

    def answers(self, correction: Correction) -> Answers:
        """The answers where they are known; they mean nothing for other items."""
        if correction.bias is None or self.task.choice is None:
            label = self.unsteered.label.copy()
            if (said := self._said(correction)).any() and correction.readout is not None:
                label[said] = np.asarray(self.reads[correction.readout].scores)[said].argmax(1)
            return Answers(label, self.unsteered.probabilities.copy())
        scores = self._scores(correction.bias)
        return Answers(scores.argmax(1).astype(np.int64), np.exp(log_softmax(scores, axis=1)))

    def error(self, correction: Correction) -> Floats:
        """The predicted error before the step where the answer is known, (N,); NaN where nothing is read."""
        if correction.readout is None:
            return np.full(len(self.unsteered.label), np.nan)
        return self.reads[correction.readout].error.copy()
