"""Stage 2: readouts, steps and thresholds for every hook point and direction, from the training split alone.

facts: readouts: key ("residual/covariance", "residual/gradient@12") -> hook_point, direction, report_layer, scores, alphas, strengths
       probes: held-out scores of every hook point, readout (error, logistic or contrastive) and layer, idle ones too
tensors: <key>.weight, .bias, .step, and .class_weight, .class_bias, .class_step where it has them; contrast.<hook point> (L, d);
         label_bias.fitting, label_bias.all (C,), fit to the items outside the ordering subset and to all
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from merasteer.method.scores import fit_logit_bias
from merasteer.pipeline.batch import Answers
from merasteer.pipeline.beside import beside, label_probe_at
from merasteer.pipeline.collect import answers_of, layer_rows
from merasteer.pipeline.gates import decided_at_the_end
from merasteer.pipeline.gradients import gradients
from merasteer.pipeline.job import Job
from merasteer.pipeline.layers import Kind, LayerFit, Reading, beside_one_another, fit_one
from merasteer.pipeline.options import Grid, Layers
from merasteer.pipeline.progress import Bar, Bars
from merasteer.pipeline.steps import ACTING, LOGIT_RANGE, Readout, acting_readouts, alphas_of, label_probe_readout
from merasteer.pipeline.workspace import Output
from merasteer.probes import Probes, Selection, error_target, errors, probe_rows, steering_vectors
from merasteer.probes.sae import load_sae, sae_scores
from merasteer.types import BY_CLASS, LAWS, ClassReadouts, Direction, HookPoint, SteeringVectors

__all__ = ["fit", "label_bias_of", "thresholds", "vectors_of"]

Floats = npt.NDArray[np.float64]
POINTS = 10  # thresholds per readout
PAPER_GRID = tuple(np.round(np.linspace(0.05, 0.95, POINTS), 2).tolist())
FLAT = 1e-6  # standard deviation of the logit target below which there is nothing to fit


def fit(job: Job, collected: Output, bars: Bars, workers: int | None = None) -> Output:
    """Fits on the training items outside the ordering subset. No readout at all is an answer, not an error.

    workers: layers that are fit at once (default: one per core, as far as memory allows); the numbers do not depend on it.
    """
    labels = np.array([example.label for example in job.splits.train])
    unsteered = answers_of(collected)
    target = error_target(errors(unsteered.probabilities, labels.tolist(), (unsteered.label >= 0).tolist()))
    tensors = {f"label_bias.{name}": _label_bias(job, unsteered, labels, name) for name in ("fitting", "all")}
    facts: dict[str, Any] = {"readouts": {}, "probes": []}
    y, wrong = target[job.fitting], (~unsteered.correct(labels.tolist()))[job.fitting].astype(np.float64)
    # One class alone has an error that varies with the model's confidence, but nothing to tell a mistake from: no probe.
    if float(y.std()) < FLAT or len(set(labels[job.fitting].tolist())) < 2:
        return Output(facts, tensors)
    kinds = Kind.of(job.options.family, (*job.options.directions, *_probed(job)), y, wrong, job.options.top_k)
    gates: dict[HookPoint, tuple[list[Reading], Selection]] = {}
    with bars.bar("fit", len(job.options.hook_points) * job.loaded.layers) as bar:
        for point in job.options.hook_points:
            layers = _layers(job, collected, point, kinds, (y, wrong), bar, workers)
            tensors[f"contrast.{point}"] = torch.stack([layer.contrast for layer in layers])
            for kind in kinds:
                readings = [layer.readings[kind.name] for layer in layers]
                selection = Selection(tuple(reading.score for reading in readings))
                facts["probes"] += probe_rows(selection, point, kind.name)
                for direction, vectors in _directions(job, point, kind, readings, selection).items():
                    held_out = np.stack([readings[layer].z for layer in vectors.active_layers], axis=1)
                    alphas = thresholds(held_out.ravel(), job.options.grid)
                    readout = Readout(f"{point}/{direction}", vectors, direction, alphas)
                    _keep(readout, selection, facts, tensors)
                if kind.name != "contrastive":
                    gates[point] = (readings, selection)
        facts["probes"] += _autoencoders(job, collected, y, wrong)
    for readout in _that_act(job, collected, gates, bars):
        _keep(readout, gates[readout.vectors.hook_point][1], facts, tensors)
    return Output(facts, tensors)


def _keep(readout: Readout, selection: Selection, facts: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Adds a readout to what the stage leaves. Mutates facts and tensors."""
    key, vectors = readout.key, readout.vectors
    tensors |= {f"{key}.{name}": getattr(vectors, name) for name in ("weight", "bias", "step")}
    if vectors.classes is not None:
        tensors |= {f"{key}.class_{name}": getattr(vectors.classes, name) for name in ("weight", "bias", "step")}
    facts["readouts"][key] = {
        "hook_point": vectors.hook_point,
        "direction": readout.direction,
        "report_layer": vectors.report_layer,
        "scores": selection.as_dicts(),
        "alphas": readout.alphas,
        "strengths": list(readout.strengths),
    }


def _probed(job: Job) -> tuple[Direction, ...]:
    """The label probe, where it may be chosen: an answer is chosen among labels."""
    return ("label_probe",) if job.options.probed and job.served.choose == "labels" else ()


