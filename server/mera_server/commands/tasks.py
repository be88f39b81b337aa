"""`mera tasks` and `mera methods`: what can be asked for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mera_server.commands.options import show, table

__all__ = ["app", "methods"]

app = typer.Typer(help="Tasks: list, show.", rich_markup_mode=None)


@app.command("list")
def list_() -> None:
    """The built-in tasks."""
    from merasteer import demo
    from merasteer.tasks import builtin_names, load_task

    search = [demo.tasks_dir()]
    tasks = [load_task(name, search=search) for name in builtin_names(search)]
    table(("task", "labels", "answer"), ([task.name, ", ".join(task.labels), task.position] for task in tasks))


@app.command("show")
def show_(task: Annotated[str, typer.Argument(help="name or path")]) -> None:
    """One task as JSON."""
    from merasteer import demo
    from merasteer.tasks import load_task

    show(asdict(load_task(task, search=[demo.tasks_dir()])))


def methods() -> None:
    """The methods of the study, and how a request asks for those that are served."""
    from merasteer.bench import METHODS

    rows = ([method.name, method.request, method.about] for method in METHODS.values())
    table(("method", "request", "what it does"), rows)
