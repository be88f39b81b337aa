"""The tokenizer: any text comes back, answers are one token, BOS comes first, digits stand alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from merasteer.demo.build import ANSWER_WORDS
from merasteer.demo.corpus import training_pairs
from merasteer.demo.tokenizer import BOS, EOS, train_tokenizer
from merasteer.errors import InvalidInput

TEXTS = [prompt + answer for prompt, answer in training_pairs(2000, 0)]


@pytest.fixture(scope="module", params=["trained", "saved and loaded"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    trained = train_tokenizer(TEXTS, 700, ANSWER_WORDS)
    if request.param == "trained":
        return trained
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    trained.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("word", ANSWER_WORDS)
def test_answer_words_are_one_token_with_their_space(tokenizer: Any, word: str) -> None:
    (token,) = tokenizer.encode(word, add_special_tokens=False)
    assert tokenizer.decode([token]) == word


@pytest.mark.parametrize("word", ANSWER_WORDS)
def test_an_answer_continues_the_prompt_without_merging_into_it(tokenizer: Any, word: str) -> None:
    prompt = TEXTS[0].rpartition(":")[0] + ":"
    assert tokenizer.encode(prompt + word) == tokenizer.encode(prompt) + tokenizer.encode(
        word, add_special_tokens=False
    )


def test_bos_comes_first_and_once(tokenizer: Any) -> None:
    tokens = tokenizer.encode(TEXTS[0])
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens.count(tokenizer.bos_token_id) == 1
    assert (tokenizer.bos_token, tokenizer.eos_token) == (BOS, EOS)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_digits_stand_alone(tokenizer: Any) -> None:
    assert [tokenizer.decode([t]) for t in tokenizer.encode("4071", add_special_tokens=False)] == list("4071")


@pytest.mark.parametrize(
    "text", ["", " two  blanks ", "line\nbreak\ttab", "Grüße, 你好 🎉", "\x00\x85\ufeff", TEXTS[1]]
)
def test_any_text_comes_back(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_a_chat_of_one_message_is_that_prompt(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": TEXTS[0]}]
    assert tokenizer.apply_chat_template(chat, return_dict=False) == tokenizer.encode(TEXTS[0])
    two = tokenizer.apply_chat_template([*chat, {"role": "user", "content": "Hi"}], tokenize=False)
    assert two == f"{BOS}{TEXTS[0]}\nHi"


def test_vocabulary_is_kept_and_the_same_texts_give_the_same_tokenizer(tokenizer: Any) -> None:
    assert len(tokenizer) == 700
    again = train_tokenizer(TEXTS, 700, ANSWER_WORDS)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_a_word_of_several_tokens_is_an_error() -> None:
    with pytest.raises(InvalidInput, match=r"words: ' zebra' is \d+ tokens, not one"):
        train_tokenizer(TEXTS, 700, [" zebra"])
