"""Which tokens answer for which label, with tokenizers built here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from merasteer.errors import BadTask
from merasteer.tasks import resolve
from merasteer.types import Task

TASK = Task("spam", ("ham", "spam"), (("ham", " ham", "Ham"), ("spam", " spam")), "{text}")


def byte_level(*words: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE, the space written Ġ, whose merges spell `words`; a word goes before its own endings."""
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
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def word_level(*words: str, lower: bool = False) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if lower:
        tokenizer.normalizer = normalizers.Lowercase()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_variants_of_several_tokens_are_dropped():
    tokenizer = byte_level("Ġham", "Ġspam", "spam")
    served = resolve(TASK, tokenizer)
    assert [[tokenizer.decode([token]) for token in ids] for ids in served.variants] == [[" ham"], ["spam", " spam"]]
    assert (served.name, served.labels, served.template) == ("spam", ("ham", "spam"), "{text}")
    assert (served.position, served.max_new_tokens) == ("last", 1)


def test_spellings_of_one_token_count_once():
    assert resolve(TASK, word_level("ham", "spam")).variants == ((1,), (2,))


def test_a_label_of_unknown_tokens_is_refused():
    with pytest.raises(BadTask, match=r"task 'spam': variants.spam: none of 'spam', ' spam' is a single token"):
        resolve(TASK, word_level("ham"))


def test_a_label_of_long_spellings_is_refused():
    with pytest.raises(BadTask, match=r"variants.ham: none of 'ham', ' ham', 'Ham' is a single token"):
        resolve(TASK, byte_level("spam"))


def test_a_token_claimed_twice_is_refused_naming_both():
    task = replace(TASK, labels=("no", "yes", "NO"), variants=(("no",), ("yes",), (" NO",)))
    with pytest.raises(BadTask, match=r"labels 'no' and 'NO' both claim token 1 \(' NO'\)"):
        resolve(task, word_level("no", "yes", lower=True))


def test_special_tokens_are_not_added():
    tokenizer = byte_level("Ġham", "Ġspam")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    assert all(tokenizer.bos_token_id not in ids for ids in resolve(TASK, tokenizer).variants)
