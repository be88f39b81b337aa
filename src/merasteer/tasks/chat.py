"""The model's own chat template: what it makes of messages, whether it takes a system turn, which token ends the assistant's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from typing import Any, Protocol

from merasteer.errors import BadTask

__all__ = [
    "Message",
    "Tokenizer",
    "broken",
    "controls",
    "has_template",
    "mark",
    "render_chat",
    "takes_system",
    "turn_end",
]

Message = dict[str, str]
_MARK = "x7Qs{}Wz3k"  # stands for a text whose place is looked for; no template contains it
_DAY = date(2024, 7, 26)


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that tasks need."""

    @property
    def unk_token_id(self) -> int | None: ...
    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def bos_token(self) -> str | None: ...
    @property
    def all_special_ids(self) -> list[int]: ...
    @property
    def added_tokens_decoder(self) -> dict[int, Any]: ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...
    def decode(self, token_ids: list[int], **options: Any) -> str: ...
    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...
    def get_chat_template(self) -> str: ...
    def apply_chat_template(self, conversation: list[Message], **options: Any) -> Any: ...


def has_template(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer carries a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def mark(number: int) -> str:
    """A text that stands for field or message `number`."""
    return _MARK.format(number)


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message], *, ask: bool = True, tell: bool = False) -> str:
    """The text of these messages; ask: up to where the assistant begins to speak.

    A template that prints the date prints one day of 2024: a prompt that changed at midnight would not be the one that was certified.
    Raises BadTask where the template refuses. tell: with the template's own words, which may hold what the messages hold.
    """
    try:
        return _rendered(tokenizer, messages, ask)
    except Exception as error:  # noqa: BLE001 - a template is the model's own program and raises what it likes
        if (fault := broken(tokenizer)) is not None:
            raise BadTask(
                f"chat: the model's chat template is broken, it fails on the plainest conversation ({fault}); the fault is in the "
                f"model's files, not in task or request: mend their chat_template, or set chat = false under [prompt]"
            ) from None
        why = f": {_line(error)}" if tell else ""
        raise BadTask(
            f"chat: the chat template of the model refuses this conversation ({type(error).__name__}{why}); the fault is the "
            f"template's, not the request's: set chat = false under [prompt], or leave out system and examples"
        ) from None


def broken(tokenizer: Tokenizer) -> str | None:
    """What the chat template fails with on a lone user message, even behind a system message; None where it takes one of these."""
    user = {"role": "user", "content": mark(0)}
    fault = None
    for messages in ([user], [{"role": "system", "content": mark(1)}, user]):
        try:
            _rendered(tokenizer, messages, True)
        except Exception as error:  # noqa: BLE001 - see `render_chat`
            line = getattr(error, "lineno", None)
            fault = fault or f"{type(error).__name__}: {_line(error)}{f', line {line} of it' if line else ''}"
        else:
            return None
    return fault


def _rendered(tokenizer: Tokenizer, messages: Sequence[Message], ask: bool) -> str:
    template = _timeless(tokenizer.get_chat_template())
    return str(
        tokenizer.apply_chat_template(list(messages), chat_template=template, tokenize=False, add_generation_prompt=ask)
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@lru_cache(maxsize=16)
def _timeless(template: str) -> str:
    """The template with `strftime_now` as a macro that knows one day, where it is called."""
    formats = dict.fromkeys(re.findall(r"strftime_now\(\s*['\"](.*?)['\"]\s*\)", template))
    if not formats:
        return template
    days = json.dumps({form: _DAY.strftime(form) for form in formats})
    return f"{{%- macro strftime_now(form) -%}}{{{{ ({days})[form] }}}}{{%- endmacro -%}}{template}"


def takes_system(tokenizer: Tokenizer) -> bool:
    """Whether the template shows what a system message says, in a turn of its own or elsewhere."""
    user = {"role": "user", "content": mark(0)}
    try:
        one, other = (render_chat(tokenizer, [{"role": "system", "content": mark(i)}, user]) for i in (1, 2))
    except BadTask:
        return False
    return one != other


def turn_end(tokenizer: Tokenizer) -> int | None:
    """The token that ends the assistant's turn, as a short conversation shows it; else the tokenizer's end token, or None."""
    said = mark(1)
    messages = [{"role": "user", "content": mark(0)}, {"role": "assistant", "content": said}]
    try:
        _, found, behind = render_chat(tokenizer, messages, ask=False).rpartition(said)
    except BadTask:
        found = behind = ""
    tokens = tokenizer.encode(behind.lstrip(), add_special_tokens=False) if found else []
    # Behind the text may stand a plain line end or the next turn's heading, which end nothing.
    return tokens[0] if tokens and tokens[0] in controls(tokenizer) else tokenizer.eos_token_id


def controls(tokenizer: Tokenizer) -> frozenset[int]:
    """Tokens that are never text: special ones, and added ones that are marked so."""
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if getattr(token, "special", False))
    return frozenset((*tokenizer.all_special_ids, *added))
