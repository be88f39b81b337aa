"""Reading a GGUF checkpoint: its configuration, and its values dequantised, as a folder's safetensors would hold them.

transformers' own parts do the work: its reader of the metadata, its map of names, what it undoes of the conversion's layout. Its
`from_pretrained(folder, gguf_file=…)` puts them together in another way: it parses the file once more for each part (a minute for 630 M
parameters), drops in silence whatever it has no field for, and returns a model that counts as quantised. A test compares the two,
value by value. The tokenizer is in gguf_tokenizer.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from merasteer.engine.checkpoints import check_pointer
from merasteer.engine.gguf_config import ARCHITECTURES, configuration
from merasteer.engine.hub import first_line
from merasteer.errors import InvalidInput, UnsupportedModel

__all__ = ["GgufFile", "is_gguf", "open_gguf"]

EMBEDDING = "token_embd.weight"
ROPE_FACTORS = "rope_freqs.weight"  # read into the configuration


class Stored(NamedTuple):
    """One tensor as it lies in the file. shape: torch's order. start: of its bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True, eq=False)
class _Outline:
    """What the library's map of names asks of a model. It would go through every module inside, too: seconds, for names of trunks."""

    config: Any
    names: Mapping[str, torch.Tensor]

    def state_dict(self) -> Mapping[str, torch.Tensor]:
        return self.names

    def named_children(self) -> tuple[()]:
        return ()


@dataclass(frozen=True, eq=False)
class GgufFile:
    """A file whose header has been read and found whole. metadata: its keys, the vocabulary and the merges in full."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it."""
        return str(self.metadata["general.architecture"])

    def config(self) -> Any:
        """The model's configuration. Raises UnsupportedModel where the file says more than it can hold."""
        factors = self._values(self.tensors[ROPE_FACTORS]) if ROPE_FACTORS in self.tensors else None
        tied, rows = "output.weight" not in self.tensors, self.tensors[EMBEDDING].shape[0]
        return configuration(self.path.name, self.metadata, rows=rows, tied=tied, factors=factors)

    def state_dict(self, config: Any) -> dict[str, torch.Tensor]:
        """Every tensor in float32, by the library's names and in its layout.

        Raises UnsupportedModel naming those that the library has no place for.
        """
        return dict(self.tensors_of(config))

    def tensors_of(self, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
        """The same, one after the other."""
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
        from transformers.modeling_gguf_pytorch_utils import (
            TENSOR_PROCESSORS,
            TensorProcessor,
            get_gguf_hf_weights_map,
        )

        processor = TENSOR_PROCESSORS.get(self.architecture, TensorProcessor)(config=config.to_dict())
        with torch.device("meta"):
            outline = _Outline(config, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config).state_dict())
        names = get_gguf_hf_weights_map(outline, processor)
        left = []
        for stored in self.tensors.values():
            found: dict[str, torch.Tensor] = {}
            done = processor.process(
                weights=self._values(stored),
                name=stored.name,
                tensor_key_mapping=names,
                parsed_parameters={"tensors": found},
            )
            if done.name in names:
                found[names[done.name]] = torch.from_numpy(np.ascontiguousarray(done.weights))
            elif done.name is not None and stored.name != ROPE_FACTORS:
                left.append(stored.name)
            yield from found.items()
        if left:
            raise UnsupportedModel(
                f"model: {self.path.name!r} holds tensors that {type(config).__name__} has no place for "
                f"({', '.join(left[:3])}{', …' if len(left) > 3 else ''}; {len(left)} in all); use its safetensors checkpoint"
            )

    def _values(self, stored: Stored) -> np.ndarray[Any, Any]:
        """A tensor in float32, its own memory."""
        from gguf import GGMLQuantizationType, dequantize
        from gguf.quants import quant_shape_to_byte_shape

        raw = np.memmap(self.path, mode="r", dtype=np.uint8, offset=stored.start, shape=(stored.size,))
        kind = GGMLQuantizationType(stored.kind)
        if kind == GGMLQuantizationType.F32:
            return np.array(raw).view(np.float32).reshape(stored.shape)
        try:
            if kind == GGMLQuantizationType.F16:
                return np.array(raw).view(np.float16).astype(np.float32).reshape(stored.shape)
            packed = np.array(raw).reshape(quant_shape_to_byte_shape(stored.shape, kind))
            return np.asarray(dequantize(packed, kind), dtype=np.float32).reshape(stored.shape)
        except (NotImplementedError, ValueError) as error:
            raise UnsupportedModel(
                f"model: {self.path.name!r} stores {stored.name} as {kind.name}, which cannot be dequantised "
                f"({first_line(error)}); use another quantisation, such as Q8_0 or Q4_K_M"
            ) from error


