"""A parsed task file to a Task. Keys, defaults and limits are written here, those of [data] in `source.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merasteer.errors import InvalidInput
from merasteer.tasks.prompts import fields_of
from merasteer.tasks.source import SOURCE_KEYS, source
from merasteer.tasks.table import Table, shown
from merasteer.types import ANSWER_POSITIONS, AnswerPosition, SplitSizes, Task

__all__ = ["SAFE_NAME", "default_variants", "parse"]

# A task's name is a folder of the store and a file of the search folders.
SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_DEFAULT_MAX_NEW_TOKENS: dict[str, int] = {"last": 1, "exact": 8}


def parse(file: Path, raw: Mapping[str, Any]) -> Task:
    """The task that `raw`, the contents of `file`, describes. Raises BadTask."""
    top = Table(file, raw, ("name", "labels", "variants", "prompt", "answer", "data", "splits"))
    name = top.text("name", 'give a short name such as name = "my_task"')
    if not SAFE_NAME.fullmatch(name):
        top.fail(
            "name", f"{shown(name)} is no folder name; use up to 100 letters, digits, '.', '_', '-', no leading dot"
        )
    labels = top.strings("labels", 2, 'name the classes, as in labels = ["ham", "spam"]')
    variants = _variants(top, labels)
    template = _template(top.table("prompt", ("template",)))
    position, max_new_tokens = _answer(top.table("answer", ("position", "max_new_tokens")))
    data = source(top.table("data", SOURCE_KEYS), template) if "data" in raw else None
    return Task(name, labels, variants, template, position, max_new_tokens, data, _splits(top))


def default_variants(label: str) -> tuple[str, ...]:
    """The label as is, capitalised and in capitals, each without and with a leading space; no repeats.

    >>> default_variants("ham")
    ('ham', ' ham', 'Ham', ' Ham', 'HAM', ' HAM')
    """
    forms = (label, label[:1].upper() + label[1:], label.upper())
    return tuple(dict.fromkeys(space + form for form in forms for space in ("", " ")))


def _variants(top: Table, labels: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    table = top.table("variants", labels)
    spellings = tuple(
        table.strings(label, 1, f"list spellings such as {shown(' ' + label)}, or remove the key for the default ones")
        if label in table.values
        else default_variants(label)
        for label in labels
    )
    owner: dict[str, str] = {}
    for label, variants in zip(labels, spellings, strict=True):
        for variant in variants:
            if owner.setdefault(variant, label) != label:
                table.fail(
                    label, f"{shown(variant)} is also a variant of {shown(owner[variant])}; give it to one of them"
                )
    return spellings


def _template(prompt: Table) -> str:
    template = prompt.text("template", 'give [prompt] template = "… {text} …"')
    try:
        names = fields_of(template)
    except InvalidInput as error:
        prompt.fail("template", str(error))
    if not names:
        prompt.fail("template", "has no field; put a row's field in braces, as in {text}")
    return template


def _answer(answer: Table) -> tuple[AnswerPosition, int]:
    position = answer.get("position", str)
    if position is None:
        position = "last"
    if position not in ANSWER_POSITIONS:
        answer.fail("position", f"{shown(position)} is unknown; use {' or '.join(ANSWER_POSITIONS)}")
    return position, answer.integer("max_new_tokens", _DEFAULT_MAX_NEW_TOKENS[position], 1)


def _splits(top: Table) -> SplitSizes:
    table, default = top.table("splits", ("train", "calibration", "test", "shuffle", "seed")), SplitSizes()
    return SplitSizes(
        train=table.integer("train", default.train, 1),
        calibration=table.integer("calibration", default.calibration, 1),
        test=table.integer("test", default.test, 1),
        shuffle=bool(table.get("shuffle", bool)),
        seed=table.integer("seed", default.seed, 0),
    )
