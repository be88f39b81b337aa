"""From text to tokens and back, for one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["TextStream", "continuation", "encode"]

_CONTEXT = 6  # tokens decoded along, so that a tokenizer that strips a leading space does not strip ours
_WINDOW = 24  # tokens decoded at once; behind it the window moves on, so that a token costs the same wherever it stands
_OPEN = 8  # tokens that may wait for the rest of a character; none has more bytes than four
_BROKEN = "\N{REPLACEMENT CHARACTER}"


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a prompt, special tokens added as the tokenizer does."""
    return tuple(tokenizer.encode(text))


def continuation(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of the tokens that follow a prompt, decoded at once."""
    context = _tail(tokenizer, prompt)
    head, whole = _decode(tokenizer, context), _decode(tokenizer, [*context, *tokens])
    return whole[len(head) :] if whole.startswith(head) else _decode(tokenizer, tokens)


class TextStream:
    """Decodes what follows a prompt token by token, and finds the first stop string in it. A token costs the same wherever it stands.

    What `push` and `rest` return joins to the text up to the first stop string.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        # The last tokens; the first `_read` of them are in `_head`, the text of the window.
        self._window = _tail(tokenizer, prompt)
        self._read = len(self._window)
        self._head = self._decode(self._window)
        self._text = ""
        self._released = 0
        self._end: int | None = None  # where the first stop string begins

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been seen."""
        return self._end is not None

    @property
    def text(self) -> str:
        """All the text so far, up to the first stop string, characters that are not complete included."""
        self._take(self._decode(self._window))
        return self._text[: self._end]

    def push(self, token: int) -> str:
        """Takes one token; returns the text that became certain: neither half a character nor what may begin a stop string."""
        self._window.append(token)
        whole = self._decode(self._window)
        if not whole.endswith(_BROKEN) or len(self._window) - self._read > _OPEN:
            self._take(whole)
        return self._release(len(self._text) - self._open_stop())

    def rest(self, text: str) -> str:
        """What is missing of the final text, that of the request's `Generation`."""
        missing = text[self._released :]
        self._released = max(self._released, len(text))
        return missing

    def _decode(self, tokens: Sequence[int]) -> str:
        return _decode(self._tokenizer, tokens)

    def _take(self, whole: str) -> None:
        """Adds to the text what the window's text, `whole`, has more than its head."""
        if self._read == len(self._window):
            return
        new = whole[len(self._head) :] if whole.startswith(self._head) else self._decode(self._window[self._read :])
        searched = max(0, len(self._text) - self._longest + 1)
        self._text += new
        if self._end is None:
            found = [at for at in (self._text.find(stop, searched) for stop in self._stop) if at >= 0]
            self._end = min(found, default=None)
        if len(self._window) > _WINDOW:
            self._window = _tail(self._tokenizer, self._window)
            whole = self._decode(self._window)
        self._head, self._read = whole, len(self._window)

    def _open_stop(self) -> int:
        """How many characters at the end may be the beginning of a stop string."""
        lengths = range(min(self._longest - 1, len(self._text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(self._text[-n:]) for stop in self._stop)), 0)

    def _release(self, end: int) -> str:
        end = end if self._end is None else self._end
        piece = self._text[self._released : end]
        self._released = max(self._released, end)
        return piece


def _tail(tokenizer: Any, tokens: Sequence[int]) -> list[int]:
    """The last few tokens, none that begins inside a character: byte tokens behind half a character decode to nothing but its mark."""
    tails = (list(tokens[-count:]) for count in range(_CONTEXT, _CONTEXT + _OPEN // 2))
    return next((tail for tail in tails if not _decode(tokenizer, tail).startswith(_BROKEN)), list(tokens[-_CONTEXT:]))


def _decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))
