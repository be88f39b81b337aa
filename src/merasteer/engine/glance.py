"""A model looked at before it is loaded: configuration and tokenizer, the weights' files by their headers. Seconds, no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merasteer.engine.checkpoints import check_folder, check_weights, quiet
from merasteer.engine.gguf import is_gguf, open_gguf
from merasteer.engine.gguf_tokenizer import tokenizer_of
from merasteer.engine.hub import first_line
from merasteer.engine.layers import ARCHITECTURES
from merasteer.engine.loading import architecture_of, source_of
from merasteer.engine.rope import context_of
from merasteer.errors import InvalidInput, MeraError
from merasteer.types import HookPoint

__all__ = ["Glance", "glance"]


@dataclass(frozen=True, eq=False)
class Glance:
    """What loading the model would give. hook_points: those of its architecture."""

    tokenizer: Any
    architecture: str
    layers: int
    context: int
    hook_points: tuple[HookPoint, ...]


def glance(id_or_dir: str | Path) -> Glance:
    """Of a folder, a GGUF file or a hub id; a hub's files are fetched. Raises what `load_model` would raise for them."""
    try:
        with quiet():
            config, tokenizer = _read(source_of(id_or_dir))
    except MeraError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"model: {str(id_or_dir)!r} cannot be loaded ({first_line(error)}); "
            "give a folder or repository that holds config.json, safetensors and a tokenizer"
        ) from error
    name, text = architecture_of(config), config.get_text_config()
    sites = tuple(ARCHITECTURES[name].sites)
    return Glance(tokenizer, name, text.num_hidden_layers, context_of(config), sites)


def _read(source: Path) -> tuple[Any, Any]:
    """Configuration and tokenizer."""
    from transformers import AutoConfig, AutoTokenizer

    if is_gguf(source):
        file = open_gguf(source)
        return file.config(), tokenizer_of(source.name, file.metadata)
    check_folder(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    architecture_of(config)
    check_weights(source)
    return config, AutoTokenizer.from_pretrained(source, trust_remote_code=False)
