"""Weights in the layout that oneDNN multiplies by, for as long as an engine runs on a CPU.

PyTorch multiplies by a plain matrix: at a few rows a batch most of the time goes into reading it in the wrong order. Laid out once in
blocks, the same product of 32 rows by a (32,000, 512) matrix took 5.7 ms instead of 16.7, of one row 1.6 instead of 5.9 (2 cores).
Numbers differ from the plain product in the last bits, as they do between batch sizes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import nn

__all__ = ["can_pack", "packed", "warm_up"]

_ROWS = 32  # the number of rows that the layout is chosen for; measured the same for all from 1 to 512
_DTYPES = (torch.float32, torch.bfloat16)


def can_pack(model: nn.Module) -> bool:
    """Whether the weights are whole, not one rank's part, and of a dtype that this CPU multiplies by when packed."""
    parameters = [parameter.data for parameter in model.parameters()]
    return all(type(data) is torch.Tensor for data in parameters) and any(_packs(data.dtype) for data in parameters)


@contextmanager
def packed(model: nn.Module) -> Iterator[None]:
    """Inside, every `nn.Linear` of a model on a CPU multiplies by its packed weight, and does not hold the plain one.

    A weight of a dtype that this CPU cannot multiply by when packed stays as it is, and so does its product.
    Mutates the modules; afterwards, whatever happens, each has its own weight again, bit for bit. A weight that another module holds
    too (tied to the embedding, which looks rows up in it) is packed beside the plain one: its memory counts twice.
    """
    with ExitStack() as stack:
        holders = _holders(model)
        for module in model.modules():
            if type(module) is nn.Linear and module.weight.device.type == "cpu" and _packs(module.weight.dtype):
                _pack(module, stack, tied=holders[module.weight.data_ptr()] > 1)
        yield


def warm_up(model: Any, rows: int, requests: int, seconds: float = 5.0) -> None:
    """Has oneDNN make its code for every number of rows of a batch beforehand, the small ones first, as far as `seconds` allow.

    Inside `packed`. Afterwards no request waits for it, and memory stays as it is. rows: of one forward pass; requests: of the product
    that makes the logits. On a large model time runs out first: there, what is left is little beside the weights.
    """
    end, head = time.monotonic() + seconds, model.get_output_embeddings()
    kinds: dict[tuple[int, int, bool], nn.Linear] = {}
    for module in model.modules():
        if "forward" in module.__dict__ and type(module) is nn.Linear:
            kinds.setdefault((module.in_features, module.out_features, module is head), module)
    for count in sorted({_rounded(n) for n in range(1, rows + 1)}):
        for module in kinds.values():
            if time.monotonic() > end:
                return
            if module is not head or count <= _rounded(requests):
                module(torch.zeros(1, count, module.in_features, dtype=model.dtype))


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether one small packed product works, tried once per dtype.

    Only the trial tells: the operators exist in every build with oneDNN, and raise where the CPU lacks the instructions of a dtype
    (bfloat16: AVX-512 or AVX-NE-CONVERT).
    """
    if dtype not in _DTYPES:
        return False
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 16, dtype=dtype), _ROWS)
        _multiply(weight, None, torch.zeros(1, 1, 16, dtype=dtype))
        weight.to_dense()
    except (AttributeError, RuntimeError):  # no such operator; or none for this dtype on this CPU
        return False
    return True


def _holders(model: nn.Module) -> dict[int, int]:
    """How many modules hold each weight."""
    count: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            count[parameter.data_ptr()] = count.get(parameter.data_ptr(), 0) + 1
    return count


def _pack(module: nn.Linear, stack: ExitStack, *, tied: bool) -> None:
    weight = torch.ops.mkldnn._reorder_linear_weight(module.weight.data, _ROWS)
    if not tied:
        stack.callback(_unpack, module, weight)
        module.weight.data = module.weight.data.new_empty(0)
    stack.callback(module.__dict__.pop, "forward", None)
    module.forward = partial(_multiply, weight, module.bias)  # type: ignore[method-assign]


def _unpack(module: nn.Linear, weight: torch.Tensor) -> None:
    module.weight.data = weight.to_dense()


def _multiply(weight: torch.Tensor, bias: torch.Tensor | None, rows: torch.Tensor) -> Any:
    """rows (..., T, in) -> (..., T, out), computed for `_rounded(T)` rows."""
    count = rows.shape[-2]
    more = _rounded(count) - count
    if more:
        rows = torch.nn.functional.pad(rows, (0, 0, 0, more))
    found = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found[..., :count, :] if more else found


def _rounded(count: int) -> int:
    """The next number of at most four significant bits: at most an eighth more.

    For every number of rows oneDNN makes code for each shape of weight, which takes milliseconds, and keeps it, some 200 kB: a server
    that met all numbers grew by a quarter of its memory within 20 minutes.
    """
    step = 1 << max(0, count.bit_length() - 4)
    return -(-count // step) * step
