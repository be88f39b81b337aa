"""Activations on the disk: written as they come, read one layer at a time, never as a whole.

A stage's file is a safetensors file like the others. What is large is laid out layer by layer, (L, N, d), so that fitting one layer reads
one stretch of it; those who look at a few rows are given a mapped view (N, L, d) of which only what they touch is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["BYTES", "DTYPES", "ByLayer", "Layout", "Stored", "head_of", "stored_in"]

# safetensors' names. numpy knows no bfloat16: bytes are carried as integers of the same size.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
_RAW: dict[int, Any] = {8: np.int64, 4: np.int32, 2: np.int16}
LAYERED = "layered"  # metadata: names of the tensors that are laid out by layer
_MOST = 2**26  # bytes of a head; more is damage


@dataclass(frozen=True)
class Stored:
    """One tensor of a file, by layer: shape (L, N, d) from `offset` on."""

    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]

    def layer(self, index: int) -> torch.Tensor:
        """One layer (N, d) in memory of its own: nothing stays mapped."""
        size = prod(self.shape[1:])
        raw = np.fromfile(
            self.path, _RAW[BYTES[self.dtype]], size, offset=self.offset + index * size * BYTES[self.dtype]
        )
        return torch.from_numpy(raw).view(DTYPES[self.dtype]).reshape(self.shape[1:])

    def mapped(self) -> torch.Tensor:
        """A view (N, L, d) of the file. What is written to it stays in memory."""
        raw = np.memmap(self.path, _RAW[BYTES[self.dtype]], "c", self.offset, (prod(self.shape),))
        return torch.from_numpy(raw).view(DTYPES[self.dtype]).reshape(self.shape).transpose(0, 1)


@dataclass(frozen=True)
class ByLayer:
    """A stored tensor as (N, L, d), of which [items, layer] alone can be asked for; nothing of it stays in memory."""

    stored: Stored

    @property
    def shape(self) -> tuple[int, ...]:
        layers, n, width = self.stored.shape
        return n, layers, width

    def __getitem__(self, at: tuple[Any, int]) -> torch.Tensor:
        items, layer = at
        return self.stored.layer(layer)[items]


@dataclass(frozen=True)
class Layout:
    """What a file will hold: names with (dtype, shape), in this order; those with three axes by layer. room: bytes for its facts."""

    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    room: int = 4096

    @property
    def offsets(self) -> dict[str, int]:
        """Where each tensor begins behind the head."""
        found, at = {}, 0
        for name, (dtype, shape) in self.tensors.items():
            found[name] = at
            at += prod(shape) * BYTES[dtype]
        return found

    @property
    def size(self) -> int:
        """Bytes behind the head."""
        return sum(prod(shape) * BYTES[dtype] for dtype, shape in self.tensors.values())

    def head(self, metadata: Mapping[str, str]) -> bytes:
        """The head of the file, padded to the same length whatever the metadata."""
        entries: dict[str, Any] = {
            name: {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + prod(shape) * BYTES[dtype]]}
            for (name, (dtype, shape)), at in zip(self.tensors.items(), self.offsets.values(), strict=True)
        }
        layered = [name for name, (_, shape) in self.tensors.items() if len(shape) == 3]
        bare = json.dumps({"__metadata__": {LAYERED: json.dumps(layered)}, **entries})
        text = json.dumps({"__metadata__": {LAYERED: json.dumps(layered), **metadata}, **entries}).encode()
        length = -(-(len(bare) + self.room) // 8) * 8
        if len(text) > length:
            raise ValueError(f"metadata of {len(text)} bytes for {length} bytes of room")
        return length.to_bytes(8, "little") + text.ljust(length)


def head_of(path: Path) -> tuple[dict[str, Any], int]:
    """The head of a safetensors file and where its data begins. Raises ValueError or OSError where there is none."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= _MOST:
            raise ValueError(f"a head of {length} bytes")
        return dict(json.loads(file.read(length))), 8 + length


def stored_in(path: Path) -> dict[str, Stored]:
    """The tensors of a file that are laid out by layer."""
    head, start = head_of(path)
    names = json.loads(head.get("__metadata__", {}).get(LAYERED, "[]"))
    return {
        name: Stored(path, start + head[name]["data_offsets"][0], head[name]["dtype"], tuple(head[name]["shape"]))
        for name in names
    }
