"""What a row's columns mean: which rows count, where the label stands, where the template's fields stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from merasteer.errors import BadTask
from merasteer.tasks.prompts import fields_of
from merasteer.tasks.rows import Row
from merasteer.tasks.table import shown
from merasteer.types import DataSource, Task

__all__ = ["chosen", "contents"]

_LABEL = "label"  # the column of the label in a file that calls it by its plain name


def chosen(rows: Iterable[Row], where: Mapping[str, tuple[str | int | bool, ...]]) -> Iterator[Row]:
    """The rows that have one of the wanted values in every column of `where`, case and outer white space aside.

    Raises BadTask for a row without such a column, and when there are rows but none counts.
    """
    wanted = {column: {_plain(value) for value in values} for column, values in where.items()}
    read = kept = 0
    for read, row in enumerate(rows, 1):  # noqa: B007 - counted for the message
        for column in wanted:
            if column not in row.values:
                raise BadTask(f"{row.where}: no column {column!r}, but {_columns(row)}; correct data.where")
        if all(_plain(row.values[column]) in values for column, values in wanted.items()):
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
        raise BadTask(f"{row.where}: no label column {at!r}, but {_columns(row)}; set data.label")
    label = _index(row.values[at], task.labels, source.label_index)
    if label is None:
        raise BadTask(
            f"{row.where}: {at}: {shown(row.values[at])} is not one of the labels {', '.join(task.labels)}; correct it"
        )
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
        f"{row.where}: no field {name!r} for the template{also}, but {_columns(row)}; "
        f"rename one of them, or name its column in data.fields"
    )


def _index(value: Any, labels: tuple[str, ...], numbered: bool) -> int | None:
    """The label that `value` is: the very string, or the only one equal but for case and outer white space, or a number.

    A number or a truth value that is written like a label is that label (1 is "1", true is "True").
    """
    if isinstance(value, str | int):
        if str(value) in labels:
            return labels.index(str(value))
        same = [index for index, label in enumerate(labels) if _plain(label) == _plain(value)]
        if len(same) == 1:
            return same[0]
    if isinstance(value, str):  # a CSV's numbers are strings
        value = next((index for index in range(len(labels)) if value == str(index)), None)
    if not numbered or type(value) is not int:
        return None
    return value if 0 <= value < len(labels) else None


def _plain(value: Any) -> str | None:
    """A scalar as it is compared: a CSV's "1" is 1; None equals nothing."""
    return str(value).strip().casefold() if isinstance(value, str | int) else None


def _columns(row: Row) -> str:
    return shown(sorted(map(str, row.values)))
