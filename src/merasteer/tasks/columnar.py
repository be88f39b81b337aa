"""Parquet files: only the columns that a task names, and no error but ours."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from merasteer.errors import BadTask
from merasteer.tasks.row import Row, Wanted, refuse_repeated
from merasteer.tasks.table import listed

__all__ = ["parquet_rows"]


def parquet_rows(path: Path, wanted: Wanted) -> Iterator[Row]:
    """The rows, each with the columns that are wanted. Raises BadTask, and OSError where the file cannot be opened."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise BadTask(f"{path}: .parquet needs pyarrow; install mera-server[pipeline], or convert to .jsonl") from error
    with path.open("rb") as opened:
        try:
            file = parquet.ParquetFile(opened)
            columns = tuple(map(str, file.schema_arrow.names))
        except Exception as error:  # noqa: BLE001 - a damaged file makes the library raise what it likes
            raise BadTask(f"{path}: not a parquet file ({_why(error)}); write it again") from None
        refuse_repeated(str(path), columns, wanted)
        names = [name for name in columns if wanted is None or name in wanted]
        number = 0
        for batch in _batches(path, file, names):
            for values in zip(*batch.values(), strict=True) if names else ():
                number += 1
                yield Row(f"{path}: row {number}", dict(zip(names, values, strict=True)), columns)
        if not names and file.metadata.num_rows:
            yield Row(f"{path}: row 1", {}, columns)  # whoever asks for a column of it is told which there are


def _batches(path: Path, file: Any, names: list[str]) -> Iterator[dict[str, list[Any]]]:
    """Column -> values, part by part."""
    if not names:
        return
    batches = file.iter_batches(columns=names)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # noqa: BLE001 - see above
            raise BadTask(f"{path}: cannot be read as parquet ({_why(error)}); write it again") from None
        if batch is None:
            return
        yield {name: _values(path, batch, name) for name in names}


def _values(path: Path, batch: Any, name: str) -> list[Any]:
    column = batch.column(batch.schema.get_field_index(name))  # a name that begins with this one and a dot is read, too
    try:
        return list(column.to_pylist())
    except Exception as error:  # noqa: BLE001 - types that Python has no value for, texts that are not UTF-8
        raise BadTask(
            f"{path}: {listed([name])}: of type {_line(column.type)}, which cannot be read ({_why(error)}); write it as text"
        ) from None


def _why(error: BaseException) -> str:
    return f"{type(error).__name__}: {_line(error)}"


def _line(value: object) -> str:
    return " ".join(str(value).split())[:160]
