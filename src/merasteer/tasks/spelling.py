"""Spellings as token sequences."""

from __future__ import annotations

from merasteer.tasks.chat import Tokenizer, controls
from merasteer.types import MAX_LABEL_TOKENS, Tokens

__all__ = ["not_text", "sequences", "usable"]

_ANCHOR = "\n"


def sequences(spelling: str, tokenizer: Tokenizer) -> tuple[Tokens, ...]:
    """The ways in which the tokenizer writes `spelling`, mostly one.

    A tokenizer of the sentencepiece kind puts a word-start marker in front of whatever it is given, so that "ham" alone becomes what
    " ham" is inside a text. Such a one writes "ham" in two ways, with its marker and without, and " ham" with one marker, not two.
    """
    alone = _encode(spelling, tokenizer)
    anchor, whole = _encode(_ANCHOR, tokenizer), _encode(_ANCHOR + spelling, tokenizer)
    inside = whole[len(anchor) :] if anchor and whole[: len(anchor)] == anchor else alone
    if not inside or inside == alone:
        return (alone,)
    return (inside,) if spelling[:1].isspace() else (alone, inside)


def usable(tokens: Tokens, never: frozenset[int | None]) -> bool:
    """Whether the sequence can be an answer: some tokens but not too many, and none of `never`."""
    return 1 <= len(tokens) <= MAX_LABEL_TOKENS and never.isdisjoint(tokens)


def not_text(tokenizer: Tokenizer) -> frozenset[int | None]:
    """Tokens that are no part of an answer: the unknown one, and those that end or frame a text."""
    return controls(tokenizer) | {tokenizer.unk_token_id}


def _encode(text: str, tokenizer: Tokenizer) -> Tokens:
    return tuple(tokenizer.encode(text, add_special_tokens=False))
