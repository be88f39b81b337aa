"""Labels to token ids: which single tokens count as an answer, and whose answer each of them is."""

from __future__ import annotations

from typing import Protocol

from merasteer.errors import BadTask
from merasteer.types import ServedTask, Task

__all__ = ["Tokenizer", "resolve"]


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that labels need."""

    @property
    def unk_token_id(self) -> int | None: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


def resolve(task: Task, tokenizer: Tokenizer) -> ServedTask:
    """The task with its variants as token ids, in order and without repeats.

    A variant counts if it is exactly one token, and not the unknown one; others are dropped. Raises BadTask for a label
    with none left, and for a token that two labels claim.
    """
    variants = tuple(_tokens(task, index, tokenizer) for index in range(len(task.labels)))
    owner: dict[int, str] = {}
    for label, ids in zip(task.labels, variants, strict=True):
        for token in ids:
            if owner.setdefault(token, label) != label:
                raise BadTask(
                    f"task {task.name!r}: variants: labels {owner[token]!r} and {label!r} both claim token {token} "
                    f"({_spelling(task, label, token, tokenizer)!r}); give each spellings of its own"
                )
    return ServedTask(task.name, task.labels, variants, task.template, task.position, task.max_new_tokens)


def _tokens(task: Task, index: int, tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = dict.fromkeys(token for variant in task.variants[index] if (token := _single(variant, tokenizer)) is not None)
    if not ids:
        spelt = ", ".join(repr(variant) for variant in task.variants[index][:6])
        raise BadTask(
            f"task {task.name!r}: variants.{task.labels[index]}: none of {spelt} is a single token of this tokenizer; "
            f"add a spelling that is"
        )
    return tuple(ids)


def _single(variant: str, tokenizer: Tokenizer) -> int | None:
    ids = tokenizer.encode(variant, add_special_tokens=False)
    return ids[0] if len(ids) == 1 and ids[0] != tokenizer.unk_token_id else None


def _spelling(task: Task, label: str, token: int, tokenizer: Tokenizer) -> str:
    """The variant of `label` that became `token`."""
    return next(variant for variant in task.variants[task.labels.index(label)] if _single(variant, tokenizer) == token)
