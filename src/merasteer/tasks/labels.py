"""Labels to token ids: which token sequences count as an answer, and whose answer each of them is."""

from __future__ import annotations

from collections.abc import Sequence

from merasteer.errors import BadTask
from merasteer.tasks.chat import Tokenizer, has_template, turn_end
from merasteer.tasks.spelling import begins_another, not_text, sequences, usable
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
    variants = tuple(_variants(task, index, tokenizer) for index in range(len(task.labels)))
    _check_owners(task, variants, tokenizer)
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


def _variants(task: Task, index: int, tokenizer: Tokenizer) -> tuple[Tokens, ...]:
    spellings = task.variants[index]
    found = dict.fromkeys(tokens for spelling in spellings for tokens in _tokens(task, spelling, tokenizer))
    if not found:
        spelt = ", ".join(map(repr, spellings[:6]))
        kind, remedy = (
            ("is a single token of this tokenizer", "add a spelling that is")
            if task.choose == "free"
            else (
                f"can be written with this tokenizer in up to {MAX_LABEL_TOKENS} tokens, none unknown or special",
                "add a spelling that can",
            )
        )
        raise BadTask(f"task {task.name!r}: variants.{task.labels[index]}: none of {spelt} {kind}; {remedy}")
    return tuple(found)


def _tokens(task: Task, spelling: str, tokenizer: Tokenizer) -> list[Tokens]:
    if task.choose == "free":  # known by one token, as the model writes it
        alone = tuple(tokenizer.encode(spelling, add_special_tokens=False))
        return [alone] if len(alone) == 1 and alone[0] != tokenizer.unk_token_id else []
    never = not_text(tokenizer)
    return [tokens for tokens in sequences(spelling, tokenizer) if usable(tokens, never)]


def _check_owners(task: Task, variants: tuple[tuple[Tokens, ...], ...], tokenizer: Tokenizer) -> None:
    owner: dict[Tokens, str] = {}
    for label, sequences_ in zip(task.labels, variants, strict=True):
        for tokens in sequences_:
            if owner.setdefault(tokens, label) != label:
                what = f"token {tokens[0]}" if len(tokens) == 1 else f"the tokens {list(tokens)}"
                raise BadTask(
                    f"task {task.name!r}: variants: labels {owner[tokens]!r} and {label!r} both claim {what} "
                    f"({_spelling(task, label, tokens, tokenizer)!r}); give each spellings of its own"
                )


def _spelling(task: Task, label: str, tokens: Tokens, tokenizer: Tokenizer) -> str:
    """The variant of `label` that became `tokens`."""
    spellings = task.variants[task.labels.index(label)]
    return next(spelling for spelling in spellings if tokens in _tokens(task, spelling, tokenizer))


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
