"""Labelled rows as examples: prompt, label, and a digest of the content that tells repeats."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from merasteer.errors import BadTask, InvalidInput
from merasteer.tasks.columns import chosen, contents, wanted_columns
from merasteer.tasks.delimited import delimiter_of
from merasteer.tasks.prompts import render
from merasteer.tasks.row import Row
from merasteer.tasks.rows import read_rows, suffix_of
from merasteer.types import Example, Task

__all__ = ["content_digest", "distinct", "read_examples", "remarks"]


def read_examples(task: Task, rows: Iterable[Mapping[str, Any]] | None = None) -> list[Example]:
    """All rows that count, in order, repeats included. `rows` None reads the task's own; errors name a given row by its number from 1.

    Raises BadTask at the first bad row.
    """
    return [_example(task, row) for row in _rows(task, rows)]


def remarks(task: Task) -> list[str]:
    """What was found out about the file that was read, for its owner to know."""
    path = None if task.data is None else task.data.path
    if path is None or suffix_of(path) != ".csv":
        return []
    try:
        delimiter = delimiter_of(path, wanted_columns(task))
    except OSError:  # it has gone since it was read
        return []
    return [] if delimiter == "commas" else [f"{path}: columns are separated by {delimiter}, as its header shows"]


def distinct(examples: Iterable[Example]) -> list[Example]:
    """The first of those with equal content, whatever their labels, in order."""
    first_of: dict[str, Example] = {}
    for example in examples:
        first_of.setdefault(example.digest, example)
    return list(first_of.values())


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
    return chosen(read_rows(task.data, wanted_columns(task)), task.data.where)


def _example(task: Task, row: Row) -> Example:
    label, fields = contents(task, row)
    try:
        prompt = render(task.template, fields)
    except InvalidInput as error:
        raise BadTask(f"{row.where}: {error}") from error
    return Example(prompt, label, content_digest(fields), fields, row.where)
