"""Rows as their source gives them, one at a time: .jsonl, .jsonl.gz, .csv, .parquet, or a data set on a hub."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merasteer.errors import BadTask
from merasteer.tasks.hub import hub_rows
from merasteer.types import DataSource

__all__ = ["SUFFIXES", "Row", "read_rows", "suffix_of"]


@dataclass(frozen=True)
class Row:
    """One row. `where` names its source and its line there (or its row, counted from 1), for error messages."""

    where: str
    values: Mapping[str, Any]


def read_rows(source: DataSource) -> Iterator[Row]:
    """All rows in order, read as they are asked for and not yet filtered. Raises BadTask, naming file and line, at the bad one."""
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
    try:
        yield from _READERS[suffix](path)
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise BadTask(f"{path}: cannot be read ({why}); check data.path and that the file is whole") from error


def suffix_of(path: Path | str) -> str | None:
    """The suffix by which the file is read, None when it cannot be."""
    return next((suffix for suffix in SUFFIXES if str(path).lower().endswith(suffix)), None)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line with its end). Lines end at \\n only: str.splitlines would cut at control characters in a text."""
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path}: line {number}"
            try:
                line = raw.decode()
            except UnicodeDecodeError as error:
                raise BadTask(f"{where}: not UTF-8 ({error.reason} at byte {error.start}); convert the file") from error
            yield where, line.removeprefix("\ufeff") if number == 1 else line


def _jsonl(path: Path) -> Iterator[Row]:
    for where, line in _lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadTask(f"{where}: not JSON ({getattr(error, 'msg', error)}); give one object a line") from error
        if not isinstance(values, dict):
            raise BadTask(f"{where}: JSON, but not an object; give one object a line")
        yield Row(where, values)


def _csv(path: Path) -> Iterator[Row]:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        header = next(reader, [])
        if not header or len(set(header)) < len(header):
            raise BadTask(f"{path}: line 1: no header, or a column named twice; give distinct column names")
        for cells in reader:
            where = f"{path}: line {reader.line_num}"
            if len(cells) != len(header) and cells:
                raise BadTask(f"{where}: {len(cells)} cells under {len(header)} columns; quote cells that hold commas")
            if cells:
                yield Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise BadTask(f"{path}: line {reader.line_num}: not CSV ({error}); correct the quoting") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise BadTask(f"{path}: .parquet needs pyarrow; install mera-server[pipeline], or convert to .jsonl") from error
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}: row {number}", values)
    except (ArrowException, UnicodeDecodeError) as error:
        raise BadTask(f"{path}: not a parquet file ({str(error).splitlines()[0]}); write it again") from error


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
SUFFIXES = tuple(_READERS)
