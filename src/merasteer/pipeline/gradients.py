"""Gradients of the error of items that the model gets wrong: which way an answer is moved, by layer (docs/method.md, steps that act).

facts: items: indices into the training split, ascending; pooled, by_class: which of them each mean is taken over
tensors: gradient (M, L, d) float32: ∇ of −log q_y at the answer position, with respect to the activations of one hook point

They follow from the unsteered model and the fitting items alone, so all rows of a bench share them. Like activations they go to the disk
part by part, so that a run that was killed goes on behind the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from merasteer.engine import answer_gradients
from merasteer.errors import NonFinite
from merasteer.pipeline.collect import answers_of, layer_rows
from merasteer.pipeline.draft import discard, draft_of
from merasteer.pipeline.job import Job
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.stored import Layout
from merasteer.pipeline.workspace import Output
from merasteer.types import HookPoint, LabelChoice, ServedTask

__all__ = ["Gradients", "gradients"]

ITEMS = 120  # at most, of the items that are wrong or nearly so
PER_CLASS = 40
FEWEST = 24  # where fewer are wrong, the nearest to it beside them
PART = 16

Floats = npt.NDArray[np.float64]


class Gradients:
    """Mean gradients and the activations' size at a hook point, as the fit reads them: one layer at a time."""

    def __init__(self, job: Job, collected: Output, point: HookPoint, found: Output) -> None:
        self._job, self._collected, self._point, self._found = job, collected, point, found

    @property
    def wrong(self) -> list[int]:
        """The items that are wrong or nearly so, as indices into the training split, the wrongest first."""
        return [self._found.facts["items"][row] for row in self._found.facts["pooled"]]

    def of_wrong(self, layer: int) -> torch.Tensor:
        """Their gradients (n, d), in this order."""
        return self._rows(layer, self._found.facts["pooled"])

    def pooled(self, layer: int) -> torch.Tensor:
        """The mean of these, (d,)."""
        return self.of_wrong(layer).mean(0)

    def by_class(self, layer: int) -> torch.Tensor:
        """The means over those of each class, (C, d); zeros of a class that has none."""
        groups = [self._rows(layer, rows) for rows in self._found.facts["by_class"]]
        return torch.stack([rows.sum(0) / max(len(rows), 1) for rows in groups])

    def size(self, layer: int) -> float:
        """Mean ‖h‖ over the fitting items."""
        rows = layer_rows(self._collected, self._point, layer)[torch.from_numpy(self._job.fitting)]
        return float(rows.double().norm(dim=-1).mean())

    def _rows(self, layer: int, rows: Sequence[int]) -> torch.Tensor:
        stored = self._found.stored.get("gradient")
        found = self._found.tensors["gradient"][:, layer] if stored is None else stored.layer(layer)
        return found[list(rows)].double()


def _choice(task: ServedTask) -> LabelChoice:
    """What the gradient is taken of: the labels that are chosen among, or a free answer's tokens."""
    return task.choice or LabelChoice(task.variants)


def gradients(job: Job, collected: Output, point: HookPoint, bars: Bars) -> Gradients:
    """Taken from the work folder where they are. The engine must not run: the model itself is asked."""
    name = f"gradients-{point}-{job.options.seed}-{len(job.ordering)}"
    found = job.ground.load(name)
    if found is None:
        found = _measure(job, collected, point, name, bars)
    discard(job.ground.folder, name)
    return Gradients(job, collected, point, found)


def _measure(job: Job, collected: Output, point: HookPoint, name: str, bars: Bars) -> Output:
    labels = [example.label for example in job.splits.train]
    chosen = _chosen(job, answers_of(collected).probabilities, labels)
    items: list[int] = chosen["items"]
    asked = job.prompts([job.splits.train[i] for i in items])
    shape = (job.loaded.layers, len(items), job.loaded.width)
    layout = Layout({"gradient": ("F32", shape)}, room=4096 + 64 * len(items))
    with draft_of(job.ground.folder, name, layout) as draft, bars.bar("gradients", len(items)) as bar:
        for number, start in enumerate(range(0, len(items), PART), start=1):
            rows = range(start, min(start + PART, len(items)))
            if number <= draft.done:
                bar.skip(len(rows))
                continue
            try:
                found = answer_gradients(
                    job.loaded,
                    _choice(job.served),
                    [asked.tokens[i] for i in rows],
                    [labels[items[i]] for i in rows],
                    (point,),
                )
            except NonFinite as error:
                raise NonFinite(f"{asked.where[start]} to {asked.where[rows[-1]]}: {error}") from None
            draft.write("gradient", start, found[point].transpose(0, 1))
            draft.finish(number)
            bar.advance(len(rows))
        draft.close(chosen, job.ground.path(name))
    found_again = job.ground.load(name)
    if found_again is None:
        raise RuntimeError("the file that was just written cannot be read")
    return found_again


def _chosen(job: Job, probabilities: Floats, labels: Sequence[int]) -> dict[str, Any]:
    """The fitting items of largest error: all in one, and of each class; of equal errors the earlier item."""
    error = 1.0 - probabilities[np.arange(len(labels)), labels]
    ranked = [int(i) for i in job.fitting[np.argsort(-error[job.fitting], kind="stable")]]
    wrong = sum(error[i] > 0.5 for i in ranked)
    pooled = ranked[: min(ITEMS, max(wrong, FEWEST))]
    by_class = [[i for i in ranked if labels[i] == c][:PER_CLASS] for c in range(len(job.served.labels))]
    items = sorted({*pooled, *(i for rows in by_class for i in rows)})
    place = {item: row for row, item in enumerate(items)}
    return {
        "items": items,
        "pooled": [place[i] for i in pooled],
        "by_class": [[place[i] for i in rows] for rows in by_class],
    }
