"""Three splits that share no content, so that choosing, testing and measuring never see the same text."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from merasteer.errors import BadSplits, BadTask, InvalidInput
from merasteer.tasks.columns import chosen, contents
from merasteer.tasks.prompts import render
from merasteer.tasks.rows import Row, read_rows
from merasteer.types import Example, Splits, Task

__all__ = ["check_disjoint", "content_digest", "make_splits"]


def make_splits(task: Task, rows: Iterable[Mapping[str, Any]] | None = None) -> Splits:
    """Train, calibration and test, filled in this order from rows whose content is new.

    `rows` None reads the task's own; with rows given, errors name the row by its number from 1.

    The order is the rows' own, or that of `random.Random(seed).shuffle` over all of them. Every row is read and
    checked, also beyond the last one needed; the first of equal ones stays, whatever its label.
    Raises BadTask for a bad row, BadSplits when a size is below 1 or too few rows remain.
    """
    sizes = task.splits
    wanted = {"train": sizes.train, "calibration": sizes.calibration, "test": sizes.test}
    for name, size in wanted.items():
        if size < 1:
            raise BadSplits(f"task {task.name!r}: splits.{name}: {size} rows is an empty split; give 1 or more")
    examples = [_example(task, row) for row in _rows(task, rows)]
    if sizes.shuffle:
        random.Random(sizes.seed).shuffle(examples)
    first_of: dict[str, Example] = {}
    for example in examples:
        first_of.setdefault(example.digest, example)
    distinct = tuple(first_of.values())
    skipped = len(examples) - len(distinct)
    if len(distinct) < sum(wanted.values()):
        raise BadSplits(
            f"task {task.name!r}: splits: {sum(wanted.values())} rows needed ("
            f"{' + '.join(f'{size} {name}' for name, size in wanted.items())}), {len(distinct)} available "
            f"({skipped} repeats skipped); lower the sizes or add rows"
        )
    second, third = sizes.train, sizes.train + sizes.calibration
    return Splits(distinct[:second], distinct[second:third], distinct[third : third + sizes.test], skipped)


def content_digest(fields: Mapping[str, Any]) -> str:
    """16 hex digits that are equal for contents equal after NFC, case folding and collapsing white space.

    fields: the template's fields only, strings or lists of strings; their order does not matter.

    >>> content_digest({"text": "Win  CASH\\n"}) == content_digest({"text": "win cash"})
    True
    """
    normal = {
        name: _normal(value) if isinstance(value, str) else list(map(_normal, value)) for name, value in fields.items()
    }
    return hashlib.sha256(json.dumps(normal, sort_keys=True).encode()).hexdigest()[:16]


def check_disjoint(digests: Mapping[str, Sequence[str]]) -> None:
    """Raises BadSplits if a digest is in two of the splits."""
    owner: dict[str, str] = {}
    for split, members in digests.items():
        for digest in members:
            if owner.setdefault(digest, split) != split:
                raise BadSplits(f"splits: {owner[digest]} and {split} share the content {digest}; split the rows again")


def _normal(text: str) -> str:
    # Case folding can undo NFC (ǰ becomes j and a combining caron), hence NFC again behind it.
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())


def _rows(task: Task, rows: Iterable[Mapping[str, Any]] | None) -> Iterable[Row]:
    if rows is not None:
        return (Row(f"row {number}", values) for number, values in enumerate(rows, 1))
    if task.data is None:
        raise BadTask(
            f"task {task.name!r}: data: missing; add [data] with path or hub to the task file, or give a data file"
        )
    return chosen(read_rows(task.data), task.data.where)


def _example(task: Task, row: Row) -> Example:
    label, fields = contents(task, row)
    try:
        prompt = render(task.template, fields)
    except InvalidInput as error:
        raise BadTask(f"{row.where}: {error}") from error
    return Example(prompt, label, content_digest(fields), fields)
