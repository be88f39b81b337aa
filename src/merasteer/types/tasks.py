"""A task: as its file describes it, as it is served, and its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merasteer.types.names import AnswerPosition, Choose, Tokens, TooLong
from merasteer.types.requests import LabelChoice

__all__ = ["DataSource", "Example", "ServedTask", "SplitSizes", "Splits", "Task"]


@dataclass(frozen=True)
class SplitSizes:
    """Rows of each split, and how they are drawn.

    shuffle: in a random order of `seed`, each split in the classes' proportions of the whole; else in file order.
    too_long: rows whose prompt and answer exceed the model's context are an error, or are left out and counted.
    """

    train: int = 1500
    calibration: int = 250
    test: int = 250
    shuffle: bool = True
    seed: int = 0
    too_long: TooLong = "error"


@dataclass(frozen=True)
class DataSource:
    """Where rows come from, a local file or a data set on a hub, and what their columns are called.

    label: its column. label_index: whether a whole number there is an index into the task's labels. config: the hub's
    configurations, read one after another; none means its default. fields: a template's field -> its column, where the names
    differ. where: column -> the values one of which a row must have there.
    """

    label: str
    path: Path | None = None
    hub: str | None = None
    split: str | None = None
    config: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict, hash=False)
    where: Mapping[str, tuple[str | int | bool, ...]] = field(default_factory=dict, hash=False)
    label_index: bool = False


@dataclass(frozen=True)
class Task:
    """A closed-label job as a task file describes it. `variants[i]` are the spellings of `labels[i]`.

    choose: see `Choose`. position, max_new_tokens: of a free answer; under "labels" they are "last" and 1 and count for nothing.
    chat: the rendered template is the user's message inside the tokenizer's chat template; None: where the tokenizer has one.
    system: the system message of a chat. examples: rows shown in front with their labels, balanced over the labels.
    notes: what a reader of the task file should be told, one line each.
    """

    name: str
    labels: tuple[str, ...]
    variants: tuple[tuple[str, ...], ...]
    template: str
    choose: Choose = "labels"
    position: AnswerPosition = "last"
    max_new_tokens: int = 1
    chat: bool | None = False
    system: str | None = None
    examples: int = 0
    data: DataSource | None = None
    splits: SplitSizes = field(default_factory=SplitSizes)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServedTask:
    """A task resolved against a tokenizer: all that serving needs. `variants[i]` are the spellings of `labels[i]` as token ids.

    A free answer is known by one token: there each spelling is one. end: the token that competes where one variant begins another, None
    where none does. examples: (rendered prompt, label as it is written) of the rows shown in front, in order.
    """

    name: str
    labels: tuple[str, ...]
    variants: tuple[tuple[Tokens, ...], ...]
    template: str
    choose: Choose = "labels"
    position: AnswerPosition = "last"
    max_new_tokens: int = 1
    chat: bool = False
    system: str | None = None
    examples: tuple[tuple[str, str], ...] = ()
    end: int | None = None

    @property
    def choice(self) -> LabelChoice | None:
        """What the engine chooses among; None for a free answer."""
        return LabelChoice(self.variants, self.end) if self.choose == "labels" else None

    @property
    def answer_tokens(self) -> tuple[tuple[int, ...], ...] | None:
        """The tokens by which a free answer is known, per label; None where the answer is chosen among labels."""
        if self.choose == "labels":
            return None
        return tuple(tuple(tokens[0] for tokens in spellings) for spellings in self.variants)


@dataclass(frozen=True)
class Example:
    """One labelled row. `digest` identifies its content: the template's fields, NFC, white space collapsed, case-folded.

    prompt: the rendered template, without what a chat puts around it. where: its file and line.
    """

    prompt: str
    label: int
    digest: str
    fields: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Splits:
    """Three splits, disjoint by content, and the rows shown in front of every prompt, which are in none of them.

    skipped: rows dropped because their content had been seen. too_long: where the rows stand that were left out for their length.
    """

    train: tuple[Example, ...]
    calibration: tuple[Example, ...]
    test: tuple[Example, ...]
    skipped: int = 0
    examples: tuple[Example, ...] = ()
    too_long: tuple[str, ...] = ()

    @property
    def digests(self) -> dict[str, list[str]]:
        """Content digests per split, in order."""
        return {name: [example.digest for example in getattr(self, name)] for name in ("train", "calibration", "test")}
