"""probe.safetensors: readouts and steps as bytes and back, and what must hold of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import save

from merasteer.errors import BadArtifact
from merasteer.store.fields import shown
from merasteer.store.schema import Manifest
from merasteer.types import BY_CLASS, LAWS, own_method

__all__ = ["check", "decode", "encode"]

REQUIRED = ("weight", "bias", "step")
TOLERANCE = 1e-4  # on w·ũ = 1, in float64 over float32 values


def encode(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The file's bytes, float32; equal tensors give equal bytes."""
    return save(
        {name: tensor.detach().to("cpu", torch.float32, copy=True).contiguous() for name, tensor in tensors.items()}
    )


def decode(data: bytes) -> dict[str, torch.Tensor]:
    """Name -> float32 tensor. Raises BadArtifact for bytes that are not a whole safetensors file of float32."""
    try:
        parts = deserialize(data)  # type: ignore[no-untyped-call]
    except SafetensorError as error:
        raise BadArtifact(f"not a whole safetensors file ({error}); copy or publish the artifact again") from error
    found = {}
    for name, part in parts:
        if part["dtype"] != "F32":
            raise BadArtifact(f"{shown(name)}: dtype {part['dtype']} is not F32; publish the artifact again")
        raw = bytearray(part["data"])
        found[name] = (torch.frombuffer(raw, dtype=torch.float32) if raw else torch.empty(0)).reshape(part["shape"])
    return found


def check(tensors: Mapping[str, torch.Tensor], manifest: Manifest) -> None:
    """Raise BadArtifact unless the tensors are those that the (validated) manifest describes.

    weight, step, contrastive (L, d); bias (L,); label_bias (labels,); class_weight, class_step (A, labels, d) and class_bias (A, labels) of
    the A active layers; all finite. Where a row of weight is zero (idle) step is zero too; elsewhere w·ũ = 1 under the closed form, so a
    step of t along ũ moves the readout by t. A method with a bias needs label_bias, a direction by class the class readouts.
    """
    layers, width, steering = manifest["model"]["layers"], manifest["model"]["width"], manifest["steering"]
    matrix, labels = (layers, width), (len(manifest["task"]["labels"]),)
    shapes: dict[str, tuple[int, ...]] = {"weight": matrix, "bias": (layers,), "step": matrix, "contrastive": matrix}
    shapes["label_bias"] = labels
    required = {*REQUIRED, *(("label_bias",) if "bias" in own_method(steering) else ())}
    if steering["direction"] in BY_CLASS and steering["active_layers"]:
        some = (len(steering["active_layers"]), *labels)
        shapes |= {"class_weight": (*some, width), "class_bias": some, "class_step": (*some, width)}
        required |= {"class_weight", "class_bias", "class_step"}
    for name in sorted(required - set(tensors)):
        _refuse(name, "is missing")
    for name in sorted(tensors):
        if name not in shapes:
            _refuse(shown(name), f"is not one of {', '.join(shapes)}")
        if tuple(tensors[name].shape) != shapes[name]:
            _refuse(name, f"shape {tuple(tensors[name].shape)} is not the {shapes[name]} of the manifest")
        if not bool(torch.isfinite(tensors[name]).all()):
            _refuse(name, "holds a value that is not finite")
    weight, step = tensors["weight"].double(), tensors["step"].double()
    active = weight.abs().sum(-1) > 0
    if (found := torch.nonzero(active).flatten().tolist()) != manifest["steering"]["active_layers"]:
        _refuse(
            "weight",
            f"layers {found} have a readout, steering.active_layers says {manifest['steering']['active_layers']}",
        )
    if bool((step[~active] != 0).any()):
        _refuse("step", "is not zero at a layer that is idle")
    law = LAWS[steering["direction"]]
    if steering["direction"] in BY_CLASS and bool(step.any()):
        _refuse("step", f"is not zero, yet the direction is {steering['direction']}")
    if law == "label_probe" and bool(tensors["class_step"].any()):
        _refuse("class_step", "is not zero, yet the direction is label_probe")
    if law != "closed_form":
        return
    along = (weight * step).sum(-1)
    if bool(((along - 1.0).abs() > TOLERANCE)[active].any()):
        worst = int(torch.where(active, (along - 1.0).abs(), -1.0).argmax())
        _refuse("step", f"w·step is {float(along[worst]):.6g} at layer {worst}, not 1")


def _refuse(name: str, why: str) -> None:
    raise BadArtifact(f"{name}: {why}; publish the artifact again")
