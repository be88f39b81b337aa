"""The one place that makes prompts: the template, examples in front, the system text, and the chat template around it all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from merasteer.tasks.chat import Message, Tokenizer, mark, render_chat, takes_system
from merasteer.tasks.prompts import in_order, literals_of, render, slots_of
from merasteer.types import Example, ServedTask, Task

__all__ = ["Prompter", "demonstrations"]

_GAP = "\n\n"  # behind the system text, and between examples of a plain prompt


def demonstrations(task: Task, examples: Iterable[Example]) -> tuple[tuple[str, str], ...]:
    """The rows shown in front, as `resolve` takes them: rendered prompt, and the label in its first spelling."""
    return tuple((example.prompt, task.variants[example.label][0]) for example in examples)


@dataclass(frozen=True, eq=False)
class Prompter:
    """Makes the prompts of one task for one tokenizer.

    A chat template is the model's own program; one that refuses is told as BadTask, at construction where it refuses every prompt.
    """

    task: ServedTask
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        if self.task.chat:
            self._render(mark(0), tell=True)

    def text(self, fields: Mapping[str, Any]) -> str:
        """The whole prompt of a row. Raises InvalidInput or UnknownField where the fields are not the template's."""
        return self.wrap(render(self.task.template, fields))

    def wrap(self, rendered: str) -> str:
        """The whole prompt of a template that is rendered already."""
        return self._render(rendered) if self.task.chat else self._front + rendered

    def encode(self, text: str) -> tuple[int, ...]:
        """Token ids of a prompt, special tokens in it parsed.

        A chat's text holds all the special tokens that it needs. Any other gets those that the tokenizer adds, but no second
        begin-of-text token.
        """
        if self.task.chat and (self.matches(text) or self._framed(text)):
            return tuple(self.tokenizer.encode(text, add_special_tokens=False))
        tokens, bos = tuple(self.tokenizer.encode(text)), self.tokenizer.bos_token_id
        twice = bos is not None and tokens[:2] == (bos, bos) and text.startswith(self.tokenizer.bos_token or "\0")
        return tokens[1:] if twice else tokens

    def matches(self, text: str) -> bool:
        """Whether a raw text is one of this task's prompts: the literal parts in order, the first and last at the very ends.

        False for every text where the chat template changes what it is given, so that no literal part can be told.
        """
        return self._literals is not None and in_order(self._literals, text)

    @property
    def template(self) -> str | None:
        """The whole prompt as a template of its own, None where `matches` is false for every text."""
        if self._literals is None:
            return None
        first, *others = (part.replace("{", "{{").replace("}", "}}") for part in self._literals)
        names = slots_of(self.task.template)
        return first + "".join(f"{{{name}}}{after}" for name, after in zip(names, others, strict=True))

    def tokens(self, rendered: str) -> tuple[int, ...]:
        """Token ids of the whole prompt of a template that is rendered already."""
        return self.encode(self.wrap(rendered))

    def fits(self, rendered: str, context: int) -> bool:
        """Whether the prompt and the longest answer stay within a context of so many tokens."""
        return len(self.tokens(rendered)) + self.longest_answer <= context

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest label, or those that a free answer may have."""
        if self.task.choose == "free":
            return self.task.max_new_tokens
        return max(len(tokens) for spellings in self.task.variants for tokens in spellings)

    @cached_property
    def system_in_front(self) -> bool:
        """Whether the system text stands in front of the first message, because no system turn is taken."""
        return self.task.system is not None and not (self.task.chat and takes_system(self.tokenizer))

    def _render(self, rendered: str, *, tell: bool = False) -> str:
        return render_chat(self.tokenizer, self._messages(rendered), tell=tell)

    def _messages(self, rendered: str) -> list[Message]:
        messages: list[Message] = []
        for prompt, label in self.task.examples:
            messages += [{"role": "user", "content": prompt}, {"role": "assistant", "content": label}]
        messages.append({"role": "user", "content": rendered})
        if self.task.system is None:
            return messages
        if not self.system_in_front:
            return [{"role": "system", "content": self.task.system}, *messages]
        first = {"role": "user", "content": self.task.system + _GAP + messages[0]["content"]}
        return [first, *messages[1:]]

    @cached_property
    def _front(self) -> str:
        """What stands in front of a plain prompt."""
        system = "" if self.task.system is None else self.task.system + _GAP
        return system + "".join(prompt + _between(prompt, label) + label + _GAP for prompt, label in self.task.examples)

    @cached_property
    def _literals(self) -> tuple[str, ...] | None:
        """The literal parts of the whole prompt; None where they cannot be told."""
        inner = literals_of(self.task.template)
        if not self.task.chat:
            return (self._front + inner[0], *inner[1:])
        marks = [mark(number) for number in range(len(inner) - 1)]
        rendered = inner[0] + "".join(one + after for one, after in zip(marks, inner[1:], strict=True))
        rest, parts = self._render(rendered), []
        for one in marks:
            before, found, rest = rest.partition(one)
            if not found or one in rest:
                return None
            parts.append(before)
        return (*parts, rest)

    @cached_property
    def _frame(self) -> tuple[str, str]:
        """What every chat prompt of this task begins and ends with, whatever the template does to the message."""
        one, other = self._render(f"0{mark(0)}0"), self._render(f"1{mark(1)}1")
        return _beginning(one, other), _beginning(one[::-1], other[::-1])[::-1]

    def _framed(self, text: str) -> bool:
        head, tail = self._frame
        fits = len(text) >= len(head) + len(tail)
        return bool(head) and fits and text.startswith(head) and text.endswith(tail)


def _beginning(one: str, other: str) -> str:
    """What both begin with."""
    return one[
        : next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    ]


def _between(prompt: str, label: str) -> str:
    """What parts a plain example's prompt from its label."""
    return "" if label[:1].isspace() or prompt[-1:].isspace() else " "
