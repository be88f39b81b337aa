"""The study's grid, cell by cell: resumable, and one cell that fails does not lose the others.

<out>/cells/<model-slug>/<task>/<answer position>/<method>.json     one record each, complete or absent (`bench.cells`)
<out>/<model-slug>/<task>/ledger.jsonl                              a column (model × task × answer position) is one test (`store.ledger`)
<out>/.work/                                                        stage outputs of the cells under way
<out>/table.md, results.json, results.parquet, plots/               made anew from the records at the end
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from merasteer.bench.cells import SCHEMA, Cell, failed, identity, record
from merasteer.bench.methods import Mera, Method
from merasteer.bench.plots import draw
from merasteer.bench.records import write_tables
from merasteer.bench.table import details, markdown
from merasteer.engine import LoadedModel, model_name
from merasteer.errors import InvalidInput
from merasteer.pipeline import Bars, Job, Loading, Options, prepare
from merasteer.pipeline.job import Column
from merasteer.pipeline.workspace import replace_file
from merasteer.store import model_slug
from merasteer.store.documents import canonical
from merasteer.tasks import load_task
from merasteer.types import ANSWER_POSITIONS, AnswerPosition, Task

__all__ = ["Grid", "bench", "write_results"]

log = logging.getLogger("merasteer.bench")
EXACT_TOKENS = 8  # of an answer that is searched for its label, where the task does not say


@dataclass(frozen=True)
class Grid:
    """What to measure. models: folders, GGUF files or hub ids. positions: answer positions to try; none means each task's own.

    keep: stage outputs (activations above all) stay behind cells that are done.
    """

    models: tuple[str, ...]
    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    out: Path
    options: Options
    positions: tuple[AnswerPosition, ...] = ()
    loading: Loading = field(default_factory=Loading)
    keep: bool = False

    @classmethod
    def of(
        cls,
        models: Sequence[str],
        tasks: Sequence[str],
        methods: Sequence[Method],
        out: Path,
        options: Options,
        *,
        search: Sequence[Path] = (),
        positions: Sequence[Any] = (),
        loading: Loading | None = None,
        keep: bool = False,
    ) -> Grid:
        """The grid of these names. Raises where a task cannot be read, or where two would share their records."""
        described = tuple(load_task(name, search=search) for name in tasks)
        _distinct("models", [model_slug(model_name(name)) for name in models])
        _distinct("tasks", [task.name for task in described])
        wrong = next((name for name in positions if name not in ANSWER_POSITIONS), None)
        if wrong is not None:
            raise InvalidInput(f"answer positions: {wrong!r}; give one or more of {', '.join(ANSWER_POSITIONS)}")
        at = tuple(dict.fromkeys(positions))
        return cls(tuple(models), described, tuple(methods), Path(out), options, at, loading or Loading(), keep)

    @property
    def variants(self) -> list[Task]:
        """Every task at every answer position asked for."""
        return [_at(task, position) for task in self.tasks for position in self.positions or (task.position,)]

    @property
    def size(self) -> int:
        """Number of cells."""
        return len(self.models) * len(self.variants) * len(self.methods)

    def path(self, model: str, task: Task, method: Method) -> Path:
        """Where a cell's record lies."""
        return self.out / "cells" / model_slug(model_name(model)) / task.name / task.position / f"{method.name}.json"


def bench(grid: Grid, bars: Bars | None = None, on_cell: Callable[[Cell], None] | None = None) -> list[Cell]:
    """The records of all cells in the order of the grid: those that are there are taken, the rest are measured now.

    A cell is measured again when anything it follows from has changed, or when it had failed. `on_cell` is told each cell,
    whether taken or measured.
    """
    shown = bars or Bars()
    cells: list[Cell] = []
    with shown.bar("bench", grid.size) as bar:
        for model in grid.models:
            for cell in _model(grid, model, shown, bar.rename):
                cells.append(cell)
                bar.advance()
                if on_cell is not None:
                    on_cell(cell)
            gc.collect()  # the model is gone before the next one is loaded
    return cells


