"""From text to tokens and back: one decoder for every answer, whether it is streamed, stopped or neither.

A token is decoded when it comes and never again: what it adds are bytes, which depend on the token before it at most, and the bytes of
an answer become characters as they get complete.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

from merasteer.engine.stops import Stops, Symbol

__all__ = ["Pieces", "TextStream", "encode"]

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_KEPT = 2**16  # pairs of tokens whose piece is remembered
_PLAIN = (*range(33, 127), *range(161, 173), *range(174, 256))
# The characters that byte-level tokenizers write bytes as: printable ones stand for themselves, the others from U+0100 on.
_LETTERS = {chr(byte): byte for byte in _PLAIN} | {
    chr(256 + count): byte for count, byte in enumerate(sorted(set(range(256)) - set(_PLAIN)))
}
_BYTE = re.compile("<0x([0-9A-F]{2})>")  # and how the others write a byte that is part of no token
_EACH_BYTE = "merasteer.each_byte"


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return _BROKEN * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _each_byte)


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a prompt, special tokens added as the tokenizer does."""
    return tuple(tokenizer.encode(text))


class Pieces:
    """What the tokens of one tokenizer are in text; what was found out is remembered. For any number of streams, on any thread."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.behind = lru_cache(_KEPT)(self._behind)
        self.skipped = lru_cache(_KEPT)(self._skipped)
        self._alone = lru_cache(_KEPT)(self._decoded)

    def last(self, tokens: Sequence[int]) -> int | None:
        """The last token that is not skipped, None where all are: what follows then begins the text."""
        return next((token for token in reversed(tokens) if not self.skipped(token)), None)

    def symbols(self, stop: str) -> list[Symbol]:
        """The characters of a stop string, and in place of each special token's text its id."""
        found: list[Symbol] = []
        at = 0
        while at < len(stop):
            sizes = self._sizes.get(stop[at], ())
            size = next((size for size in sizes if stop[at : at + size] in self._specials), 1)
            found.append(self._specials.get(stop[at : at + size], stop[at]))
            at += size
        return found

    @cached_property
    def errors(self) -> str:
        """How bytes that are no character are read: each a mark of its own where bytes are tokens, else one mark for what was begun.

        So do the tokenizers: sentencepiece in the one case, Unicode's recommendation (and HF's byte-level decoder) in the other.
        """
        return _EACH_BYTE if self._has_bytes else "replace"

    @cached_property
    def _has_bytes(self) -> bool:
        """Whether tokens such as <0xC3> are read as bytes."""
        names = ["<0xC3>", "<0xA9>"]
        pair = self._tokenizer.convert_tokens_to_ids(names)
        known = None not in pair and self._tokenizer.convert_ids_to_tokens(pair) == names
        return known and "é" in self._decoded(*pair)

    @cached_property
    def _specials(self) -> dict[str, int]:
        """The special tokens by their texts; some tokenizers have thousands."""
        added = {token: each.content for token, each in self._tokenizer.added_tokens_decoder.items() if each.special}
        named = {token: self._tokenizer.convert_ids_to_tokens(token) for token in self._tokenizer.all_special_ids}
        return {text: token for token, text in (added | named).items() if text}

    @cached_property
    def _sizes(self) -> dict[str, list[int]]:
        """How long the special tokens' texts are by their first character, the longest first."""
        sizes: dict[str, set[int]] = {}
        for text in self._specials:
            sizes.setdefault(text[0], set()).add(len(text))
        return {first: sorted(each, reverse=True) for first, each in sizes.items()}

    def _skipped(self, token: int) -> bool:
        """Whether it never is text: a special token, or one that the tokenizer does not have."""
        unknown = self._tokenizer.convert_ids_to_tokens(token) is None
        return unknown or (not self._alone(token) and self._decoded(token, skip=False) != "")

    def _behind(self, previous: int | None, token: int) -> bytes:
        """What a token adds behind another one; behind None, at the beginning of a text."""
        alone, raw = self._alone(token), self._raw(token)
        if raw is not None and (previous is not None or _BROKEN in alone):
            return raw
        if previous is None:
            return alone.encode()
        head, whole = self._alone(previous), self._decoded(previous, token)
        return (whole[len(head) :] if whole.startswith(head) else alone).encode()

    def _raw(self, token: int) -> bytes | None:
        """The bytes of a token that is a byte, or that holds part of a character; None for one that is text."""
        name = self._tokenizer.convert_ids_to_tokens(token)
        if self._has_bytes and (byte := _BYTE.fullmatch(name)):
            return bytes.fromhex(byte[1])
        alone = self._alone(token)
        if _BROKEN not in alone or not all(letter in _LETTERS for letter in name):
            return None
        raw = bytes(_LETTERS[letter] for letter in name)
        return raw if raw.decode("utf-8", "replace") == alone else None

    def _decoded(self, *tokens: int, skip: bool = True) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip, clean_up_tokenization_spaces=False))


class TextStream:
    """The text of what follows a prompt, token by token, up to the first stop string in it. Mutated by `push` and `finish`.

    The first stop string is the one that is complete first; of those that end with the same character, the longest. Special tokens are
    no part of the text; a stop string that holds the text of some is found where these tokens come.
    """

    def __init__(self, pieces: Pieces, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.stopped = False  # whether a stop string has been seen
        self.released = 0  # characters that `push` has returned
        self._pieces, self._previous = pieces, pieces.last(prompt)
        self._characters = codecs.getincrementaldecoder("utf-8")(pieces.errors)
        self._said: list[str] = []
        self._open = ""  # what may begin a stop string
        self._runs: list[
            Stops
        ] = []  # over the text; over the text with the special tokens in it, if a stop string asks for some
        if stop:
            marked = [symbols for symbols in map(pieces.symbols, stop) if any(isinstance(one, int) for one in symbols)]
            self._runs = [Stops(stop), *([Stops(marked)] if marked else ())]

    def push(self, token: int) -> str:
        """Takes one token; returns the text that became certain: neither half a character nor what may begin a stop string.

        What it returns joins to the beginning of `finish`'s text. Nothing behind a stop string.
        """
        if self.stopped:
            return ""
        if self._pieces.skipped(token):
            self._ends(token, len(self._open))
        else:
            self._add(self._characters.decode(self._pieces.behind(self._previous, token)))
            self._previous = token
        held = 0 if self.stopped else max((run.held for run in self._runs), default=0)
        certain = self._open[: len(self._open) - held]
        self._open = self._open[len(certain) :]
        self._said.append(certain)
        self.released += len(certain)
        return certain

    def finish(self) -> str:
        """All the text; what is left of a character that was cut is marked as such, and may complete a stop string."""
        if not self.stopped:
            self._add(self._characters.decode(b"", True))
        return "".join([*self._said, self._open])

    def _add(self, new: str) -> None:
        before = len(self._open)
        self._open += new
        for end, character in enumerate(new if self._runs else "", before + 1):
            if self._ends(character, end):
                return

    def _ends(self, symbol: Symbol, end: int) -> bool:
        """Whether a stop string ends with a symbol; cuts the text before it. end: characters of `_open` up to the symbol."""
        runs = self._runs if isinstance(symbol, str) else self._runs[1:]
        found = [count for count in [run.step(symbol) for run in runs] if count is not None]
        if found:
            self._open, self.stopped = self._open[: end - max(found)], True
        return self.stopped
