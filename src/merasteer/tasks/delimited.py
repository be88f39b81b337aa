"""CSV files, with whichever delimiter their header shows."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NoReturn

from merasteer.errors import BadTask
from merasteer.tasks.lines import lines
from merasteer.tasks.row import Row, Wanted, refuse_repeated

__all__ = ["csv_rows", "delimiter_of"]

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_LONGEST_CELL = 2**31 - 1  # what C's long takes everywhere: no cell that fits the memory is too long
_SEPARATOR_LINE = re.compile(r"sep=([,;\t|])\r?\n?", re.IGNORECASE)  # a spreadsheet's own first line
_FAULTS = {
    "unexpected end of data": "a quote is opened in this row and never closed; close it, or write a quote in a text twice",
    "new-line character": "a carriage return in a cell without quotes; end lines with \\n, or quote that cell",
}


def csv_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    """The rows under the header; those that hold nothing but blanks count for nothing. Raises BadTask."""
    csv.field_size_limit(_LONGEST_CELL)  # the module's own, for the whole process
    texts = (line for _, line in lines(path))
    first = next(texts, "")
    separator = _SEPARATOR_LINE.fullmatch(first)
    delimiter = separator[1] if separator else _delimiter(path, first, wanted)
    skipped = 1 if separator else 0
    reader = csv.reader(texts if separator else chain([first], texts), delimiter=delimiter, strict=True)
    records = _records(path, reader, skipped)
    top, header = next(records, (f"{path}: line 1", []))
    if not header:
        raise BadTask(f"{top}: no header; give the names of the columns in the first line")
    refuse_repeated(top, header, wanted)
    for where, cells in records:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise BadTask(
                f"{where}: {len(cells)} cells under {len(header)} columns; quote cells that hold {_DELIMITERS[delimiter]}"
            )
        yield Row(where, dict(zip(header, cells, strict=True)), tuple(header))


def delimiter_of(path: Path, wanted: Wanted) -> str:
    """What separates the columns, in words. Raises BadTask, and OSError where the file cannot be read."""
    first = next((line for _, line in lines(path)), "")
    separator = _SEPARATOR_LINE.fullmatch(first)
    return _DELIMITERS[separator[1] if separator else _delimiter(path, first, wanted)]


def _delimiter(path: Path, first: str, wanted: Wanted) -> str:
    """The one that parts the header into columns, a comma where none does; of several, that under which the task finds more."""
    parted = {one: cells for one in _DELIMITERS if len(cells := _cells(first, one)) > 1}
    if len(parted) > 1 and wanted is not None:
        found = {one: len(set(wanted).intersection(cells)) for one, cells in parted.items()}
        parted = {one: cells for one, cells in parted.items() if found[one] == max(found.values())}
    if len(parted) > 1:
        names = " or ".join(_DELIMITERS[one] for one in parted)
        raise BadTask(
            f"{path}: line 1: columns may be separated by {names}; quote the column names that hold one of them"
        )
    return next(iter(parted), ",")


def _cells(line: str, delimiter: str) -> list[str]:
    """Those of one line; none where it is no row with this delimiter."""
    try:
        cells = next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []
    return [] if any(cell.count('"') % 2 for cell in cells) else cells  # it would part a quoted name


def _records(path: Path, reader: csv._reader, skipped: int) -> Iterator[tuple[str, list[str]]]:  # type: ignore[name-defined]
    """(where its last line stands, cells) of each. skipped: lines in front that the reader has not seen."""
    begun = 1 + skipped
    try:
        for cells in reader:
            yield f"{path}: line {reader.line_num + skipped}", cells
            begun = reader.line_num + skipped + 1
    except csv.Error as error:
        _fail(f"{path}: line {begun}", str(error))


def _fail(where: str, why: str) -> NoReturn:
    known = next((told for begin, told in _FAULTS.items() if why.startswith(begin)), None)
    raise BadTask(f"{where}: not CSV: {known or f'{why}; correct the quoting'}")
