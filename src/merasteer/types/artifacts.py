"""What a run leaves behind and a server serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from merasteer.conditions import Conditions, conditions_in
from merasteer.types.correction import Correction
from merasteer.types.names import LAWS, Method
from merasteer.types.steering import ClassReadouts, SteeringVectors
from merasteer.types.tasks import ServedTask

__all__ = ["Artifact", "own_method"]


def own_method(steering: Mapping[str, Any]) -> Method:
    """The method of a manifest's section `steering`: the one that was certified; else the one that its readout is for."""
    probe = LAWS[steering["direction"]] == "label_probe"
    method: Method = steering.get("method") or ("label_probe" if probe else "mera")
    return method


@dataclass(frozen=True, eq=False)
class Artifact:
    """Readouts, steps, the chosen candidate and its certificate: immutable and content-addressed (docs/method.md).

    weight (L, d), bias (L,), step (L, d) zero where idle; contrastive (L, d) or None; label_bias (labels,) or None. class_weight (A, C, d),
    class_bias (A, C) and class_step (A, C, d) of a law that asks for the class, else None (`ClassReadouts`).
    manifest and calibration are the parsed JSON files; see `merasteer.store.manifest` for their fields.
    """

    manifest: Mapping[str, Any]
    calibration: Mapping[str, Any]
    weight: torch.Tensor
    bias: torch.Tensor
    step: torch.Tensor
    contrastive: torch.Tensor | None = None
    label_bias: torch.Tensor | None = None
    class_weight: torch.Tensor | None = None
    class_bias: torch.Tensor | None = None
    class_step: torch.Tensor | None = None

    @property
    def digest(self) -> str:
        return str(self.manifest["digest"])

    @property
    def alpha(self) -> float | None:
        alpha = self.manifest["steering"]["alpha"]
        return None if alpha is None else float(alpha)

    @property
    def certified(self) -> bool:
        return bool(self.manifest["certified"])

    @property
    def task(self) -> ServedTask:
        raw = dict(self.manifest["task"])
        raw["labels"] = tuple(raw["labels"])
        raw["variants"] = tuple(tuple(tuple(ids) for ids in spellings) for spellings in raw["variants"])
        raw["examples"] = tuple(tuple(pair) for pair in raw["examples"])
        return ServedTask(**raw)

    @cached_property
    def conditions(self) -> Conditions | None:
        """What its certificate is bound to; None for one from before that was kept."""
        return conditions_in(self.manifest)

    @property
    def correction(self) -> Correction:
        """What it holds: its readouts and steps under its digest. Uncertified, it corrects nothing."""
        steering, bias = self.manifest["steering"], self.label_bias
        method, positions = own_method(steering), steering["positions"]
        return Correction(
            method=method,
            readout=self.digest if steering["active_layers"] else None,
            alpha=self.alpha,
            strength=0.0 if self.alpha is None else float(steering.get("strength", 0.0)),
            positions=tuple(positions) if isinstance(positions, list) else positions,
            bias=tuple(bias.tolist()) if bias is not None and "bias" in method else None,
        )

    @property
    def vectors(self) -> SteeringVectors:
        steering = self.manifest["steering"]
        classes = None
        if self.class_weight is not None and self.class_bias is not None and self.class_step is not None:
            classes = ClassReadouts(self.class_weight, self.class_bias, self.class_step)
        return SteeringVectors(
            steering["hook_point"],
            self.weight,
            self.bias,
            self.step,
            steering["report_layer"],
            LAWS[steering["direction"]],
            classes,
        )
