"""Rows of .csv and .jsonl files: read whole, written complete or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mera_client._errors import InvalidInput
from mera_client._types import Inputs

Row = Mapping[str, Any]
SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class Table:
    """columns: in order of first appearance. Rows of .csv hold strings, rows of .jsonl what JSON holds."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def suffix(path: Path) -> str:
    """.csv or .jsonl; raises InvalidInput for another."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(f"{path}: neither .csv nor .jsonl; rename or convert it")
    return path.suffix.lower()


def read(path: Path) -> Table:
    """The file's rows. Raises InvalidInput naming the line that does not fit."""
    kind = suffix(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
            found = _csv(path, file) if kind == ".csv" else _jsonl(path, file)
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: not UTF-8; convert it") from None
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read ({error.strerror})") from None
    if not found.rows:
        raise InvalidInput(f"{path}: holds no rows")
    return found


def inputs_of(path: Path, table: Table, columns: Sequence[str]) -> list[Inputs]:
    """What each row asks: one COLUMN alone is its text; several, or FIELD=COLUMN, are fields; none given: all columns.

    Raises InvalidInput for a column that is not there, and for text that is not a string.
    """
    halves = [name.partition("=") for name in columns] or [(name, "", "") for name in table.columns]
    pairs = {field: column or field for field, _, column in halves}
    for name in pairs.values():
        if name not in table.columns:
            text = f"there are {', '.join(table.columns)}; give --column COLUMN, or FIELD=COLUMN for each field"
            raise InvalidInput(f"{path}: has no column {name}; {text}")
    if len(columns) != 1 or "=" in columns[0]:
        return [{field: row[name] for field, name in pairs.items() if name in row} for row in table.rows]
    texts = [row.get(columns[0]) for row in table.rows]
    wrong = next((i for i, text in enumerate(texts) if not isinstance(text, str)), None)
    if wrong is not None:
        raise InvalidInput(f"{path}: row {wrong + 1}: {columns[0]} is not a string")
    return [str(text) for text in texts]


def write(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Replaces the file in one step."""
    half = path.with_name(path.name + ".new")
    with half.open("w", encoding="utf-8", newline="") as file:
        if suffix(path) == ".csv":
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(half, path)  # noqa: PTH105 - what the name says on every system


def _csv(path: Path, file: Iterable[str]) -> Table:
    reader = csv.reader(file, strict=True)
    try:
        columns = tuple(next(reader, ()))
        if not columns or len(set(columns)) < len(columns):
            raise InvalidInput(f"{path}: line 1: give each column one name of its own")
        rows = []
        for cells in reader:
            if cells and len(cells) != len(columns):
                text = f"{len(cells)} cells under {len(columns)} columns; quote cells that hold commas"
                raise InvalidInput(f"{path}: line {reader.line_num}: {text}")
            rows += [dict(zip(columns, cells, strict=True))] if cells else []  # an empty line is no row
    except csv.Error as error:
        raise InvalidInput(f"{path}: line {reader.line_num}: {error}") from None
    return Table(columns, tuple(rows))


def _jsonl(path: Path, file: Iterable[str]) -> Table:
    rows = []
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InvalidInput(f"{path}: line {number}: not a JSON object; give one object a line")
        rows.append(row)
    return Table(tuple(dict.fromkeys(name for row in rows for name in row)), tuple(rows))


def _cell(value: Any) -> Any:
    """What a cell holds: a string as it is, nothing for null, JSON for the rest."""
    return value if isinstance(value, str) else "" if value is None else json.dumps(value, ensure_ascii=False)
