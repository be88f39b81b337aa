"""`mera demo build`: the built-in model and its artifacts, from this package alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from mera_server.commands.options import Config, option, table

__all__ = ["app"]

COLUMNS: tuple[Literal["task", "decision", "alpha", "spi", "artifact"], ...] = (
    "task",
    "decision",
    "alpha",
    "spi",
    "artifact",
)
app = typer.Typer(help="The built-in demo.", rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """The built-in demo."""


@app.command()
def build(
    out: Annotated[Path | None, option("--out", "folder to build in (default: the package's own)")] = None,
    seed: Annotated[int, option("--seed", "seed of corpus, model and calibration")] = 0,
    config: Config = None,  # noqa: ARG001 - read by its callback
) -> None:
    """Train the model (about two minutes on two cores), calibrate its tasks and publish their artifacts."""
    from merasteer import demo, pipeline
    from merasteer.demo.build import TASKS, build_model
    from merasteer.demo.paths import MODEL
    from merasteer.store import model_slug

    folder = build_model(out or demo.data_dir(), seed)
    store, slug = folder / "store", model_slug(MODEL)
    shutil.rmtree(store / slug, ignore_errors=True)  # what it holds belongs to the model that was there before
    options = pipeline.Options(seed=seed)
    rows = []
    for task in TASKS:
        report = pipeline.run(folder / MODEL, task, store, options, search=[folder / "tasks"])
        assert report is not None  # it ran to the end
        rows.append([report[name] for name in COLUMNS])
    shutil.rmtree(store / ".work", ignore_errors=True)
    table(COLUMNS, rows)
