"""A bench as one run of an experiment tracker: a metric per cell as it is done, at the end the table and the figures."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from merasteer.bench.cells import Cell
from merasteer.bench.records import flat
from merasteer.errors import InvalidInput

__all__ = ["TRACKERS", "Tracker", "check_tracker", "metric", "tracker"]


TRACKERS = ("wandb", "trackio")


class Tracker(Protocol):
    """One run."""

    def log(self, cell: Cell) -> None:
        """Logs the cell's metrics and keeps it for the table."""

    def close(self, paths: Sequence[Path]) -> None:
        """Logs the table of all cells and the PNG files among `paths`, and ends the run."""


def tracker(name: str | None, project: str, config: Mapping[str, Any]) -> Tracker:
    """A new run of `project`, or what does nothing for None. Where wandb has no account configured it writes offline.

    Raises InvalidInput where the package is missing or refuses to start.
    """
    check_tracker(name)
    if name is None:
        return _Nothing()
    try:
        library = importlib.import_module(name)
    except ImportError as error:
        raise InvalidInput(f"tracker: {name} needs the package {name}; install mera-server[{name}]") from error
    try:
        mode = {"mode": "offline"} if name == "wandb" and _without_account(library) else {}
        library.init(project=project, config=dict(config), **mode)
    except Exception as error:  # they raise many kinds: no network, bad settings, a folder that cannot be written
        why = " ".join(str(error).split())[:200]
        raise InvalidInput(
            f"tracker: {name} cannot start ({type(error).__name__}: {why}); mend it, or leave it out"
        ) from error
    return _Run(library)


def check_tracker(name: str | None) -> None:
    """Raises InvalidInput for a name that is none, or whose package is missing. Starts nothing."""
    if name is None:
        return
    if name not in TRACKERS:
        raise InvalidInput(f"tracker: {name!r} is not known; give {' or '.join(TRACKERS)}")
    if name not in sys.modules and find_spec(name) is None:
        raise InvalidInput(f"tracker: {name} needs the package {name}; install mera-server[{name}]")


def metric(cell: Cell) -> str:
    """What tells the cell's metrics apart: model/task/method, the task with its answer position unless that is `last`."""
    task = cell["task"] if cell["position"] == "last" else f"{cell['task']}@{cell['position']}"
    return f"{cell['model']}/{task}/{cell['method']}"


def _without_account(wandb: Any) -> bool:
    """Whether wandb would ask for a key. A mode that was chosen, by WANDB_MODE or `wandb offline`, stands."""
    chosen = "WANDB_MODE" in os.environ or wandb.setup().settings.mode != "online"
    return not chosen and not wandb.login(prompt=False, verify=False)


class _Nothing:
    def log(self, cell: Cell) -> None:
        pass

    def close(self, paths: Sequence[Path]) -> None:
        pass


class _Run:
    """The part of wandb's interface that trackio has too."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._cells: list[Cell] = []

    def log(self, cell: Cell) -> None:
        self._cells.append(cell)
        name = metric(cell)
        if cell["status"] != "done":
            self._library.log({f"failed/{name}": 1})
            return
        self._library.log({f"spi/{name}": cell["spi"], f"accuracy/{name}": cell["accuracy"]["steered"]})

    def close(self, paths: Sequence[Path]) -> None:
        rows = [flat(cell) for cell in self._cells]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        last: dict[str, Any] = {
            f"figures/{path.stem}": self._library.Image(str(path)) for path in paths if path.suffix == ".png"
        }
        if rows:
            data = [[row.get(name) for name in columns] for row in rows]
            last["results"] = self._library.Table(columns=columns, data=data)
        if last:
            self._library.log(last)
        self._library.finish()