def _that_act(
    job: Job, collected: Output, gates: Mapping[HookPoint, tuple[Sequence[Reading], Selection]], bars: Bars
) -> Iterator[Readout]:
    """The readouts behind the gates of the error probes, where the answer is chosen at the end of the prompt and nowhere behind it."""
    acting = {point: _acting(selection, job.options.layers) for point, (_, selection) in gates.items()}
    if not any(acting.values()) or not decided_at_the_end(job.served):
        return
    names = [name for name in job.options.directions if name in ACTING]
    at = partial(label_probe_at, job, collected)
    if names:
        point = next(point for point in gates if acting[point])  # one hook point: the first that reads the error
        found = gradients(job, collected, point, bars)
        yield from acting_readouts(point, names, gates[point][0], acting[point], found, at)
    if _probed(job):
        best = beside(job, collected).label_probe
        point, layer = min(
            ((point, layer) for point, layers in acting.items() for layer in layers),
            key=lambda place: (place[0] != best.hook_point, abs(place[1] - best.layer), place[1]),
        )
        yield label_probe_readout(
            gates[point][0], best if layer == best.layer and point == best.hook_point else at(point, layer)
        )


def _layers(
    job: Job,
    collected: Output,
    point: HookPoint,
    kinds: Sequence[Kind],
    target: tuple[Floats, Floats],
    bar: Bar,
    workers: int | None,
) -> list[LayerFit]:
    """Every layer of one hook point, each read from the disk when its turn comes. target: logit errors, and wrong (0 or 1)."""
    fitting, ordering = torch.from_numpy(job.fitting), torch.from_numpy(job.ordering)

    def one(layer: int) -> LayerFit:
        rows = layer_rows(collected, point, layer)
        return fit_one(layer, rows[fitting], rows[ordering], kinds, *target, job.options.top_k, job.options.seed)

    found = []
    for layer in beside_one_another(one, job.loaded.layers, len(job.splits.train) * job.loaded.width, workers):
        found.append(layer)
        bar.advance()
    return found


def _directions(
    job: Job, point: HookPoint, kind: Kind, readings: Sequence[Reading], selection: Selection
) -> dict[Direction, SteeringVectors]:
    """Vectors for each direction of one kind of readout that leaves a layer to act."""
    acting = _acting(selection, job.options.layers)
    found: dict[Direction, SteeringVectors] = {}
    if not acting:
        return found
    probes = Probes(
        torch.stack([reading.weight for reading in readings]), torch.stack([reading.bias for reading in readings])
    )
    nothing = torch.zeros(job.loaded.width, dtype=torch.float64)
    for name in kind.directions:
        u = torch.stack([reading.directions.get(name, nothing) for reading in readings])
        vectors = steering_vectors(point, probes, u, acting, acting[0])
        if vectors is not None:
            found[name] = vectors
    return found


def _autoencoders(job: Job, collected: Output, y: Floats, wrong: Floats) -> list[dict[str, Any]]:
    """Scores of probes on sparse-autoencoder encodings, at the first hook point, by layer."""
    point, options, found = job.options.hook_points[0], job.options, []
    for layer, folder in sorted(options.sae):
        rows = layer_rows(collected, point, layer)[torch.from_numpy(job.fitting)]
        saes = {0: load_sae(folder)}
        scored = sae_scores(rows[:, None], y, wrong, saes, point, family=options.family, seed=options.seed)
        found += [{**row, "layer": layer} for row in scored]
    return found


def vectors_of(fitted: Output) -> dict[str, SteeringVectors]:
    """Key -> steering vectors, as the engine takes them."""

    def held(key: str, prefix: str = "") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weight, bias, step = (fitted.tensors[f"{key}.{prefix}{name}"] for name in ("weight", "bias", "step"))
        return weight, bias, step

    def vectors(key: str, facts: dict[str, Any]) -> SteeringVectors:
        weight, bias, step = held(key)
        direction: Direction = facts["direction"]
        classes = ClassReadouts(*held(key, "class_")) if direction in BY_CLASS else None
        return SteeringVectors(facts["hook_point"], weight, bias, step, facts["report_layer"], LAWS[direction], classes)

    return {key: vectors(key, facts) for key, facts in fitted.facts["readouts"].items()}


def label_bias_of(job: Job, fitted: Output) -> torch.Tensor:
    """The logit bias (C,) that the artifact holds: one, fit to the unsteered answers, for every candidate that has a bias.

    Where it is a candidate the ordering subset is left out, since it is ranked there; else nothing is held back from it.
    """
    return fitted.tensors["label_bias.fitting" if job.options.biased else "label_bias.all"]


def _label_bias(job: Job, unsteered: Answers, labels: npt.NDArray[np.int64], items: str) -> torch.Tensor:
    """One class alone teaches nothing but to say it always: no bias."""
    if len(set(labels.tolist())) < 2:
        return torch.zeros(len(job.served.labels))
    used = job.fitting if items == "fitting" else np.arange(len(labels))
    return torch.from_numpy(fit_logit_bias(unsteered.scores[used], labels[used])).float()


def thresholds(predicted: Floats, grid: Grid = "logit") -> list[float]:
    """Up to ten α, ascending, to six digits. predicted: logit-errors of the ordering subset, pooled over active layers.

    logit: evenly spaced in logit from q01 − (q99 − q01), where everything is steered far, to q90, where one item in ten is
    steered a little. paper: evenly spaced in (0, 1).
    """
    if grid == "paper":
        return list(PAPER_GRID)
    low, middle, high = np.quantile(predicted, [0.01, 0.9, 0.99])
    first, last = np.clip([low - (high - low), middle], *LOGIT_RANGE).tolist()
    return alphas_of(np.linspace(first, last, POINTS))


def _acting(selection: Selection, layers: Layers) -> tuple[int, ...]:
    """The layers that act, best first: the report layer is the first. Empty where none of those asked for reads the error."""
    if isinstance(layers, tuple):
        return tuple(layer for layer in selection.ranked if layer in layers)
    if layers == "all":
        return selection.ranked
    one = {"best": selection.report_layer, "median": selection.median, "worst": selection.worst}[layers]
    return () if one is None else (one,)
