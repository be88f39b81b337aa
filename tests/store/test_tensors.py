from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch

from merasteer.errors import BadArtifact
from merasteer.store.tensors import check, decode, encode


def test_bytes_are_the_same_for_the_same_tensors_in_any_order(parts: Any) -> None:
    data = encode(parts.tensors)
    assert encode(dict(reversed(parts.tensors.items()))) == data
    assert encode({name: tensor.double() for name, tensor in parts.tensors.items()}) == data
    found = decode(data)
    assert all(torch.equal(found[name], tensor) for name, tensor in parts.tensors.items())


def test_tensors_that_share_memory_can_be_written() -> None:
    shared = torch.ones(2, 3)
    assert decode(encode({"weight": shared, "step": shared}))["step"].tolist() == shared.tolist()


@pytest.mark.parametrize("data", [b"", b"12345678", b"\xff" * 64])
def test_bytes_that_are_no_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(BadArtifact, match="safetensors"):
        decode(data)


def test_every_truncation_is_refused(parts: Any) -> None:
    data = encode(parts.tensors)
    for length in range(0, len(data), 7):
        with pytest.raises(BadArtifact):
            decode(data[:length])


def test_another_dtype_is_refused() -> None:
    with pytest.raises(BadArtifact, match=r"'weight': dtype BF16"):
        decode(safetensors.torch.save({"weight": torch.ones(2, dtype=torch.bfloat16)}))


def _step(tensors: dict[str, torch.Tensor], layer: int, factor: float, add: float = 0.0) -> None:
    tensors["step"][layer] = tensors["step"][layer] * factor + add


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: t.pop("bias"), "bias: is missing"),
        (lambda t: t.update(extra=torch.ones(1)), "'extra': is not one of|shape"),
        (lambda t: t.update(weight=torch.ones(3, 9)), r"weight: shape \(3, 9\)"),
        (lambda t: t.update(bias=torch.ones(3, 1)), r"bias: shape \(3, 1\)"),
        (lambda t: t.update(label_bias=torch.ones(3)), r"label_bias: shape \(3,\)"),
        (lambda t: t.update(contrastive=torch.ones(0)), "contrastive: shape"),
        (lambda t: t["bias"].fill_(float("inf")), "bias: holds a value that is not finite"),
        (lambda t: t["weight"][0].fill_(float("nan")), "weight: holds a value"),
        (lambda t: t["weight"][1].fill_(1.0), r"weight: layers \[0, 1, 2\]"),
        (lambda t: _step(t, 1, 1.0, add=1e-9), "step: is not zero at a layer that is idle"),
        (lambda t: _step(t, 2, -1.0), "w·step is -1 at layer 2"),
        (lambda t: _step(t, 0, 1.001), "w·step is 1.001 at layer 0"),
    ],
)
def test_tensors_that_the_manifest_does_not_describe_are_refused(
    parts: Any, spoil: Callable[[dict[str, torch.Tensor]], object], reason: str
) -> None:
    check(parts.tensors, parts.manifest)
    spoil(parts.tensors)
    with pytest.raises(BadArtifact, match=reason):
        check(parts.tensors, parts.manifest)


@pytest.mark.parametrize("method", ["logit_bias", "mera+bias"])
def test_a_method_with_a_bias_needs_it(parts: Any, method: str) -> None:
    parts.manifest["steering"]["method"] = method
    check(parts.tensors, parts.manifest)
    del parts.tensors["label_bias"]
    with pytest.raises(BadArtifact, match="label_bias: is missing"):
        check(parts.tensors, parts.manifest)
    del parts.manifest["steering"]["method"]
    check(parts.tensors, parts.manifest)
