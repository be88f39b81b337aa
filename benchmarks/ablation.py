"""What a step along the gradient owes to its layer, length, gate, items and direction, on one pair of model and task: a table in Markdown.

    python benchmarks/ablation.py --model MODEL --task FILE --out DIR

DIR is that of a study (`reproduce_real.sh`): what was collected and fit there is used. All rows are measured on the test split; nothing
of it is certified, and nothing is chosen by it. A random direction has the gradient's length at every layer, behind the same gate.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import binomtest

from merasteer.pipeline import Bars, Job, Options, prepare
from merasteer.pipeline.asking import Asker
from merasteer.pipeline.batch import running
from merasteer.pipeline.collect import answers_of
from merasteer.pipeline.draft import journal_of
from merasteer.pipeline.fit import vectors_of
from merasteer.pipeline.gates import Known, reads_of
from merasteer.pipeline.gradients import gradients
from merasteer.pipeline.run import stages
from merasteer.pipeline.steps import gate_levels
from merasteer.pipeline.workspace import Output
from merasteer.types import Correction, HookPoint, SteeringVectors

RANDOM = 10
KAPPA, SHARE = 0.6, 0.15  # where they are not what is varied
SHARES = (0.05, 0.1, 0.15, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Variant:
    """One row: what is varied, its value, and what is done."""

    about: str
    value: str
    vectors: SteeringVectors
    share: float = SHARE
    kappa: float = KAPPA


class Bench:
    """What was collected and fit, and variants of its steps. point: the hook point of the steps."""

    def __init__(self, job: Job, collected: Output, fitted: Output) -> None:
        self.job, self.collected = job, collected
        held = vectors_of(fitted)
        self.gate = next(
            one for key, one in held.items() if key.endswith("/euclidean")
        )  # its readouts are the error probes
        self.point: HookPoint = self.gate.hook_point
        self.layers = self.gate.active_layers
        self.gradients = gradients(job, collected, self.point, Bars())
        self.contrast = fitted.tensors[f"contrast.{self.point}"]
        self.best = self.gate.report_layer

    def at(self, steps: dict[int, torch.Tensor]) -> SteeringVectors:
        """Vectors that go along a direction (d,) at each layer, at the activations' mean size over √L."""
        weight, step = torch.zeros_like(self.gate.weight), torch.zeros_like(self.gate.step)
        for layer, one in steps.items():
            weight[layer] = self.gate.weight[layer]
            step[layer] = (one / one.norm() * self.gradients.size(layer) / len(steps) ** 0.5).float()
        report = min(steps, key=lambda layer: abs(layer - self.best))
        return SteeringVectors(self.point, weight, self.gate.bias, step, report, "gated")

    def certainty(self) -> torch.Tensor:
        """q_y of the items that are wrong or nearly so, (n,): ∇E = q_y · ∇(−log q_y)."""
        items = self.gradients.wrong
        labels = [self.job.splits.train[i].label for i in items]
        return torch.from_numpy(answers_of(self.collected).probabilities[items, labels])

    def variants(self) -> Iterator[Variant]:
        """All rows."""
        best, everywhere = self.best, {layer: self.gradients.pooled(layer) for layer in self.layers}
        for layer in self.layers:
            yield Variant("layer", str(layer), self.at({layer: everywhere[layer]}))
        yield Variant("layer", "all", self.at(everywhere))
        one = self.at({best: everywhere[best]})
        for kappa in (0.1, 0.2, 0.3, 0.6, 1.0, 2.0):
            yield Variant("κ", f"{kappa:g}", one, kappa=kappa)
        for share in SHARES:
            yield Variant("gate open on", f"{share:.0%}", one, share=share)
        wrong = self.gradients.of_wrong(best)
        for most in (4, 8, 16, 32, 64):
            yield Variant("gradient items", str(most), self.at({best: wrong[:most].mean(0)}))
        yield Variant("gradient of", "E", self.at({best: (self.certainty()[:, None] * wrong).mean(0)}))
        yield Variant("direction", "gradient", one)
        yield Variant("direction", "mean difference", self.at({best: self.contrast[best].double()}))
        yield Variant("direction", "error probe", self.at({best: self.gate.weight[best].double()}))
        for seed in range(RANDOM):
            drawn = torch.randn(self.gate.weight.shape[1], generator=torch.Generator().manual_seed(seed)).double()
            yield Variant("direction", f"random {seed}", self.at({best: drawn}))

    def measured(self) -> str:
        """The table."""
        rows, splits = list(self.variants()), self.job.splits
        vectors = {str(i): row.vectors for i, row in enumerate(rows)}
        reads = reads_of(self.collected, vectors, "train", self.job.ordering)
        asked = [
            Correction("mera", str(i), self._alpha(reads[str(i)].z.ravel(), row.share), row.kappa)
            for i, row in enumerate(rows)
        ]
        prompts, labels = self.job.prompts(splits.test), [example.label for example in splits.test]
        known = Known.of(self.job.served, self.job.loaded.dtype, self.collected, vectors, "test")
        with (
            running(self.job.loaded, prompts.longest, vectors=vectors) as engine,
            journal_of(self.job.readouts.folder, "ablation") as journal,
        ):
            found = Asker(engine, prompts, known, journal).ask("ablation", asked, Bars())
        right = [one.answers.correct(labels) for one in found]
        before = answers_of(self.collected, "test").correct(labels)
        gradient = right[next(i for i, row in enumerate(rows) if row.value == "gradient")]
        lines = [
            f"{self.job.loaded.id}, {self.job.served.name}: {len(labels)} test rows, unsteered {before.mean():.3f}; "
            f"hook point {self.point}, layer {self.best} where it is not varied",
            "",
            "| varied | value | accuracy | repaired / broken | against the gradient, p |",
            "|---|---|---|---|---|",
        ]
        for row, now in zip(rows, right, strict=True):
            won, lost = int((gradient & ~now).sum()), int((now & ~gradient).sum())
            p = binomtest(won, won + lost, alternative="greater").pvalue if won + lost else 1.0
            told = f"{p:.2g}" if row.about == "direction" and row.value != "gradient" else ""
            changes = f"{int((now & ~before).sum())} / {int((before & ~now).sum())}"
            lines.append(f"| {row.about} | {row.value} | {now.mean():.3f} | {changes} | {told} |")
        return "\n".join(lines)

    @staticmethod
    def _alpha(z: np.ndarray, share: float) -> float:
        return gate_levels(z, (share,))[-1] if share < 1.0 else gate_levels(z, ())[0]


def main() -> None:
    """Prints the table and leaves it as DIR/ablation.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("--model", "--task", "--out"):
        parser.add_argument(name, type=Path, required=True)
    given = parser.parse_args()
    job = prepare(given.model, given.task, given.out, Options())
    done = stages(job, "fit")
    table = Bench(job, done["collect"], done["fit"]).measured()
    (given.out / "ablation.md").write_text(table + "\n", encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
