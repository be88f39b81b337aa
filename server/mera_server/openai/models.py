"""Model names: the served model's id, and `<id>:<task>` for its tasks, as adapters are named elsewhere."""

from __future__ import annotations

from mera_server.catalog import Catalog
from mera_server.openai.replies import ModelReply, ModelsReply
from merasteer.errors import UnknownModel, UnknownTask
from merasteer.types import ServedTask

__all__ = ["listing", "model_of", "task_in"]


def task_in(name: str, served: str, catalog: Catalog) -> ServedTask | None:
    """The task that a model's name carries, None for the model itself. Every known task may be named, certified or not.

    Raises UnknownModel naming the listed models, or what keeps this model from serving the task.
    """
    if name == served:
        return None
    prefix, task = name[: len(served) + 1], name[len(served) + 1 :]
    try:
        if prefix != f"{served}:":
            raise UnknownTask
        found = catalog.latest.get(task)
        return catalog.task(task) if found is None else found.task
    except UnknownTask:
        known = ", ".join(model.id for model in listing(served, catalog, 0).data)
        raise UnknownModel(
            f"model: no such model here; models: {known}, and {served}:<task> for each task of GET /tasks"
        ) from None


def listing(served: str, catalog: Catalog, created: int) -> ModelsReply:
    """The model, and one name for each of its certified tasks."""
    tasks = [row.name for row in catalog.listing().tasks if row.certified]
    return ModelsReply(
        data=[model_of(name, served, catalog, created) for name in (served, *(f"{served}:{t}" for t in tasks))]
    )


def model_of(name: str, served: str, catalog: Catalog, created: int) -> ModelReply:
    """One model by its name. Raises as `task_in` does."""
    task = task_in(name, served, catalog)
    if task is None:
        return ModelReply(id=name, created=created)
    row = next(row for row in catalog.listing().tasks if row.name == task.name)
    return ModelReply(id=name, created=created, parent=served, task=row)
