"""The configuration that a GGUF file's metadata state: every key has a field, or the file is refused by the key's name.

A key that is dropped in silence is another model: a rope that is scaled in training and not here, a window, a soft cap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from merasteer.errors import UnsupportedModel

__all__ = ["ARCHITECTURES", "configuration"]

# What llama.cpp calls it -> the library's model type. A Mistral is a "llama" there, and computes the same.
ARCHITECTURES = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3", "gemma2": "gemma2", "gemma3": "gemma3_text", "gpt2": "gpt2",
}  # fmt: skip

FIELDS = {  # of the library, by the metadata's key
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.dimension_count": "head_dim",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "vocab_size": "vocab_size",
}
ROPE = {  # parameters of the rotary positions, by the metadata's key
    "rope.freq_base": "rope_theta", "rope.freq_base_swa": "windowed", "rope.scaling.type": "rope_type", "rope.scaling.factor": "factor",
}  # fmt: skip
NEEDED = ("max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads")
RENAMED = {"gpt2": {"intermediate_size": "n_inner"}}  # where an architecture's field has another name
DEFAULTS: dict[str, dict[str, Any]] = {"qwen2": {"use_sliding_window": False}, "qwen3": {"use_sliding_window": False}}
LARGEST = {"gemma2": 46, "gemma3": 62}  # blocks of the 27 B, whose attention is scaled by width / heads; no key says so
IDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}


def configuration(
    name: str, metadata: Mapping[str, Any], *, rows: int, tied: bool, factors: np.ndarray[Any, Any] | None = None
) -> Any:
    """The library's configuration. rows: of the embedding. tied: no output matrix of its own. factors: what each rotary
    wavelength is stretched by.

    Raises UnsupportedModel naming what has no place in it.
    """
    from transformers import AutoConfig

    architecture = metadata["general.architecture"]
    stated = _stated(name, metadata)
    if (
        not all(isinstance(stated.get(field), int) for field in NEEDED)
        or not {"rms_norm_eps", "layer_norm_epsilon"} & stated.keys()
    ):
        raise UnsupportedModel(f"model: {name!r} does not state its sizes; convert it again with a recent llama.cpp")
    heads = stated["num_attention_heads"]
    rope = {field: stated.pop(field) for field in ROPE.values() if field in stated}
    width = stated.get("head_dim", stated["hidden_size"] // heads)
    if not hasattr(AutoConfig.for_model(ARCHITECTURES[architecture]), "head_dim"):
        stated.pop("head_dim", None)
        if width * heads != stated["hidden_size"]:
            raise _refusal(name, f"{architecture}.attention.key_length or rope.dimension_count")
    if architecture.startswith("gemma"):
        largest = stated["num_hidden_layers"] == LARGEST[architecture]
        stated["query_pre_attn_scalar"] = stated["hidden_size"] // heads if largest else width
    config = AutoConfig.for_model(
        ARCHITECTURES[architecture],
        tie_word_embeddings=tied,
        **{**DEFAULTS.get(architecture, {}), **stated, "vocab_size": rows},
        **{field: metadata.get(f"tokenizer.ggml.{key}") for key, field in IDS.items()},
    )
    _set_rope(name, config, rope, factors)
    return config


def _stated(name: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that the metadata give values to."""
    architecture = metadata["general.architecture"]
    renamed = RENAMED.get(architecture, {})
    stated: dict[str, Any] = {}
    for key, value in metadata.items():
        prefix, _, rest = key.partition(".")
        if prefix != architecture or (rest == "rope.scaling.type" and value == "none"):
            continue
        field = FIELDS.get(rest, ROPE.get(rest))
        field = renamed.get(field, field) if field is not None else None
        short = float(str(np.float32(value))) if isinstance(value, float) else value  # 1e-05, not 9.999999747378752e-06
        if field is None or stated.setdefault(field, short) != short:
            raise _refusal(name, key)
    known = _known(architecture)
    for field in stated:
        if field not in known:
            raise _refusal(name, f"{architecture}.{next(key for key, of in (FIELDS | ROPE).items() if of == field)}")
    return stated


def _known(architecture: str) -> set[str]:
    """The fields that the library's class reads, and those that are checked here instead."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(ARCHITECTURES[architecture])
    known = {field for field in {*FIELDS.values(), "n_inner"} if hasattr(config, field)}
    if getattr(config, "rope_parameters", None) is None:
        return known
    windowed = {"windowed"} if "full_attention" in config.rope_parameters else set()
    return known | {"head_dim", "rope_theta", "rope_type", "factor"} | windowed


def _set_rope(name: str, config: Any, stated: Mapping[str, Any], factors: np.ndarray[Any, Any] | None) -> None:
    """Changes `config`: base and scaling, and the stretching of Llama 3.1 and later, which a file holds as factors and nothing else."""
    rope = getattr(config, "rope_parameters", None)
    if rope is None:
        return
    own = rope.get("full_attention", rope)  # Gemma 3: the windowed layers have a base of their own, and no scaling
    own["rope_theta"] = stated.get("rope_theta", 10000.0)  # llama.cpp's default
    if "windowed" in stated:
        rope["sliding_attention"]["rope_theta"] = stated["windowed"]
    if "rope_type" in stated or "factor" in stated:
        if stated.get("rope_type") != "linear" or "factor" not in stated:
            raise _refusal(name, f"a rope scaled as {stated.get('rope_type')!r}")
        own.update(rope_type="linear", factor=stated["factor"])
    if factors is None:
        return
    stretched = {
        "rope_type": "llama3", "rope_theta": own["rope_theta"], "factor": float(factors.max()), "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    if (
        own is not rope
        or "factor" in stated
        or not np.allclose(_factors(config.head_dim, stretched), factors, rtol=1e-4)
    ):
        raise _refusal(name, "rope_freqs.weight")
    config.rope_parameters = stretched


def _factors(width: int, rope: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """What llama.cpp's conversion writes for these parameters."""
    wavelengths = 2 * torch.pi * rope["rope_theta"] ** (np.arange(0, width, 2, dtype=np.float64) / width)
    context, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (context / wavelengths - low) / (high - low)
    between = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return np.where(wavelengths < context / high, 1.0, np.where(wavelengths > context / low, rope["factor"], between))


def _refusal(name: str, key: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"model: {name!r} states {key}, which is not read from GGUF, so it would be another model; use its safetensors checkpoint"
    )
