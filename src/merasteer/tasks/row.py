"""One row of labelled data, whatever file it came from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from merasteer.errors import BadTask
from merasteer.tasks.table import shown

__all__ = ["Row", "Wanted", "refuse_repeated"]

Wanted = Collection[str] | None  # columns that the task may name, None for all


@dataclass(frozen=True)
class Row:
    """One row. `where` names its source and its line there (or its row, counted from 1), for error messages.

    columns: all that the source has, where `values` holds only those that were asked for.
    """

    where: str
    values: Mapping[str, Any]
    columns: tuple[str, ...] = ()

    @property
    def names(self) -> str:
        """The source's columns, for messages."""
        return shown(sorted(map(str, self.columns or self.values)))


def refuse_repeated(where: str, names: Iterable[str], wanted: Wanted) -> None:
    """Raises BadTask where a column that the task may name is there twice: which of them is meant cannot be known."""
    seen: set[str] = set()
    for name in names:
        if name in seen and (wanted is None or name in wanted):
            raise BadTask(f"{where}: {shown(name)}: a column named twice; rename or remove one of them")
        seen.add(name)
