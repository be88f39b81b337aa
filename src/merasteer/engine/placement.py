"""Which device a model goes to, and whether it got there whole.

The engine runs on one device. The library keeps the paged cache of all layers in one tensor on `model.device`, into which the attention
of every layer writes, and our tables lie beside it: a layer on another device fails. Weights that accelerate offloads are brought
in again for every forward pass, which is every token, and what `model.device` says then depends on which part was offloaded.
So a map that spreads or offloads a model is an error that says what to do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from typing import Any

import torch

from merasteer.errors import InvalidInput

__all__ = ["LARGER", "DeviceMap", "check_group", "check_placement", "target_of"]

DeviceMap = str | Mapping[str, str | int]  # as from_pretrained takes it
STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")  # of accelerate
LARGER = "use a larger GPU or a smaller dtype such as bfloat16"


def target_of(device: str, device_map: DeviceMap | None) -> torch.device:
    """The device that the engine will run on. Raises InvalidInput for what can be refused before anything is read."""
    if device_map is None:
        return _device("device", device)
    if device != "auto":
        raise InvalidInput(f"device_map: {device_map!r} was given beside device {device!r}; give one of the two")
    if isinstance(device_map, str):
        return _device("device_map", "auto" if device_map in STRATEGIES else device_map)
    places = {f"cuda:{place}" if isinstance(place, int) else str(place) for place in device_map.values()}
    if len(places) != 1 or "disk" in places:
        raise InvalidInput(_spread(device_map, places))
    return _device("device_map", places.pop())


def _device(field: str, device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = "auto, cpu or cuda[:n]" if field == "device" else f"{', '.join(STRATEGIES)}, cpu or cuda:n"
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput(f"{field}: {device!r} is not a device; use {known}") from error
    if target.type not in ("cpu", "cuda"):
        raise InvalidInput(f"{field}: {device!r} cannot run the engine; use {known}")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise InvalidInput(
            f"{field}: {device!r} was asked for and {torch.cuda.device_count()} CUDA devices are there; use "
            + ("cuda:0" if torch.cuda.is_available() else "cpu")
        )
    return target


def check_group(size: int, device_map: DeviceMap | None) -> None:
    """Raises InvalidInput unless this is one of `size` processes that torchrun started."""
    if device_map is not None:
        raise InvalidInput("tensor_parallel: it places the model itself; leave device_map out")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != size:
        raise InvalidInput(
            f"tensor_parallel: {size} parts need as many processes and {started} run; start them by torchrun --nproc-per-node {size}"
        )


def check_placement(model: Any, device_map: DeviceMap | None) -> None:
    """Raises InvalidInput unless the whole model lies on one device. An offloaded parameter is on the meta device."""
    places = {str(parameter.device) for parameter in model.parameters()}
    if len(places) > 1 or "meta" in places:
        raise InvalidInput(_spread(device_map, {"cpu or disk (offloaded)" if p == "meta" else p for p in places}))


def _spread(device_map: Any, places: Set[str]) -> str:
    return (
        f"device_map: {device_map!r} puts the model on {' and '.join(sorted(places))}, and the engine runs on one device; "
        f"{LARGER}, or --device cuda:0 (or cpu) where the model fits there"
    )
