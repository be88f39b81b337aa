"""Tokenizers of every kind that matters here, built on the spot, with the chat templates of the families that users bring; real models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

Make = Callable[..., PreTrainedTokenizerFast]

TURN = "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
GEMMA_TURN = "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}"
LLAMA_HEAD = "'<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n'"
TEMPLATES = {
    "chatml": "{% for m in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "llama3": "{% set day = strftime_now('%d %b %Y') %}{% for m in messages %}{% if loop.first %}{{ bos_token + 'Today: ' + day }}"
    "{% endif %}{{ " + LLAMA_HEAD + " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
    "{% endif %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}" + GEMMA_TURN + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
    "deaf": "{% for m in messages if m['role'] != 'system' %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "shouting": "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | upper }}{% if m['role'] == 'assistant' %}"
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    "plain": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
    "broken": "{{ raise_exception('this template\nis broken') }}",
}  # fmt: skip
CONTROLS = (
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
BOS, EOS = "<s>", "</s>"


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    """Chat templates by family."""
    return TEMPLATES


@pytest.fixture(scope="session")
def byte_level() -> Make:
    """Byte-level BPE, the space written Ġ, whose merges spell the words given; a word goes before its own endings."""

    def make(*words: str, prefix_space: bool = False) -> PreTrainedTokenizerFast:
        vocab = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        merges: list[tuple[str, str]] = []
        for word in words:
            left = word[0]
            for letter in word[1:]:
                if (left, letter) not in merges:
                    merges.append((left, letter))
                left += letter
                vocab.setdefault(left, len(vocab))
        tokenizer = Tokenizer(models.BPE(vocab, merges))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)

    return make


@pytest.fixture(scope="session")
def word_level() -> Make:
    """Whole words, whatever white space is around them; others are unknown."""

    def make(*words: str, lower: bool = False) -> PreTrainedTokenizerFast:
        vocab = {word: i for i, word in enumerate(["<unk>", *words])}
        tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        if lower:
            tokenizer.normalizer = normalizers.Lowercase()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")

    return make


@pytest.fixture(scope="session")
def marking() -> Make:
    """As sentencepiece makes them: ▁ for a blank and in front of every text, bytes for what is in no piece."""

    def make(*pieces: str) -> PreTrainedTokenizerFast:
        vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
        for piece in ("▁", *pieces):
            for end in range(1, len(piece) + 1):
                vocab.setdefault(piece[:end], len(vocab))
            for letter in piece:
                vocab.setdefault(letter, len(vocab))
        merges = [(piece[:end], piece[end]) for piece in pieces for end in range(1, len(piece))]
        tokenizer = Tokenizer(
            models.BPE(vocab, list(dict.fromkeys(merges)), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")

    return make


@pytest.fixture(scope="session")
def chatty(byte_level: Make) -> Make:
    """Byte-level BPE that puts <s> in front of a text, with the chat template of a family (None: without any)."""

    def make(family: str | None = "chatml", *words: str, bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
        inner: Any = byte_level(*words).backend_tokenizer
        inner.add_special_tokens([AddedToken(token, special=True) for token in (BOS, EOS, *CONTROLS)])
        if bos:
            inner.post_processor = processors.TemplateProcessing(
                single=f"{BOS} $A", special_tokens=[(BOS, inner.token_to_id(BOS))]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            bos_token=BOS,
            eos_token=EOS if eos else None,
            chat_template=TEMPLATES.get(family or ""),
        )

    return make


@pytest.fixture(scope="session")
def real_tokenizer() -> Callable[[str], Any]:
    """The tokenizer of a real model, read from its GGUF file, by the beginning of the file's name."""
    found: dict[str, Any] = {}

    def load(name: str) -> Any:
        folder = Path(os.environ.get("MERA_MODELS", Path(__file__).resolve().parents[3] / "shared" / "models"))
        files = sorted(folder.glob(f"{name}*.gguf"))
        if not files:
            pytest.skip(f"no {name}*.gguf at {folder}; fetch it and set MERA_MODELS")
        pytest.importorskip("gguf")
        if name not in found:
            found[name] = AutoTokenizer.from_pretrained(folder, gguf_file=files[0].name)
        return found[name]

    return load


@pytest.fixture
def example() -> Callable[..., Any]:
    """A row as far as a prompt goes."""
    return lambda prompt, label=0, where="": SimpleNamespace(prompt=prompt, label=label, where=where)
