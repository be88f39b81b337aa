"""Probes on sparse-autoencoder encodings: whether single features read the error, scored like any readout (docs/method.md section 2).

For reading only. An encoding is not linear in h, so the closed form does not apply to it, and nothing here makes a step.

Shapes: N items, L layers, d width, F features of one autoencoder.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from merasteer.errors import InvalidInput
from merasteer.probes.fitting import Family, fit_layer
from merasteer.probes.selection import Score, Selection, probe_rows, select

__all__ = ["encodings", "load_sae", "sae_scores"]

Floats = npt.NDArray[np.float64]


def load_sae(path: str | Path) -> Any:
    """The autoencoder of a folder that `save_model` of sae-lens wrote, on the CPU in float32, with its gradients off.

    Raises InvalidInput where the package is missing or the folder holds no autoencoder.
    """
    try:
        library = importlib.import_module("sae_lens")
    except ImportError as error:
        raise InvalidInput("sae: reading autoencoders needs sae-lens; install mera-server[sae]") from error
    try:
        sae = library.SAE.load_from_disk(str(path), device="cpu", dtype="float32")
    except Exception as error:  # whatever the library's parsers raise: all of it is about the folder
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidInput(f"sae: {str(path)!r}: {what}; give a folder written by sae-lens' save_model") from error
    return sae.eval().requires_grad_(False)


def encodings(sae: Any, activations: torch.Tensor) -> torch.Tensor:
    """The features of every item as the autoencoder defines them, (N, F) float32. activations (N, d), in raw units."""
    if activations.ndim != 2 or activations.shape[1] != sae.cfg.d_in:
        raise InvalidInput(
            f"sae: it encodes width {sae.cfg.d_in}, the activations are {tuple(activations.shape)}; "
            "give (N, d) of the model and hook point that it was trained on"
        )
    with torch.no_grad():
        return torch.as_tensor(sae.encode(activations.float())).float()


def sae_scores(
    activations: torch.Tensor,
    target: Floats,
    wrong: Floats,
    saes: Mapping[int, Any],
    hook_point: str,
    *,
    family: Family = "ridge",
    repeats: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Held-out scores of a probe on the encodings, one row per layer of `saes`: `probe_rows` with the readout "sae".

    activations (N, L, d), target (N,) logit errors, wrong (N,) 1 where the answer is wrong, else 0. saes: layer -> autoencoder.
    Items, splits and rule are those of the probes on activations, so the figures may be set side by side.
    """
    if outside := sorted(layer for layer in saes if not 0 <= layer < activations.shape[1]):
        raise InvalidInput(
            f"sae: layer {outside[0]} is outside 0..{activations.shape[1] - 1}; give layers of the model"
        )
    logistic = family == "logistic"
    score: Score = "auroc" if logistic else "rmse"
    scores = []
    for layer, sae in sorted(saes.items()):
        features = encodings(sae, activations[:, layer])
        live = features.any(0)  # most never fire on one task: such a column takes memory and no part
        live[0] = True  # a probe needs an input, be it a constant
        found = select(
            features[:, None, live],
            wrong if logistic else target,
            lambda x, t: fit_layer(x, t, family),
            wrong=wrong,
            repeats=repeats,
            seed=seed,
            score=score,
        )
        scores.append(replace(found.scores[0], layer=layer))
    return probe_rows(Selection(tuple(scores)), hook_point, "sae")
