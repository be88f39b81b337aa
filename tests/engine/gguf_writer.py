"""Writes a tiny model as llama.cpp's conversion would: its names, its layout, its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

gguf = pytest.importorskip("gguf", reason="needs the extra mera-server[gguf]")

LETTERS = list(transformers.convert_slow_tokenizer.bytes_to_unicode().values())
MERGES = ["t h", "th e", "Ġ the", "i n", "a n", "an d", "Ġ and", "Ġ Ġ", "e r", "o n", "r e", "h e"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def write_gguf(
    path: Path,
    model: Any,
    family: str,
    more: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray[Any, Any]] | None = None,
    drop: str = "",
) -> None:
    """A GGUF file at `path`. more: metadata to add or (None) to leave out. tensors: to add. drop: one to leave out."""
    config, writer = model.config, gguf.GGUFWriter(path, family)
    tokens = [*LETTERS, *(merge.replace(" ", "") for merge in MERGES)]
    tokens += [f"[PAD{i}]" for i in range(config.vocab_size - len(tokens) - len(CONTROL))] + CONTROL
    kinds = [1] * (len(LETTERS) + len(MERGES)) + [5] * (len(tokens) - len(LETTERS) - len(MERGES) - 3) + [3] * 3
    end = len(tokens) - 1
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 1e6 if family == "gemma3" else None)
    epsilon = "layer_norm_epsilon" if family == "gpt2" else "layer_norm_rms_epsilon"
    heads = config.num_attention_heads
    facts: dict[str, Any] = {
        f"{family}.context_length": config.max_position_embeddings,
        f"{family}.embedding_length": config.hidden_size,
        f"{family}.block_count": config.num_hidden_layers,
        f"{family}.feed_forward_length": 96,
        f"{family}.attention.head_count": heads,
        f"{family}.attention.{epsilon}": getattr(config, "rms_norm_eps", None) or 1e-5,
        **({} if family == "gpt2" else {f"{family}.attention.head_count_kv": config.num_key_value_heads}),
        **({f"{family}.attention.key_length": config.head_dim} if hasattr(config, "head_dim") else {}),
        **({f"{family}.rope.freq_base": theta} if theta else {}),
        **({f"{family}.attention.sliding_window": 16} if "gemma" in family else {}),
        **({f"{family}.attn_logit_softcapping": 20.0} if family == "gemma2" else {}),
        **({f"{family}.final_logit_softcapping": 10.0} if family == "gemma2" else {}),
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.merges": MERGES, "tokenizer.ggml.bos_token_id": end - 1,
        "tokenizer.ggml.eos_token_id": end, "tokenizer.ggml.padding_token_id": end - 2, "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    for key, value in {**facts, **(more or {})}.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif value is not None:
            {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    names = gguf.get_tensor_name_map(
        next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == family), config.num_hidden_layers
    )
    for full, value in model.state_dict().items():
        if full == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stem, _, leaf = full.rpartition(".")
        name = f"{names.get_name(stem)}.{leaf}"
        if name != drop:
            writer.add_tensor(name, _as_llama_cpp(family, name, value.numpy(), config))
    for name, value in (tensors or {}).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _as_llama_cpp(family: str, name: str, value: np.ndarray[Any, Any], config: Any) -> np.ndarray[Any, Any]:
    """Its layout: Llama's rotary halves interleaved, Gemma's norms with the one that is added, GPT-2's matrices turned."""
    if family == "llama" and ("attn_q." in name or "attn_k." in name):
        heads = config.num_attention_heads if "attn_q." in name else config.num_key_value_heads
        value = value.reshape(heads, 2, value.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(value.shape)
    if family.startswith("gemma") and name.endswith("norm.weight"):
        value = value + 1
    if family == "gpt2" and value.ndim == 2 and name.startswith("blk."):
        value = value.T
    return np.ascontiguousarray(value)
