"""One run of the pipeline that went through, for tests that only look at it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from merasteer.engine import LoadedModel
from merasteer.pipeline import Options, Report, run


@dataclass(frozen=True)
class Finished:
    """A run that went through: its inputs, its store and its report."""

    task: Path
    store: Path
    file: Path
    options: Options
    report: Report


@pytest.fixture(scope="session")
def finished(
    loaded: LoadedModel,
    task_writer: Callable[..., Path],
    once: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Finished:
    """A run that went through. Its store is shared: add nothing that another test would see."""
    options = Options(ordering=100)

    def go_through(folder: Path) -> None:
        assert run(loaded, task_writer(folder), folder / "store", options, report=folder / "report.json") is not None

    made = once("finished", go_through)
    folder = Path(shutil.copytree(made, tmp_path_factory.mktemp("finished") / "own"))
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Finished(folder / "desks.toml", folder / "store", folder / "report.json", options, report)
