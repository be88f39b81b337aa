"""`mera tasks` and `mera methods`: what can be asked for, and whether a task is fit for a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mera_server.commands.options import option, show, table

if TYPE_CHECKING:
    from merasteer.engine import LoadedModel
    from merasteer.tasks import Check

__all__ = ["app", "methods"]

app = typer.Typer(help="Tasks: list, show, check.", rich_markup_mode=None)


@app.command("list")
def list_() -> None:
    """The built-in tasks."""
    from merasteer import demo
    from merasteer.tasks import builtin_names, load_task

    search = [demo.tasks_dir()]
    tasks = [load_task(name, search=search) for name in builtin_names(search)]
    rows = ([task.name, ", ".join(task.labels), "a label" if task.choose == "labels" else "free"] for task in tasks)
    table(("task", "labels", "answer"), rows)


@app.command("show")
def show_(task: Annotated[str, typer.Argument(help="name or path")]) -> None:
    """One task as JSON. Its rows are read where they are a file."""
    from merasteer import demo
    from merasteer.tasks import load_task, read_examples

    found = load_task(task, search=[demo.tasks_dir()])
    if found.data is not None and found.data.path is not None:
        read_examples(found)
    show(asdict(found))


@app.command("check")
def check_(
    task: Annotated[str, typer.Argument(help="name or path")],
    model: Annotated[
        str | None, option("--model", "model folder, file or hub id, or demo, to see prompts and labels as it does")
    ] = None,
    data: Annotated[Path | None, option("--data", "rows, in place of the task's own")] = None,
) -> None:
    """Rows, splits and, with a model, prompt, labels and free answers; exit code 2 where a run would fail."""
    from merasteer import demo
    from merasteer.engine import load_model
    from merasteer.pipeline.job import MINIMUM_TRAIN
    from merasteer.tasks import check, load_task

    described = load_task(task, data=data, search=[demo.tasks_dir()])
    loaded = load_model(demo.named(model)) if model is not None else None
    found = check(
        described,
        None if loaded is None else loaded.tokenizer,
        None if loaded is None else loaded.context,
        least_train=MINIMUM_TRAIN,
    )
    for line in found.lines:
        typer.echo(line)
    if found.error is not None:
        raise found.error
    if loaded is not None:
        for line in _free(loaded, found):
            typer.echo(line)


def _free(loaded: LoadedModel, found: Check) -> Iterator[str]:
    """How often the model answers with a label when it is free to write what it likes."""
    from merasteer.pipeline.checking import ROWS, free_answers

    if found.prompter is None or found.splits is None:
        return
    share, first = free_answers(loaded, found.prompter.task, found.prompter, found.splits.train)
    yield f"free answers: {share:.0%} of {min(ROWS, len(found.splits.train))} begin with a label"
    yield "  first tokens: " + ", ".join(f"{text!r} {part:.0%}" for text, part in first)


def methods() -> None:
    """The methods of the study, and how a request asks for those that are served."""
    from merasteer.bench import METHODS

    rows = ([method.name, method.request, method.about] for method in METHODS.values())
    table(("method", "request", "what it does"), rows)
