"""A parsed task file to a Task. Keys, defaults and limits are written here, those of [data] in `source.py`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merasteer.errors import InvalidInput
from merasteer.tasks.answer import ANSWER_KEYS, answer
from merasteer.tasks.prompts import fields_of
from merasteer.tasks.source import SOURCE_KEYS, source
from merasteer.tasks.table import Table, shown
from merasteer.types import TOO_LONG, SplitSizes, Task

__all__ = ["PROMPT_KEYS", "SAFE_NAME", "SPLIT_KEYS", "default_variants", "parse"]

PROMPT_KEYS = ("template", "chat", "system", "examples")
SPLIT_KEYS = ("train", "calibration", "test", "shuffle", "seed", "too_long")
# A task's name is a folder of the store and a file of the search folders.
SAFE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


def parse(file: Path, raw: Mapping[str, Any]) -> Task:
    """The task that `raw`, the contents of `file`, describes. Raises BadTask."""
    top = Table(file, raw, ("name", "labels", "variants", "prompt", "answer", "data", "splits"))
    name = top.text("name", 'give a short name such as name = "my_task"')
    if not SAFE_NAME.fullmatch(name):
        top.fail(
            "name", f"{shown(name)} is no folder name; use up to 100 letters, digits, '.', '_', '-', no leading dot"
        )
    labels = top.strings("labels", 2, 'name the classes, as in labels = ["ham", "spam"]', numbers=True)
    variants = _variants(top, labels)
    prompt = top.table("prompt", PROMPT_KEYS)
    template = _template(prompt)
    chat = _chat(prompt)
    how = answer(top.table("answer", ANSWER_KEYS))
    return Task(
        name=name,
        labels=labels,
        variants=variants,
        template=template,
        choose=how.choose,
        position=how.position,
        max_new_tokens=how.max_new_tokens,
        chat=chat,
        system=_system(prompt, chat),
        examples=prompt.integer("examples", 0, 0),
        data=source(top.table("data", SOURCE_KEYS), template) if "data" in raw else None,
        splits=_splits(top),
        notes=how.notes,
    )


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


def _chat(prompt: Table) -> bool | None:
    """None is "auto"."""
    chat = prompt.values.get("chat", False)
    if chat == "auto":
        return None
    if type(chat) is not bool:
        prompt.fail(
            "chat", f'{shown(chat)} is unknown; use true, false, or "auto" (where the tokenizer has a template)'
        )
    return chat


def _system(prompt: Table, chat: bool | None) -> str | None:
    if "system" not in prompt.values:
        return None
    system = prompt.text("system", "give the system message, or remove the key")
    if chat is False:
        prompt.fail("system", "belongs to a chat; add chat = true, or write the text into the template")
    return system


def _splits(top: Table) -> SplitSizes:
    table, default = top.table("splits", SPLIT_KEYS), SplitSizes()
    shuffle = table.get("shuffle", bool)
    return SplitSizes(
        train=table.integer("train", default.train, 1),
        calibration=table.integer("calibration", default.calibration, 1),
        test=table.integer("test", default.test, 1),
        shuffle=default.shuffle if shuffle is None else shuffle,
        seed=table.integer("seed", default.seed, 0),
        too_long=table.choice("too_long", TOO_LONG) or default.too_long,
    )
