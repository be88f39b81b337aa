"""Cells by model, task with answer position, and method: what tables and figures are laid out from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from merasteer.bench.cells import Cell
from merasteer.errors import InvalidInput

__all__ = ["Column", "Layout"]


class Column(NamedTuple):
    """A task at one answer position. title: the task's name, with the position where a task occurs with several."""

    task: str
    position: str
    title: str


@dataclass(frozen=True)
class Layout:
    """models and columns in the order in which they first occur; methods in the given order, others behind them."""

    models: tuple[str, ...]
    methods: tuple[str, ...]
    columns: Mapping[str, tuple[Column, ...]]
    cells: Mapping[tuple[str, str, str, str], Cell]

    @classmethod
    def of(cls, cells: Sequence[Cell], methods: Sequence[str] = ()) -> Layout:
        """Raises InvalidInput where two cells would share a place."""
        placed: dict[tuple[str, str, str, str], Cell] = {}
        for cell in cells:
            place = (cell["model"], cell["task"], cell["position"], cell["method"])
            if place in placed:
                raise InvalidInput(
                    f"cells: two for {' × '.join(place)}, keys {placed[place].get('key')} and {cell.get('key')}; "
                    f"give those of one set of options"
                )
            placed[place] = cell
        places = {(task, position) for _, task, position, _ in placed}
        several = {task for task, times in Counter(task for task, _ in places).items() if times > 1}
        columns: dict[str, dict[Column, None]] = {}
        for model, task, position, _ in placed:
            title = f"{task} ({position})" if task in several else task
            columns.setdefault(model, {})[Column(task, position, title)] = None
        return cls(
            tuple(columns),
            tuple(dict.fromkeys([*methods, *(method for *_, method in placed)])),
            {model: tuple(found) for model, found in columns.items()},
            placed,
        )

    def cell(self, model: str, column: Column, method: str) -> Cell | None:
        """The cell, whether done or failed; None where there is none."""
        return self.cells.get((model, column.task, column.position, method))

    def done(self, model: str, column: Column) -> dict[str, Cell]:
        """The cells of a column that are done, by method in the grid's order."""
        found = {method: self.cell(model, column, method) for method in self.methods}
        return {method: cell for method, cell in found.items() if cell and cell["status"] == "done"}
