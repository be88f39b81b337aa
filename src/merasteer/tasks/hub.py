"""Rows of a data set on the Hugging Face Hub, through the optional package `datasets`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

from merasteer.errors import BadTask

__all__ = ["hub_rows"]


def hub_rows(name: str, split: str | None = None, config: str | None = None) -> Iterator[dict[str, Any]]:
    """The rows of one split ("train" by default) in order, class numbers as the class names that the set declares.

    config: one of the data set's configurations, its default one if None. Raises BadTask, one line, when `datasets` is
    missing or the data set cannot be had.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise BadTask(
            f"data.hub: {name!r} needs the package datasets; pip install datasets, or give data.path"
        ) from error
    which = f"{name!r} ({f'config {config!r}, ' if config else ''}split {split or 'train'!r})"
    try:
        rows = datasets.load_dataset(name, *([config] if config else []), split=split or "train")
    except Exception as error:  # the library raises a dozen kinds: network, missing set, missing split, needs a login
        why = " ".join(str(error).split())[:200]
        raise BadTask(
            f"data.hub: {which} cannot be had ({type(error).__name__}: {why}); "
            f"check name, config, split and network, or give a local file (data.path, --data)"
        ) from error
    names = {column: kind.names for column, kind in rows.features.items() if getattr(kind, "names", None)}
    for row in rows:
        yield {column: _named(names.get(column), value) for column, value in row.items()}


def _named(names: list[str] | None, value: Any) -> Any:
    """The class name for a class number; −1 is the library's mark of a missing label and stays."""
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value
