"""Labels to token ids: which token sequences count as an answer, and whose answer each of them is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from merasteer.errors import BadTask
from merasteer.method.trie import begins_another
from merasteer.tasks.chat import Tokenizer, has_template, turn_end
from merasteer.tasks.spelling import not_text, sequences, usable
from merasteer.tasks.table import listed
from merasteer.types import MAX_LABEL_TOKENS, ServedTask, Task, Tokens

__all__ = ["resolve"]


def resolve(task: Task, tokenizer: Tokenizer, examples: Sequence[tuple[str, str]] = ()) -> ServedTask:
    """The task with its variants as token ids, in order and without repeats, and `chat` settled.

    examples: what is shown in front of every prompt, as `prompting.demonstrations` makes it. A spelling that the tokenizer cannot
    write is dropped, for a free answer also one of several tokens. Raises BadTask for a label with none left, for what two labels
    claim, for a chat without a template, and where an end token is needed and there is none.
    """
    chat = has_template(tokenizer) if task.chat is None else task.chat
    if chat and not has_template(tokenizer):
        raise BadTask(
            f"task {task.name!r}: prompt.chat: true, but the tokenizer of this model has no chat template; "
            f'set chat = "auto" or false, or take a model that was tuned to chat'
        )
    writer = _Writer(task, tokenizer)
    variants = tuple(writer.label(index) for index in range(len(task.labels)))
    _check_owners(task, variants, writer)
    return ServedTask(
        name=task.name,
        labels=task.labels,
        variants=variants,
        template=task.template,
        choose=task.choose,
        position=task.position,
        max_new_tokens=task.max_new_tokens,
        chat=chat,
        system=task.system,
        examples=tuple(examples),
        end=_end(task, variants, tokenizer, chat) if task.choose == "labels" else None,
    )


@dataclass(frozen=True, eq=False)
class _Writer:
    """Writes spellings as tokens, in the way that the task's answers are read."""

    task: Task
    tokenizer: Tokenizer

    def label(self, index: int) -> tuple[Tokens, ...]:
        """The sequences of one label. Raises BadTask where there is none."""
        spellings = self.task.variants[index]
        found = dict.fromkeys(tokens for spelling in spellings for tokens in self.spelling(spelling))
        if not found:
            spelt = ", ".join(map(repr, spellings[:6]))
            raise BadTask(
                f"task {self.task.name!r}: variants.{listed([self.task.labels[index]])}: none of {spelt} {self._asked_for}"
            )
        return tuple(found)

    def spelling(self, spelling: str) -> list[Tokens]:
        """The sequences of one spelling, none where it cannot be an answer."""
        if self.task.choose == "free":  # known by one token, as the model writes it
            alone = tuple(self.tokenizer.encode(spelling, add_special_tokens=False))
            return [alone] if len(alone) == 1 and alone[0] != self.tokenizer.unk_token_id else []
        return [tokens for tokens in sequences(spelling, self.tokenizer) if usable(tokens, self._never)]

    @cached_property
    def _never(self) -> frozenset[int | None]:
        return not_text(self.tokenizer)

    @property
    def _asked_for(self) -> str:
        if self.task.choose == "free":
            return "is a single token of this tokenizer; add a spelling that is"
        return (
            f"can be written with this tokenizer in up to {MAX_LABEL_TOKENS} tokens, none unknown or special; "
            f"add a spelling that can"
        )


def _check_owners(task: Task, variants: tuple[tuple[Tokens, ...], ...], writer: _Writer) -> None:
    owner: dict[Tokens, str] = {}
    for label, spellings, found in zip(task.labels, task.variants, variants, strict=True):
        for tokens in found:
            if owner.setdefault(tokens, label) != label:
                what = f"token {tokens[0]}" if len(tokens) == 1 else f"the tokens {list(tokens)}"
                spelt = next(spelling for spelling in spellings if tokens in writer.spelling(spelling))
                raise BadTask(
                    f"task {task.name!r}: variants: labels {owner[tokens]!r} and {label!r} both claim {what} ({spelt!r}); "
                    f"give each spellings of its own"
                )


def _end(task: Task, variants: tuple[tuple[Tokens, ...], ...], tokenizer: Tokenizer, chat: bool) -> int | None:
    """The token that competes where one spelling begins another; None where none does."""
    if not begins_another(tokens for spellings in variants for tokens in spellings):
        return None
    end = turn_end(tokenizer) if chat else tokenizer.eos_token_id
    if end is None:
        raise BadTask(
            f"task {task.name!r}: variants: one spelling is the beginning of another, and this tokenizer has no end token "
            f"to tell them apart; change a spelling under [variants], or set the tokenizer's eos_token"
        )
    return end
