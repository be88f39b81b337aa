"""From text to tokens and back, for one request at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Continuation", "encode"]

_CONTEXT = 6  # prompt tokens decoded along, so that a tokenizer that strips a leading space does not strip ours


def encode(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a prompt, special tokens added as the tokenizer does."""
    return tuple(tokenizer.encode(text))


class Continuation:
    """Decodes what follows a prompt, and finds the first stop string in it."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._context = list(prompt[-_CONTEXT:])
        self._head = self._decode(self._context)

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def text(self, tokens: Sequence[int]) -> str:
        """The text of the generated tokens."""
        whole = self._decode([*self._context, *tokens])
        return whole[len(self._head) :] if whole.startswith(self._head) else self._decode(tokens)

    def until_stop(self, tokens: Sequence[int]) -> str | None:
        """The text before the first stop string, or None while there is none."""
        if not self._stop:
            return None
        text = self.text(tokens)
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        return text[: min(found)] if found else None
