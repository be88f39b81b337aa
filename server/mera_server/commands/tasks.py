"""`mera tasks` and `mera methods`: what can be asked for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mera_server.commands.options import show, table

__all__ = ["app", "methods"]

app = typer.Typer(help="Tasks: list, show.", rich_markup_mode=None)

METHODS = {
    "mera": "the least step that brings the predicted error down to alpha, only where it is above",
    "none": "no steering; the predicted error is read",
    "additive": "a step of fixed strength against the readout at every position",
    "contrastive": "a step of fixed strength against the difference of means at every position",
    "logit_bias": "no step; a bias for each label on its logits where the answer is chosen",
    "mera+bias": "the step of mera, and the bias of logit_bias behind it",
}


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
    """The steering methods that a request may name."""
    table(("method", "what it does"), METHODS.items())
