"""Artifacts of gated steps, steps by class and label probes: what manifest and tensors must say, and that they come back whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from merasteer.errors import BadArtifact
from merasteer.store import load
from merasteer.store.certificate import agree
from merasteer.store.describe import summary
from merasteer.store.manifest import validate
from merasteer.store.scanning import scan
from merasteer.store.tensors import check
from merasteer.types import BY_CLASS, LAWS, Direction

SHA = "0123456789abcdef" * 4
ACTING: tuple[Direction, ...] = ("gradient", "proportional", "gradient_by_label", "label_probe")


def acting(parts: Any, direction: Direction) -> Any:
    """The parts of a certified artifact of this direction; a label probe acts at layer 2 alone."""
    steering, tensors = parts.manifest["steering"], parts.tensors
    row = parts.calibration["candidates"][0]
    own: dict[str, Any] = {"method": "label_probe"} if direction == "label_probe" else {"strength": 0.6}
    active = [2] if direction == "label_probe" else [0, 2]
    steering |= {"direction": direction, "active_layers": active, **own}
    row |= {"direction": direction, **own}
    for score in parts.manifest["probe"]["scores"]:
        score["idle"] = score["layer"] not in active
    idle = [layer for layer in range(3) if layer not in active]
    tensors["weight"][idle] = 0
    tensors["step"] = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    tensors["step"][idle] = 0
    if direction in BY_CLASS:
        generator, shape = torch.Generator().manual_seed(2), (len(active), 2, 8)
        tensors["step"] = torch.zeros(3, 8)
        tensors["class_weight"] = torch.randn(shape, generator=generator)
        tensors["class_bias"] = torch.randn(shape[:2], generator=generator)
        tensors["class_step"] = torch.randn(shape, generator=generator) * (direction != "label_probe")
    return parts


def whole(manifest: dict[str, Any]) -> dict[str, Any]:
    """With what publishing adds."""
    return {**manifest, "schema": 2, "digest": SHA, "files": {"calibration.json": SHA, "probe.safetensors": SHA}}


@pytest.mark.parametrize("direction", ACTING)
def test_what_is_published_comes_back_as_it_was(parts: Any, tmp_path: Path, direction: Direction) -> None:
    acting(parts, direction)
    artifact = load(parts.publish(tmp_path))
    vectors, tensors = artifact.vectors, parts.tensors
    assert vectors.law == LAWS[direction]
    for name in ("weight", "bias", "step"):
        assert torch.equal(getattr(vectors, name), tensors[name])
        assert (vectors.classes is not None) == (direction in BY_CLASS)
        if vectors.classes is not None:
            assert torch.equal(getattr(vectors.classes, name), tensors[f"class_{name}"])
    said = direction == "label_probe"
    own = artifact.correction
    assert (own.method, own.alpha, own.strength) == (("label_probe", 0.3, 0.0) if said else ("mera", 0.3, 0.6))
    [entry] = scan([tmp_path])
    assert (summary(entry)["method"], summary(entry)["direction"]) == (own.method, direction)


@pytest.mark.parametrize("direction", ACTING)
def test_one_that_failed_its_test_says_what_it_is_for(parts: Any, tmp_path: Path, direction: Direction) -> None:
    """It keeps the length of its step, and corrects nothing by itself."""
    acting(parts, direction)
    parts.manifest["certified"], parts.manifest["steering"]["alpha"] = False, None
    parts.manifest["steering"].pop("method", None)
    parts.calibration |= {"decision": "abstained", "reason": "uncertified", "chosen": None}
    artifact = load(parts.publish(tmp_path))
    assert artifact.correction.method == ("label_probe" if direction == "label_probe" else "mera")
    assert not artifact.correction.moves
    assert artifact.manifest["steering"].get("strength") == (None if direction == "label_probe" else 0.6)


@pytest.mark.parametrize(
    ("direction", "changes", "reason"),
    [
        *((name, {"strength": None}, r"steering\.strength: None is not a number") for name in ACTING[:3]),
        *((name, {"strength": ...}, r"steering\.strength: is missing") for name in ACTING[:3]),
        *((name, {"strength": ..., "alpha": None}, r"steering\.strength: is missing") for name in ACTING[:3]),
        *((name, {"strength": value}, r"steering\.strength: .* no length") for name in ACTING[:3] for value in (0.0, -1.0)),
        *((name, {"strength": float("inf")}, r"steering\.strength: inf is outside") for name in ACTING[:3]),
        ("gradient", {"strength": True}, r"steering\.strength: True is not a number"),
        ("label_probe", {"strength": 0.5}, r"steering\.strength: 0\.5 is no length of such a step"),
        ("gradient", {"direction": "covariance"}, r"steering\.strength: 0\.6 is no length of such a step"),
        ("gradient", {"method": "label_probe"}, r"steering\.direction: 'gradient', yet the method is label_probe"),
        ("label_probe", {"method": "mera"}, r"steering\.direction: 'label_probe', yet the method is mera"),
        ("label_probe", {"method": "mera+bias"}, r"steering\.direction: 'label_probe', yet the method is mera\+bias"),
        ("label_probe", {"active_layers": [0, 2]}, r"steering\.active_layers: \[0, 2\], yet a label probe reads one"),
        ("label_probe", {"active_layers": [], "alpha": None}, r"steering\.active_layers: \[\], yet a label probe"),
        ("label_probe", {"direction": "sideways"}, r"steering\.direction"),
    ],
)  # fmt: skip
def test_a_manifest_that_says_what_cannot_be_is_refused(
    parts: Any, direction: Direction, changes: dict[str, Any], reason: str
) -> None:
    manifest = whole(acting(parts, direction).manifest)
    validate(manifest)
    manifest["steering"] |= changes
    for name in [name for name, value in changes.items() if value is ...]:
        del manifest["steering"][name]
    if manifest["steering"]["alpha"] is None:
        manifest["certified"] = False
    with pytest.raises(BadArtifact, match=reason):
        validate(manifest)


def test_a_label_probe_of_a_free_task_is_refused(parts: Any) -> None:
    manifest = whole(acting(parts, "label_probe").manifest)
    manifest["task"] |= {"choose": "free", "variants": [[[3], [4]], [[5]]]}
    with pytest.raises(BadArtifact, match=r"steering\.direction: 'label_probe', yet the task's answers are free"):
        validate(manifest)


@pytest.mark.parametrize(
    ("direction", "spoil", "reason"),
    [
        *(
            (direction, lambda t, name=name: t.pop(name), f"{name}: is missing")
            for direction in BY_CLASS
            for name in ("class_weight", "class_bias", "class_step")
        ),
        *(
            (direction, lambda t, name=name: t.update({name: t[name][:, :1]}), f"{name}: shape")
            for direction in BY_CLASS
            for name in ("class_weight", "class_bias", "class_step")
        ),
        ("gradient_by_label", lambda t: t.update(class_bias=t["class_bias"][:1]), "class_bias: shape"),
        ("gradient_by_label", lambda t: t.update(class_step=t["class_step"][..., :7]), "class_step: shape"),
        ("gradient_by_label", lambda t: t["class_step"][0, 1].fill_(float("inf")), "class_step: holds a value that is"),
        ("gradient_by_label", lambda t: t["step"][0].fill_(1.0), "step: is not zero, yet the direction is gradient_by"),
        ("label_probe", lambda t: t["class_weight"][0, 1].fill_(float("nan")), "class_weight: holds a value that is"),
        ("label_probe", lambda t: t["class_step"][0].fill_(1.0), "class_step: is not zero, yet the direction is label"),
        ("label_probe", lambda t: t["step"][2].fill_(1.0), "step: is not zero, yet the direction is label_probe"),
        ("gradient", lambda t: t.update(class_bias=torch.zeros(2, 2)), "'class_bias': is not one of"),
        ("gradient", lambda t: t["step"][1].fill_(1.0), "step: is not zero at a layer that is idle"),
        ("proportional", lambda t: t["step"][0].fill_(float("nan")), "step: holds a value that is not finite"),
    ],
)
def test_tensors_that_do_not_fit_their_law_are_refused_by_name(
    parts: Any, direction: Direction, spoil: Callable[[dict[str, torch.Tensor]], object], reason: str
) -> None:
    acting(parts, direction)
    check(parts.tensors, parts.manifest)
    spoil(parts.tensors)
    with pytest.raises(BadArtifact, match=f"^{reason}"):
        check(parts.tensors, parts.manifest)


@pytest.mark.parametrize("direction", ACTING)
def test_what_is_served_is_what_was_tested(parts: Any, direction: Direction) -> None:
    """Another length, or another method, than that of the candidate whose test passed."""
    acting(parts, direction)
    row = parts.calibration["candidates"][0]
    agree(parts.manifest, parts.calibration)
    name, other = ("method", "mera") if direction == "label_probe" else ("strength", 0.3)
    with pytest.raises(BadArtifact, match=rf"steering\.{name}: .* is not the certified {other!r}"):
        agree(parts.manifest, {**parts.calibration, "candidates": [row | {name: other}]})
    with pytest.raises(BadArtifact, match=rf"steering\.{name}: "):
        agree(parts.manifest, {**parts.calibration, "candidates": [{k: v for k, v in row.items() if k != name}]})
