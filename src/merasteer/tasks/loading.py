"""Where a task comes from: a path, a built-in name, or a name in the caller's search folders."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from merasteer.errors import BadTask, UnknownTask
from merasteer.tasks.lines import decoded
from merasteer.tasks.rows import SUFFIXES, suffix_of
from merasteer.tasks.schema import SAFE_NAME, parse
from merasteer.tasks.table import shown
from merasteer.types import DataSource, Task

__all__ = ["builtin_names", "load_task"]

BUILTIN = Path(__file__).parent / "builtin"


def load_task(name_or_path: str | Path, *, data: Path | None = None, search: Sequence[Path] = ()) -> Task:
    """The task of that name or file. For operators only: a path may name any file, so never pass a client's string.

    A Path, or a string that holds a separator or ends in `.toml`, is a path; anything else is a name, looked up in
    `search` (in order) and then among the built-in ones. `data` replaces the task's rows by a local file and keeps what
    the columns mean (label, label_index, fields), not the filter (where). Raises UnknownTask for a name, BadTask for a file.
    """
    file = Path(name_or_path) if _is_path(name_or_path) else _find(str(name_or_path), search)
    task = _read(file)
    if not _is_path(name_or_path) and task.name != file.stem:
        raise BadTask(f"{file}: name: {task.name!r} differs from the file's name; make them equal")
    return task if data is None else _with_data(task, data)


def builtin_names(search: Sequence[Path] = ()) -> tuple[str, ...]:
    """Names of the built-in tasks, and of those in `search`; sorted."""
    return tuple(sorted({file.stem for folder in (*search, BUILTIN) for file in _files(folder)}))


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.glob("*.toml") if SAFE_NAME.fullmatch(file.stem))


def _is_path(name_or_path: str | Path) -> bool:
    if isinstance(name_or_path, Path):
        return True
    return name_or_path.endswith(".toml") or "/" in name_or_path or "\\" in name_or_path


def _find(name: str, search: Sequence[Path]) -> Path:
    if SAFE_NAME.fullmatch(name):
        for folder in (*search, BUILTIN):
            if (file := folder / f"{name}.toml").is_file():
                return file
    known = ", ".join(builtin_names(search))
    raise UnknownTask(f"task: {shown(name)} is unknown; known are {known}, or give the path of a task file")


def _read(file: Path) -> Task:
    try:
        raw = tomllib.loads(decoded(str(file), file.read_bytes()))
        _refuse_oversized(file, raw)
    except OSError as error:
        raise BadTask(f"{file}: cannot be read ({error.strerror}); give the path of a task file") from error
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError
        raise BadTask(f"{file}: not a TOML file ({error}); correct it there") from error
    return parse(file, raw)


def _refuse_oversized(file: Path, value: object, key: str = "") -> None:
    """Python reads any number, TOML's have 64 bits; one of thousands of digits could not even be shown."""
    if isinstance(value, int) and value.bit_length() > 63:
        raise BadTask(f"{file}: {key}: a whole number of more than 64 bits; give a smaller one")
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        _refuse_oversized(
            file, part, f"{key}[{name}]" if isinstance(value, list) else f"{key}.{name}" if key else str(name)
        )


def _with_data(task: Task, data: Path) -> Task:
    if suffix_of(data) is None:
        raise BadTask(f"data: {str(data)!r} ends in none of {', '.join(SUFFIXES)}; convert the file")
    kept = task.data or DataSource("label")
    return replace(task, data=DataSource(kept.label, data, fields=kept.fields, label_index=kept.label_index))
