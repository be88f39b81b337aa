"""What a row's columns mean: which rows count, where the label stands, where the template's fields stand.

A value means the same whatever file it stands in: 1 and "1", true and "True" are one value each, 1.0 and "1.0" another.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

from merasteer.errors import BadTask
from merasteer.tasks.prompts import fields_of
from merasteer.tasks.row import Row
from merasteer.tasks.table import listed, shown
from merasteer.types import DataSource, Task

__all__ = ["chosen", "contents", "wanted_columns"]

_LABEL = "label"  # the column of the label in a file that calls it by its plain name
_WHOLE = re.compile(r"0|[1-9][0-9]{0,8}")
_POINT_ZERO = re.compile(r"\.0+$")


def wanted_columns(task: Task) -> frozenset[str]:
    """Every column that the task may look at."""
    source = task.data or DataSource(_LABEL)
    return frozenset((source.label, _LABEL, *source.fields.values(), *fields_of(task.template), *source.where))


def chosen(rows: Iterable[Row], where: Mapping[str, tuple[str | int | bool, ...]]) -> Iterator[Row]:
    """The rows that have one of the wanted values in every column of `where`, case and outer white space aside.

    Raises BadTask for a row without such a column or with a value there that cannot be compared, and when there are rows but
    none counts.
    """
    wanted = {column: {_folded(str(value)) for value in values} for column, values in where.items()}
    read = kept = 0
    for read, row in enumerate(rows, 1):  # noqa: B007 - counted for the message
        for column in wanted:
            if column not in row.values:
                raise BadTask(f"{row.where}: no column {column!r}, but {row.names}; correct data.where")
        if all(_counts(row, column, values) for column, values in wanted.items()):
            kept += 1
            yield row
    if read and not kept:
        raise BadTask(f"data.where: none of {read} rows has {shown(dict(where))}; correct columns and values")


def contents(task: Task, row: Row) -> tuple[int, dict[str, Any]]:
    """The label's index, and the template's fields by name.

    A field is read from the column that `data.fields` names, or, where that is absent, from the column of its own name; the
    label from `data.label` or else from "label". So a file with plain names serves a task that was written for a hub.
    Raises BadTask.
    """
    source = task.data or DataSource(_LABEL)
    names = fields_of(task.template)
    at = source.label
    if at not in row.values and _LABEL in row.values and _LABEL not in names:
        at = _LABEL
    if at not in row.values:
        raise BadTask(f"{row.where}: no label column {at!r}, but {row.names}; set data.label")
    label = _index(row, at, task.labels, source.label_index)
    columns = {name: _column(name, source, row) for name in names}
    for name, column in columns.items():
        if column == at:
            raise BadTask(f"{row.where}: field {name!r} is read from the label column {at!r}; rename one of them")
    return label, {name: row.values[column] for name, column in columns.items()}


def _column(name: str, source: DataSource, row: Row) -> str:
    mapped = source.fields.get(name, name)
    for column in (mapped, name):
        if column in row.values:
            return column
    also = f" and no column {mapped!r}" if mapped != name else ""
    raise BadTask(
        f"{row.where}: no field {name!r} for the template{also}, but {row.names}; "
        f"rename one of them, or name its column in data.fields"
    )


def _index(row: Row, column: str, labels: tuple[str, ...], numbered: bool) -> int:
    """The label that the value of `column` is: by its name, or by its number where `numbered`. Raises BadTask.

    By name: the very string, or the only one equal but for case and outer white space; a number or a truth value as it is written.
    """
    value = row.values[column]
    text = _written(value)
    named = None if text is None else _named(text, labels, exact=type(value) is not bool)
    number = None
    if numbered and isinstance(value, str | int) and text is not None and _WHOLE.fullmatch(text.strip()):
        number = int(text)
    if number is not None and named is not None and named != number:
        meant = f"that of {shown(labels[number])}" if number < len(labels) else "that of no label"
        _refuse(
            row, column, f"{shown(value)} is the label {shown(labels[named])}, but as a number (data.label_index) {meant}; "
            f"remove label_index, or write the labels in words",
        )  # fmt: skip
    found = number if number is not None and number < len(labels) else named
    if found is None:
        _refuse(row, column, f"{shown(value)} is not one of the labels {listed(labels)}; {_remedy(value)}")
    return found


def _named(text: str, labels: tuple[str, ...], *, exact: bool) -> int | None:
    """exact: the very string comes before those that differ by case. A truth value has no case: it is true in JSON, True in Python."""
    if exact and text in labels:
        return labels.index(text)
    same = [index for index, label in enumerate(labels) if _folded(label) == _folded(text)]
    return same[0] if len(same) == 1 else None


def _remedy(value: object) -> str:
    if value is None:
        return "give the row a label, or remove it"
    if isinstance(value, float) or (isinstance(value, str) and _POINT_ZERO.search(value)):
        return "write whole numbers without a point, and labels as text"
    if not isinstance(value, str | int):
        return f"it is of type {type(value).__name__}, write it as text"
    return "correct it"


def _counts(row: Row, column: str, wanted: set[str]) -> bool:
    """Whether the value of `column` is a wanted one; an absent value is none. Raises BadTask where that is doubtful."""
    value = row.values[column]
    text = _written(value)
    if text is None:
        if value is not None:
            kind = type(value).__name__
            _refuse(
                row, column, f"of type {kind}, which data.where cannot compare; write it as text or as a whole number"
            )
        return False
    folded = _folded(text)
    if folded not in wanted and _POINT_ZERO.sub("", folded) in wanted:
        _refuse(row, column, f"{shown(value)} is nearly what data.where asks for; write whole numbers without a point")
    return folded in wanted


def _written(value: object) -> str | None:
    """A scalar as a CSV file holds it; None for what is none."""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else None
    return str(value) if isinstance(value, str | int) else None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).strip()


def _refuse(row: Row, column: str, problem: str) -> NoReturn:
    raise BadTask(f"{row.where}: {listed([column])}: {problem}")
