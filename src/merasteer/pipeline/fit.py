"""Stage 2: readouts, steps and thresholds for every hook point and direction, from the training split alone.

facts: readouts: key ("residual/covariance") -> hook_point, direction, report_layer, scores, alphas
       probes: held-out scores of every hook point, readout (error, logistic or contrastive) and layer, idle ones too
tensors: <key>.weight, .bias, .step; contrast.<hook point> (L, d); label_bias (C,)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from merasteer.method.scores import fit_logit_bias
from merasteer.pipeline.batch import Answers
from merasteer.pipeline.collect import activations_of, answers_of
from merasteer.pipeline.job import Job
from merasteer.pipeline.options import Grid, Layers
from merasteer.pipeline.progress import Bar, Bars
from merasteer.pipeline.workspace import Output
from merasteer.probes import (
    Probes,
    Selection,
    contrastive_probes,
    directions,
    error_target,
    errors,
    fit_contrast,
    fit_layer,
    fit_probes,
    probe_rows,
    select,
)
from merasteer.probes.directions import contrast
from merasteer.probes.fitting import Fitter, layer_of
from merasteer.probes.sae import load_sae, sae_scores
from merasteer.probes.selection import Score
from merasteer.types import CONTRASTIVE, Direction, HookPoint, SteeringVectors

__all__ = ["fit", "label_bias_of", "thresholds", "vectors_of"]

Floats = npt.NDArray[np.float64]
POINTS = 10  # thresholds per readout
PAPER_GRID = tuple(np.round(np.linspace(0.05, 0.95, POINTS), 2).tolist())
LOGIT_RANGE = (-15.0, 9.0)  # the targets lie in ±4.6: thresholds beyond steer everything, or nothing
FLAT = 1e-6  # standard deviation of the logit target below which there is nothing to fit


def fit(job: Job, collected: Output, bars: Bars) -> Output:
    """Fits on the training items outside the ordering subset. No readout at all is an answer, not an error."""
    labels = np.array([example.label for example in job.splits.train])
    unsteered = answers_of(collected)
    target = error_target(errors(unsteered.probabilities, labels.tolist(), (unsteered.label >= 0).tolist()))
    tensors = {"label_bias": label_bias_of(job, unsteered, labels)}
    facts: dict[str, Any] = {"readouts": {}, "probes": []}
    y, wrong = target[job.fitting], (~unsteered.correct(labels.tolist()))[job.fitting].astype(np.float64)
    # One class alone has an error that varies with the model's confidence, but nothing to tell a mistake from: no probe.
    if float(y.std()) < FLAT or len(set(labels[job.fitting].tolist())) < 2:
        return Output(facts, tensors)
    work = len(job.options.hook_points) * job.loaded.layers * len(_readouts(job))
    with bars.bar("fit", work) as bar:
        for point in job.options.hook_points:
            rows = activations_of(collected, point)
            activations, held_out = rows[job.fitting], rows[job.ordering]
            tensors[f"contrast.{point}"] = _contrasts(activations, y, job.options.top_k)
            for readout, selection, found in _point(job, point, activations, y, wrong, bar):
                facts["probes"] += probe_rows(selection, point, readout)
                for direction, vectors in found.items():
                    key = f"{point}/{direction}"
                    tensors |= {f"{key}.{name}": getattr(vectors, name) for name in ("weight", "bias", "step")}
                    facts["readouts"][key] = {
                        "hook_point": point,
                        "direction": direction,
                        "report_layer": vectors.report_layer,
                        "scores": selection.as_dicts(),
                        "alphas": thresholds(_predictions(vectors, held_out), job.options.grid),
                    }
        facts["probes"] += _autoencoders(job, collected, y, wrong)
    return Output(facts, tensors)


def _autoencoders(job: Job, collected: Output, y: Floats, wrong: Floats) -> list[dict[str, Any]]:
    """Scores of probes on sparse-autoencoder encodings, at the first hook point."""
    if not job.options.sae:
        return []
    point = job.options.hook_points[0]
    rows = activations_of(collected, point)[job.fitting]
    saes = {layer: load_sae(folder) for layer, folder in job.options.sae}
    return sae_scores(rows, y, wrong, saes, point, family=job.options.family, seed=job.options.seed)


def vectors_of(fitted: Output) -> dict[str, SteeringVectors]:
    """Key -> steering vectors, as the engine takes them."""
    return {
        key: SteeringVectors(
            facts["hook_point"],
            fitted.tensors[f"{key}.weight"],
            fitted.tensors[f"{key}.bias"],
            fitted.tensors[f"{key}.step"],
            facts["report_layer"],
        )
        for key, facts in fitted.facts["readouts"].items()
    }


def label_bias_of(job: Job, unsteered: Answers, labels: npt.NDArray[np.int64]) -> torch.Tensor:
    """The logit bias (C,) that the artifact holds: one, fit to the unsteered answers, for every candidate that has a bias.

    Where it is a candidate the ordering subset is left out, since it is ranked there; else nothing is held back from it.
    One class alone teaches nothing but to say it always: no bias.
    """
    if len(set(labels.tolist())) < 2:
        return torch.zeros(len(job.served.labels))
    used = job.fitting if job.options.biased else np.arange(len(labels))
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
    logits = np.linspace(first, last, POINTS)
    return sorted({float(f"{1.0 / (1.0 + np.exp(-z)):.6g}") for z in logits})


def _readouts(job: Job) -> list[tuple[bool, list[Direction]]]:
    """(contrastive or not, its directions): two kinds of readout, each with its own selection of layers."""
    asked = job.options.directions
    kinds: list[tuple[bool, list[Direction]]] = [
        (False, [name for name in asked if name not in CONTRASTIVE]),
        (True, [name for name in asked if name in CONTRASTIVE]),
    ]
    return [kind for kind in kinds if kind[1]]


def _point(
    job: Job, point: HookPoint, activations: torch.Tensor, y: Floats, wrong: Floats, bar: Bar
) -> Iterator[tuple[str, Selection, dict[Direction, SteeringVectors]]]:
    """Each kind of readout of one hook point: its name, its scores, and the directions that leave a layer to act.

    activations (n, L, d), y and wrong (0 or 1) (n,).
    """
    options = job.options
    for contrastive, names in _readouts(job):
        logistic = options.family == "logistic" and not contrastive
        goal = wrong if logistic else y
        fitter: Fitter = (
            (lambda x, t: fit_contrast(x, t, options.top_k))
            if contrastive
            else (lambda x, t: fit_layer(x, t, options.family))
        )
        score: Score = "auroc" if logistic else "rmse"
        selection = select(activations, goal, fitter, wrong=wrong, seed=options.seed, on_layer=bar.advance, score=score)
        kind = "contrastive" if contrastive else "logistic" if logistic else "error"
        acting = _acting(selection, options.layers)
        if not acting:
            yield kind, selection, {}
            continue
        probes: Probes = (
            contrastive_probes(activations, y, options.top_k)
            if contrastive
            else fit_probes(activations, goal, options.family)
        )
        yield kind, selection, directions(point, activations, probes, acting, acting[0], names)


def _acting(selection: Selection, layers: Layers) -> tuple[int, ...]:
    """The layers that act, best first: the report layer is the first. Empty where none of those asked for reads the error."""
    if isinstance(layers, tuple):
        return tuple(layer for layer in selection.ranked if layer in layers)
    if layers == "all":
        return selection.ranked
    one = {"best": selection.report_layer, "median": selection.median, "worst": selection.worst}[layers]
    return () if one is None else (one,)


def _contrasts(activations: torch.Tensor, y: Floats, top_k: int) -> torch.Tensor:
    """mean(h | high error) − mean(h | low error) at every layer, (L, d) float32: the fixed-strength baseline moves along it."""
    layers = [contrast(layer_of(activations, layer), y, top_k) for layer in range(activations.shape[1])]
    return torch.from_numpy(np.stack(layers)).float()


def _predictions(vectors: SteeringVectors, activations: torch.Tensor) -> Floats:
    """z of every item at every active layer, one flat array. activations (n, L, d)."""
    active = list(vectors.active_layers)
    z = Probes(vectors.weight[active], vectors.bias[active]).predict(activations[:, active])
    return np.asarray(z.double().numpy().ravel(), dtype=np.float64)
