"""Loading a causal language model and its tokenizer, from a folder or a hub, ready for the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from merasteer.engine.layers import decoder_layers, family_of
from merasteer.errors import InvalidInput, UnsupportedModel

__all__ = ["LoadedModel", "load_model", "wrap_model"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode, its tokenizer, and the facts that artifacts are checked against.

    folder: where the weight files lie (None for a model made in memory). context: the longest sequence, in tokens.
    """

    model: Any
    tokenizer: Any
    id: str
    folder: Path | None
    architecture: str
    layers: int
    width: int
    vocab: int
    context: int
    dtype: str
    attention: str
    device: str


def load_model(id_or_dir: str | Path, *, dtype: str = "auto", device: str = "auto") -> LoadedModel:
    """The model named by a local folder or a hub id. Remote code is never run.

    dtype: auto (float32 on a CPU, the checkpoint's elsewhere) | float32 | bfloat16 | float16. device: auto | cpu | cuda[:n].
    Raises UnsupportedModel where the architecture is not in the hook table, InvalidInput where it cannot be loaded.
    """
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    target = _device(device)
    folder = Path(id_or_dir)
    if not folder.is_dir() and (
        folder.is_absolute() or str(id_or_dir).startswith(".") or str(id_or_dir).count("/") > 1
    ):
        raise InvalidInput(
            f"model: no such folder {str(id_or_dir)!r}; give a model folder or a hub id such as owner/name"
        )
    try:
        if not folder.is_dir():
            folder = Path(
                snapshot_download(str(id_or_dir), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model"])
            )
        AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=_dtype(dtype, target))
    except InvalidInput:
        raise
    except Exception as error:
        first = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InvalidInput(
            f"model: {str(id_or_dir)!r} cannot be loaded ({first}); give a model folder or a reachable hub id"
        ) from error
    model_id = Path(id_or_dir).resolve().name if Path(id_or_dir).is_dir() else str(id_or_dir)
    return wrap_model(model.to(target), tokenizer, model_id, folder)


def wrap_model(model: Any, tokenizer: Any, model_id: str, folder: Path | None = None) -> LoadedModel:
    """A model that is already in memory, as the engine takes it. Sets evaluation mode and freezes the parameters."""
    family_of(model)
    model.eval().requires_grad_(False)
    config = model.config.get_text_config()
    if len(decoder_layers(model)) != config.num_hidden_layers:
        raise UnsupportedModel(
            f"model: {type(model).__name__} has {len(decoder_layers(model))} blocks, its config {config.num_hidden_layers}"
        )
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        id=model_id,
        folder=folder,
        architecture=type(model).__name__,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        dtype=str(model.dtype).removeprefix("torch."),
        attention=str(model.config._attn_implementation),
        device=str(model.device),
    )


def _device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise InvalidInput(f"device: {device!r} is not a device; use auto, cpu or cuda") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput(f"device: {device!r} was asked for and no CUDA device is there; use cpu")
    return target


def _dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in _DTYPES:
        raise InvalidInput(f"dtype: {dtype!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]
