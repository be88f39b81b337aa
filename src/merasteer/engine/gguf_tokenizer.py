"""The tokenizer and the end tokens that a GGUF file's metadata describe.

transformers' own converter builds it. What it leaves out is put right here, because another cut of a text is another prompt: ways of
splitting that it does not know and passes over in silence, the normal form of Qwen's, and the two things that Llama 3 does differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merasteer.errors import UnsupportedModel

__all__ = ["end_token_ids", "tokenizer_of"]

CONTROL = 3  # type of a token that is no text
PLAIN = (
    "gpt-2",
    "gpt2",
    "default",
)  # of a byte-level vocabulary: split as GPT-2 does, which is the converter's default
DIGITS = ("smollm", "starcoder", "refact", "command-r")  # GPT-2's split behind one of every digit by itself
COMPOSED = ("qwen2", "qwen35")  # text is composed (NFC) first
WHOLE = ("llama3", "llama-v3", "llama-bpe", "tekken")  # a word that is a token is one, whatever the merges say
LLAMA3 = ("llama3", "llama-v3", "llama-bpe")  # begins with BOS unless the file says otherwise

# Control tokens that end an answer wherever a vocabulary has them: llama.cpp's list, for what our architectures use.
ENDS = (
    "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>",
)  # fmt: skip
END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_of(name: str, metadata: Mapping[str, Any]) -> Any:
    """The tokenizer, its chat template with it. Raises UnsupportedModel for one that cannot be rebuilt faithfully."""
    from tokenizers import normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.gguf import gguf_tokenizer_mapping as library

    kind, split = metadata.get("tokenizer.ggml.model"), str(metadata.get("tokenizer.ggml.pre", "default"))
    known = split in (*PLAIN, *DIGITS, *library.GGUF_PRE_TOKENIZER_SPLITS)
    gemma = str(metadata["general.architecture"]).startswith("gemma")  # whose tokenizer puts no space in front
    unspaced = kind == "llama" and not gemma and metadata.get("tokenizer.ggml.add_space_prefix") is False
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and not known) or unspaced:
        way = "no space in front" if unspaced else split
        raise UnsupportedModel(
            f"model: {name!r} cuts text in a way that is not known here ({kind}, {way}); use its safetensors checkpoint"
        )
    parts = {
        group: {field: metadata[f"tokenizer.{key}"] for key, field in keys.items() if f"tokenizer.{key}" in metadata}
        for group, keys in library.GGUF_TOKENIZER_MAPPING.items()
    }
    backend, _ = library.convert_gguf_tokenizer(metadata["general.architecture"], parts["tokenizer"])
    if kind == "gpt2" and split in DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if kind == "gpt2" and split in COMPOSED:
        backend.normalizer = normalizers.NFC()
    if kind == "gpt2" and split in WHOLE:
        backend.model.ignore_merges = True
    begins = kind == "llama" or split in LLAMA3
    tokens = metadata["tokenizer.ggml.tokens"]
    special = {
        field: tokens[metadata[f"tokenizer.ggml.{key}"]]
        for field, key in library._SPECIAL_TOKENS.items()
        if metadata.get(f"tokenizer.ggml.{key}") is not None
    }
    settings = {"add_bos_token": begins, **parts["tokenizer_config"], **special}
    missing = {field: None for field in ("bos_token", "eos_token") if field not in special}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings, **missing)


def end_token_ids(metadata: Mapping[str, Any]) -> list[int]:
    """What ends an answer: the tokens that the metadata name as ends, and every control token that is known as one."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type") or []
    named = [metadata.get(f"tokenizer.ggml.{key}") for key in END_KEYS]
    known = {token: number for number, (token, kind) in enumerate(zip(tokens, kinds, strict=False)) if kind == CONTROL}
    ids = [*(number for number in named if number is not None), *(known[end] for end in ENDS if end in known)]
    return sorted(dict.fromkeys(int(number) for number in ids))
