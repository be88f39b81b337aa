"""What a study is checked for before its first cell: packages, models, tasks, and every task as every model would be asked it.

A study takes hours; what can be known to fail is told in the first seconds, all of it at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from tempfile import TemporaryFile

from merasteer.bench.grid import Grid
from merasteer.engine import Glance, glance
from merasteer.errors import InvalidInput, MeraError
from merasteer.pipeline.job import MINIMUM_TRAIN
from merasteer.pipeline.options import check_layers
from merasteer.tasks import check
from merasteer.types import Task

__all__ = ["check_grid"]

RESULTS = ("matplotlib", "pyarrow")  # what the figures and the tables are written with


def check_grid(grid: Grid) -> None:
    """Raises InvalidInput with all that stands against the study, in one line. Where nothing does, its folder is made."""
    found = list(dict.fromkeys([*_packages(grid), *_models_and_tasks(grid)]))
    if len(found) == 1:
        raise InvalidInput(found[0])
    if found:
        raise InvalidInput(f"{len(found)} things stand against this study: {'; and '.join(found)}")
    try:
        grid.out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=grid.out):
            pass
    except OSError as error:
        raise InvalidInput(f"out: {grid.out} cannot be written ({error.strerror}); give a folder that can") from error


def _packages(grid: Grid) -> Iterator[str]:
    wanted = dict.fromkeys(RESULTS, "pipeline")
    if any(task.data is not None and task.data.hub is not None for task in grid.tasks):
        wanted["datasets"] = "hub"
    if grid.options.sae:
        wanted["sae_lens"] = "sae"
    for name, extra in wanted.items():
        if find_spec(name) is None:
            yield f"{name}: the package is missing; install mera-server[{extra}]"


def _models_and_tasks(grid: Grid) -> Iterator[str]:
    read = []
    for task in grid.variants:
        error = check(task, least_train=MINIMUM_TRAIN).error
        if error is not None:
            yield str(error)
        else:
            read.append(task)
    for model in grid.models:
        try:
            seen = glance(model)
        except MeraError as error:
            yield str(error)
            continue
        yield from _model(grid, model, seen, read)


def _model(grid: Grid, model: str, seen: Glance, tasks: list[Task]) -> Iterator[str]:
    for point in grid.options.hook_points:
        if point not in seen.hook_points:
            yield f"hook_points: {model} has no {point!r}; use {', '.join(seen.hook_points)}"
    try:
        check_layers(grid.options, seen.layers)
    except InvalidInput as error:
        yield f"{model}: {error}"
    for task in tasks:
        wrong = check(task, seen.tokenizer, seen.context, least_train=MINIMUM_TRAIN).error
        if wrong is not None:
            yield f"{model}: {wrong}"
