"""What differs between two artifacts: fields, splits, candidates, certificates, and the angle between their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from merasteer.store.certificate import certificate_of
from merasteer.types import Artifact

__all__ = ["differences"]

SECTIONS = ("certified", "model", "task", "steering", "runtime", "seeds", "versions")


def differences(first: Artifact, second: Artifact) -> dict[str, Any]:
    """JSON-able. `fields`, `certificate`: dotted name -> [first, second], only what differs (null: absent).

    splits: how many rows each has and how many both; `equal` is the same rows in the same order. candidates: keys that only one
    ranked, and those ranked by both with another gain. layers: cosine of the weights and of the steps, null where a layer is idle in
    either; null altogether where the shapes differ.
    """
    one, two = first.manifest, second.manifest
    fields = [{**{name: m[name] for name in SECTIONS}, "probe": {"family": m["probe"]["family"]}} for m in (one, two)]
    return {
        "first": first.digest,
        "second": second.digest,
        "equal": first.digest == second.digest,
        "fields": _changed(*fields),
        "splits": {name: _split(one["splits"][name], two["splits"][name]) for name in one["splits"]},
        "candidates": _candidates(first.calibration, second.calibration),
        "certificate": _changed(*({"": certificate_of(x.calibration)} for x in (first, second))),
        "layers": _layers(first, second),
    }


def _changed(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    one, two = dict(_leaves(first)), dict(_leaves(second))
    names = [*one, *(name for name in two if name not in one)]
    return {name: [one.get(name), two.get(name)] for name in names if one.get(name) != two.get(name)}


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything that is no object."""
    if not isinstance(value, Mapping):
        yield where, value
        return
    for name, child in value.items():
        yield from _leaves(child, f"{where}.{name}" if where else name)


def _split(first: list[str], second: list[str]) -> dict[str, Any]:
    counts = {"first": len(first), "second": len(second), "shared": len(set(first) & set(second))}
    return {**counts, "equal": first == second}


def _candidates(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    one, two = ({row["key"]: row["gain"] for row in calibration["candidates"]} for calibration in (first, second))
    return {
        "first": len(one),
        "second": len(two),
        "only_first": sorted(set(one) - set(two)),
        "only_second": sorted(set(two) - set(one)),
        "gains": {key: [one[key], two[key]] for key in one if key in two and one[key] != two[key]},
    }


def _layers(first: Artifact, second: Artifact) -> list[dict[str, Any]] | None:
    if first.weight.shape != second.weight.shape:
        return None
    weights, steps = (_cosines(getattr(first, name), getattr(second, name)) for name in ("weight", "step"))
    pairs = zip(weights, steps, strict=True)
    return [{"layer": layer, "weight": weight, "step": step} for layer, (weight, step) in enumerate(pairs)]


def _cosines(first: torch.Tensor, second: torch.Tensor) -> list[float | None]:
    """Row by row of two (L, d); None where a row is zero."""
    one, two = first.double(), second.double()
    norms = one.norm(dim=-1) * two.norm(dim=-1)
    products = (one * two).sum(-1)
    return [float(p / n) if n > 0 else None for p, n in zip(products.tolist(), norms.tolist(), strict=True)]
