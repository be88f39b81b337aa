"""A random, uncertified artifact: the cost of steering without its benefit, for benchmarks and load tests."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from merasteer.errors import BadArtifact
from merasteer.store.identity import ModelIdentity
from merasteer.store.reading import load
from merasteer.store.scanning import latest
from merasteer.store.writing import publish
from merasteer.types import HookPoint, ServedTask

__all__ = ["FAMILY", "plant"]

FAMILY = "planted"
UNTESTED = {
    "test": "mcnemar", "epsilon": 0.0, "delta": 0.05, "chances": 1, "decision": "abstained", "reason": "uncertified",
    "chosen": None, "candidates": [], "tested": [],
}  # fmt: skip


def plant(store: Path, identity: ModelIdentity, task: ServedTask, hook_point: HookPoint, seed: int) -> Path:
    """The folder of a published artifact with random readouts of unit length at every layer, bias 0 and no α.

    ũ = w since ‖w‖ = 1. Equal arguments give an equal digest. It never takes the default
    from a calibrated artifact.
    """
    random = torch.randn(
        identity.layers, identity.width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    weight = torch.nn.functional.normalize(random, dim=-1).float()
    manifest = {
        "certified": False,
        "model": identity.manifest(),
        "task": asdict(task),
        "steering": {
            "hook_point": hook_point,
            "direction": "euclidean",
            "alpha": None,
            "active_layers": list(range(identity.layers)),
            "positions": "generation",
            "report_layer": identity.layers - 1,
        },
        "probe": {"family": FAMILY, "scores": []},
        "runtime": {"dtype": "float32", "device": "cpu", "attention": "sdpa", "ranks": 1},
        "splits": {"train": [], "calibration": [], "test": []},
        "seeds": {"plant": seed},
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    tensors = {"weight": weight, "bias": torch.zeros(identity.layers), "step": weight}
    default = not _calibrated_default(store, identity.slug, task.name)
    return publish(store, manifest=manifest, calibration=UNTESTED, tensors=tensors, default=default)


def _calibrated_default(store: Path, slug: str, task: str) -> bool:
    """Whether `latest` names an artifact that was fit to data."""
    name = latest(store, slug, task)
    try:
        found: Any = load(store / slug / task / name).manifest if name else None
    except BadArtifact:
        return False
    return found is not None and found["probe"]["family"] != FAMILY
