"""Rows as their source gives them, one at a time: .jsonl, .jsonl.gz, .csv, .parquet, or a data set on a hub."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from merasteer.errors import BadTask
from merasteer.tasks.columnar import parquet_rows
from merasteer.tasks.delimited import csv_rows
from merasteer.tasks.hub import hub_rows
from merasteer.tasks.lines import jsonl_rows
from merasteer.tasks.row import Row, Wanted
from merasteer.types import DataSource

__all__ = ["SUFFIXES", "Row", "read_rows", "suffix_of"]


def read_rows(source: DataSource, wanted: Wanted = None) -> Iterator[Row]:
    """All rows in order, read as they are asked for and not yet filtered. Raises BadTask, naming file and line, at the bad one.

    wanted: names of the columns that are looked at; what is wrong with others is nobody's concern. None: all.
    """
    if source.hub is not None:
        for config in source.config or (None,):
            name = f"{source.hub}/{config}" if config else source.hub
            rows = hub_rows(source.hub, source.split, config)
            yield from (Row(f"{name}: row {number}", values) for number, values in enumerate(rows, 1))
        return
    path = source.path
    suffix = None if path is None else suffix_of(path)
    if path is None or suffix is None:
        raise BadTask(f"data.path: {str(path)!r} ends in none of {', '.join(SUFFIXES)}; give such a file")
    empty = True
    try:
        for row in _READERS[suffix](path, wanted):
            empty = False
            yield row
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        link = f", a link to {path.readlink()}" if path.is_symlink() else ""
        raise BadTask(f"{path}: cannot be read ({why}{link}); check data.path and that the file is whole") from error
    if empty:
        raise BadTask(f"{path}: holds no rows; give a file with labelled rows")


def suffix_of(path: Path | str) -> str | None:
    """The suffix by which the file is read, None when it cannot be."""
    return next((suffix for suffix in SUFFIXES if str(path).lower().endswith(suffix)), None)


_READERS: dict[str, Callable[[Path, Wanted], Iterator[Row]]] = {
    ".jsonl": jsonl_rows,
    ".jsonl.gz": jsonl_rows,
    ".csv": csv_rows,
    ".parquet": parquet_rows,
}
SUFFIXES = tuple(_READERS)
