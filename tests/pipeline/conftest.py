"""One run of the pipeline that went through, for tests that only look at it."""

from __future__ import annotations

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
    loaded: LoadedModel, task_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """A run that went through. Its store is shared: add nothing that another test would see."""
    folder = tmp_path_factory.mktemp("finished")
    options, task = Options(ordering=100), task_writer(folder)
    report = run(loaded, task, folder / "store", options, report=folder / "report.json")
    assert report is not None
    return Finished(task, folder / "store", folder / "report.json", options, report)
