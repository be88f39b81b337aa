"""A certified artifact to publish, load and spoil, for a model that exists only as an identity."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from merasteer.meaning import ModelMeaning
from merasteer.store import ModelIdentity, publish
from merasteer.store.identity import file_hashes
from merasteer.store.manifest import digest_of

SHA = "0123456789abcdef" * 4
MEANING = ModelMeaning(SHA, SHA, SHA[::-1], SHA, SHA, {"hidden_size": 8})
IDENTITY = ModelIdentity("owner/name", "LlamaForCausalLM", 3, 8, 50, MEANING)


def _manifest() -> dict[str, Any]:
    score = {"rmse": 0.2, "dummy_rmse": 0.4, "standard_error": 0.01}
    return {
        "certified": True,
        "model": IDENTITY.manifest(),
        "task": {
            "name": "spam",
            "template": "Is “{text}” ham or spam? Answer:",
            "labels": ["ham", "spam"],
            "variants": [[[3], [4]], [[5, 6]]],
            "choose": "labels",
            "chat": False,
            "system": None,
            "examples": [],
            "end": None,
            "position": "last",
            "max_new_tokens": 1,
        },
        "steering": {
            "hook_point": "residual",
            "direction": "covariance",
            "alpha": 0.3,
            "active_layers": [0, 2],
            "positions": "generation",
            "report_layer": 2,
        },
        "probe": {"family": "ridge", "scores": [{"layer": i, **score, "idle": i == 1} for i in range(3)]},
        "runtime": {"dtype": "float32", "device": "cpu", "attention": "sdpa", "ranks": 1},
        "splits": {"train": ["a1", "a2"], "calibration": ["b1"], "test": ["c1"]},
        "seeds": {"splits": 0, "fit": 7},
        "versions": {"torch": "2"},
    }


def _calibration() -> dict[str, Any]:
    best = {
        "key": "residual/covariance/0.3",
        "hook_point": "residual",
        "direction": "covariance",
        "alpha": 0.3,
        "gain": 0.2,
    }
    bias = {"key": "logit_bias", "hook_point": None, "direction": None, "alpha": None, "gain": 0.1}
    counts = {"n": 250, "gained": 40, "lost": 10, "p_value": 1e-6, "gain": 0.12, "lower_bound": 0.05}
    return {
        "test": "mcnemar",
        "epsilon": 0.0,
        "delta": 0.05,
        "chances": 1,
        "decision": "certified",
        "reason": None,
        "chosen": best["key"],
        "candidates": [best, bias],
        "tested": [{"key": best["key"], **counts}],
        "alpha_grid": {"residual": [0.1, 0.3]},
    }


def _tensors() -> dict[str, torch.Tensor]:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    step = weight / weight.square().sum(-1, keepdim=True).clamp(min=1e-9)
    return {
        "weight": weight,
        "bias": torch.ones(3),
        "step": step,
        "label_bias": torch.zeros(2),
        "contrastive": weight + 1,
    }


@dataclass
class Parts:
    """What `publish` takes, free to be changed."""

    manifest: dict[str, Any] = field(default_factory=_manifest)
    calibration: dict[str, Any] = field(default_factory=_calibration)
    tensors: dict[str, torch.Tensor] = field(default_factory=_tensors)

    def publish(self, store: Path, **options: Any) -> Path:
        return publish(store, manifest=self.manifest, calibration=self.calibration, tensors=self.tensors, **options)


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def make() -> Callable[..., Parts]:
    """A certified artifact's parts; `seed` makes another one of the same task."""

    def made(seed: int = 7) -> Parts:
        found = Parts()
        found.manifest["seeds"]["fit"] = seed
        return found

    return made


@pytest.fixture
def identity() -> ModelIdentity:
    return copy.deepcopy(IDENTITY)


def _reseal(folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    edit(manifest)
    for name in manifest.get("files", {}):
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    manifest["digest"] = digest_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    return folder.rename(folder.with_name(manifest["digest"][:12]))


def aged(folder: Path, model: Path) -> Path:
    """A published artifact as schema 1 had it: one token a spelling, answers free, prompts plain, the model known by its files."""

    def edit(manifest: dict[str, Any]) -> None:
        manifest["schema"], task = 1, manifest["task"]
        weights, tokenizer = file_hashes(model)
        named = {name: manifest["model"][name] for name in ("id", "architecture", "layers", "width", "vocab")}
        manifest["model"] = {**named, "weights": weights, "tokenizer": tokenizer}
        manifest["runtime"] = {name: manifest["runtime"][name] for name in ("dtype", "attention")}
        task["variants"] = [[token for (token,) in spellings] for spellings in task["variants"]]
        for name in ("choose", "chat", "system", "examples", "end"):
            del task[name]

    found = _reseal(folder, edit)
    (found.parent / "latest").write_text(found.name + "\n", "utf-8")
    return found


@pytest.fixture
def reseal() -> Callable[..., Path]:
    """Edit a published manifest and make every hash and the folder's name right again: only the content is wrong."""
    return _reseal