def write_results(grid: Grid, cells: Sequence[Cell]) -> list[Path]:
    """The files made from the records: the table first, then data and plots."""
    names = [method.name for method in grid.methods]
    text = f"{markdown(cells, names)}\n{details(cells)}"
    table = grid.out / "table.md"
    replace_file(table, lambda path: path.write_text(text, encoding="utf-8"))
    return [table, *write_tables(cells, grid.out), *draw(cells, names, grid.out / "plots")]


def _model(grid: Grid, model: str, bars: Bars, rename: Callable[[str], None]) -> Iterator[Cell]:
    try:
        loaded = grid.loading.load(model)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other models go on
        log.error("%s: %s", model, error)
        for task in grid.variants:
            yield from _all_failed(grid, model, task, error)
        return
    for task in grid.variants:
        yield from _task(grid, model, loaded, task, bars, rename)


def _task(
    grid: Grid, model: str, loaded: LoadedModel, task: Task, bars: Bars, rename: Callable[[str], None]
) -> Iterator[Cell]:
    try:
        job = prepare(loaded, task, grid.out, grid.options)
    except Exception as error:  # noqa: BLE001 - the other tasks go on
        log.error("%s, %s: %s", model, task.name, error)
        yield from _all_failed(grid, model, task, error)
        return
    jobs, clean = _rows(grid, job), True
    for method, own in zip(grid.methods, jobs, strict=True):
        rename(f"{loaded.id} {task.name} {method.name}"[:60])
        which = identity(own, method.name)
        path = grid.path(model, task, method)
        cell = _load(path, which["key"])
        if cell is None:
            bars.say(f"{loaded.id}, {task.name}: {method.name}")
            cell = _save(path, _measure(method, own, which, bars))
        clean = clean and cell["status"] == "done"
        yield cell
    if clean and not grid.keep:
        for folder in {
            folder for own in jobs for folder in (own.workspace.folder, own.readouts.folder, own.ground.folder)
        }:
            shutil.rmtree(folder, ignore_errors=True)


def _rows(grid: Grid, job: Job) -> list[Job]:
    """The jobs of a column, which know of how many tests it consists. Another set of rows is another test."""
    jobs = [replace(job, options=method.options(grid.options), column=Column()) for method in grid.methods]
    tests = sorted(
        {own.workspace.key for own, method in zip(jobs, grid.methods, strict=True) if isinstance(method, Mera)}
    )
    column = Column(hashlib.sha256(canonical(tests)).hexdigest()[: len(job.workspace.key)], max(len(tests), 1))
    return [replace(own, column=column) for own in jobs]


def _measure(method: Method, job: Job, which: Cell, bars: Bars) -> Cell:
    start = time.perf_counter()
    try:
        return record(job, which, method.measure(job, bars), time.perf_counter() - start)
    except Exception as error:  # one cell must not lose the others
        log.exception("%s, %s, %s failed", which["model"], which["task"], which["method"])
        return failed(which, error)


def _all_failed(grid: Grid, model: str, task: Task, error: Exception) -> Iterator[Cell]:
    """The cells of a task that failed before their keys were known."""
    for method in grid.methods:
        which = {"model": model_name(model), "task": task.name, "position": task.position, "method": method.name}
        yield _save(grid.path(model, task, method), failed({"schema": SCHEMA, "key": None, **which}, error))


def _load(path: Path, key: str) -> Cell | None:
    """The record, if it is there, whole, done and of this key."""
    try:
        cell: Cell = json.loads(path.read_bytes())
        return cell if (cell["key"], cell["status"], cell["schema"]) == (key, "done", SCHEMA) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(path: Path, cell: Cell) -> Cell:
    """The cell as it will be read again."""
    text = json.dumps(cell, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    saved: Cell = json.loads(text)
    return saved


def _at(task: Task, position: AnswerPosition) -> Task:
    """The task with its answer read at this position."""
    if position == task.position:
        return task
    return replace(task, position=position, max_new_tokens=1 if position == "last" else EXACT_TOKENS)


def _distinct(kind: str, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not names:
        raise InvalidInput(f"{kind}: {twice or 'none'!r}; give one or more of different names, each once")
