"""Stage 5: readouts, steps and the decision as an artifact of the store."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch

from merasteer.pipeline.fit import label_bias_of
from merasteer.pipeline.job import Job
from merasteer.pipeline.workspace import Output
from merasteer.store import publish as publish_artifact
from merasteer.types import BY_CLASS, CONTRASTIVE

__all__ = ["publish"]


def publish(job: Job, fitted: Output, calibrated: Output) -> str:
    """Digest of the artifact, certified or not. Without a probe it holds zeros: it says that the newest run abstained, and an
    older certificate is no longer what is served by default."""
    key, document = calibrated.facts["subject"], calibrated.facts["calibration"]
    readout = _no_readout(job) if key is None else fitted.facts["readouts"][key]
    if key is None:
        matrix = torch.zeros(job.loaded.layers, job.loaded.width)
        tensors = {"weight": matrix, "bias": matrix[:, 0], "step": matrix}
    else:
        tensors = {name: fitted.tensors[f"{key}.{name}"] for name in ("weight", "bias", "step")}
        tensors["contrastive"] = fitted.tensors[f"contrast.{readout['hook_point']}"]
        if readout["direction"] in BY_CLASS:
            tensors |= {f"class_{name}": fitted.tensors[f"{key}.class_{name}"] for name in ("weight", "bias", "step")}
    tensors["label_bias"] = label_bias_of(job, fitted)
    manifest = _manifest(job, key, readout, document, tensors["weight"])
    folder = publish_artifact(job.store, manifest=manifest, calibration=document, tensors=tensors)
    return str(json.loads((folder / "manifest.json").read_bytes())["digest"])


def _no_readout(job: Job) -> dict[str, Any]:
    """What stands for the readout where no layer reads the error."""
    return {
        "hook_point": job.options.hook_points[0],
        "direction": "euclidean",
        "report_layer": job.loaded.layers - 1,
        "scores": [],
    }


def _strength(
    document: dict[str, Any], chosen: dict[str, Any] | None, key: str | None, readout: dict[str, Any]
) -> float | None:
    """κ of the readout's steps: the chosen candidate's, else the best one's, else the smallest that would have been tried: a request may
    ask for a step by an α of its own. None of steps that know their length."""
    ranked = sorted(document["candidates"], key=lambda row: row["gain"], reverse=True)
    steps = [row for row in (chosen, *ranked) if row and "strength" in row and row["key"].startswith(f"{key}/")]
    return float(steps[0]["strength"]) if steps else min(readout.get("strengths", ()), default=0.0) or None


def _manifest(
    job: Job, key: str | None, readout: dict[str, Any], document: dict[str, Any], weight: Any
) -> dict[str, Any]:
    """All sections that the store does not fill in itself."""
    certified = document["decision"] == "certified"
    chosen = next((row for row in document["candidates"] if row["key"] == document["chosen"]), None)
    active = (weight.abs().sum(-1) > 0).tolist()
    positions = job.options.positions
    own = {"method": chosen["method"]} if chosen is not None and "method" in chosen else {}
    if (strength := _strength(document, chosen, key, readout)) is not None:
        own["strength"] = strength
    return {
        "certified": certified,
        "model": job.identity.manifest(),
        "task": asdict(job.served),
        "steering": {
            "hook_point": readout["hook_point"],
            "direction": readout["direction"],
            "alpha": chosen["alpha"] if chosen else None,
            "active_layers": [layer for layer, on in enumerate(active) if on],
            "positions": list(positions) if isinstance(positions, tuple) else positions,
            "report_layer": readout["report_layer"],
            **own,
        },
        "probe": {
            "family": "contrastive" if readout["direction"] in CONTRASTIVE else job.options.family,
            # A layer that predicts but whose w·u is not positive does not act: it is listed as idle.
            "scores": [{**score, "idle": not active[score["layer"]]} for score in readout["scores"]],
        },
        "runtime": job.conditions.runtime(),
        "splits": job.splits.digests,
        "seeds": {"run": job.options.seed, "splits": job.task.splits.seed},
        "versions": job.versions,
    }