def is_gguf(model: str | Path) -> bool:
    """Whether a model is named as a GGUF file."""
    return str(model).lower().endswith(".gguf") and not Path(model).is_dir()


def open_gguf(path: Path) -> GgufFile:
    """A GGUF file, checked as far as its header goes. Raises InvalidInput or UnsupportedModel in one line with what to do."""
    if not path.is_file():
        raise InvalidInput(f"model: no such file {str(path)!r}; give a .gguf file, a model folder or a hub id")
    if find_spec("gguf") is None:
        raise InvalidInput(f"model: {path.name!r} needs the package gguf; pip install 'mera-server[gguf]'")
    with path.open("rb") as file:
        start = file.read(32)
    check_pointer(path.name, start)
    if not start:
        raise InvalidInput(f"model: {path.name!r} is empty; download it again")
    if start[:4] != b"GGUF":
        raise InvalidInput(f"model: {path.name!r} is no GGUF file; download it again, or give a model folder")
    metadata, tensors = _header(path)
    _check(path.name, metadata)
    if EMBEDDING not in tensors:
        raise UnsupportedModel(f"model: {path.name!r} holds a vocabulary and no weights; give the model's own file")
    return GgufFile(path, metadata, tensors)


def _header(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from transformers.integrations.gguf import reader

    try:
        blob = np.memmap(path, mode="r", dtype=np.uint8)
        wanted = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
        metadata, count, position = reader._read_metadata(blob, path.name, wanted)
        table, position = reader._read_tensor_table(blob, count, position)
    except ValueError as error:
        if not isinstance(error, UnicodeDecodeError) and len(blob) > 1024:
            raise InvalidInput(
                f"model: {path.name!r} cannot be read ({first_line(error)}); convert it again with a recent llama.cpp"
            ) from error
        raise _damaged(path.name) from error
    except (struct.error, IndexError, KeyError, MemoryError, OverflowError) as error:
        raise _damaged(path.name) from error
    alignment = int(metadata.get("general.alignment", 32))
    begin = (position + alignment - 1) // alignment * alignment
    tensors = {}
    for name, shape, kind, offset in table:
        try:
            elements, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError) as error:
            raise UnsupportedModel(
                f"model: {path.name!r} stores {name} as type {kind}, which this version of the package gguf does not know; "
                "use another quantisation, such as Q8_0 or Q4_K_M"
            ) from error
        stored = Stored(name, tuple(shape), kind, begin + offset, prod(shape) // elements * size)
        if stored.start + stored.size > len(blob):
            raise _damaged(path.name)
        tensors[name] = stored
    return metadata, tensors


def _damaged(name: str) -> InvalidInput:
    return InvalidInput(f"model: {name!r} is cut off or damaged; download it again")


def _check(name: str, metadata: Mapping[str, Any]) -> None:
    """Raises UnsupportedModel for what is no whole language model that the engine steers."""
    architecture = metadata["general.architecture"]
    if metadata.get("general.type", "model") != "model":
        raise UnsupportedModel(f"model: {name!r} is of type {metadata['general.type']!r}; give the model's own file")
    if int(metadata.get("split.count", 1)) > 1:
        raise UnsupportedModel(
            f"model: {name!r} is one of {metadata['split.count']} parts; join them with llama-gguf-split --merge"
        )
    if architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"model: {name!r} is of architecture {architecture!r}, which is not read from GGUF; "
            f"use one of {', '.join(sorted(ARCHITECTURES))}, or a safetensors checkpoint"
        )
    if not isinstance(metadata.get("tokenizer.ggml.tokens"), list):
        raise UnsupportedModel(
            f"model: {name!r} holds no tokenizer; convert the model again with its tokenizer beside it"
        )
