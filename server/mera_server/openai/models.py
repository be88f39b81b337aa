"""Model names: the served model's, and `<name>:<task>` for its tasks, as adapters are named elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from mera_server.catalog import Catalog
from mera_server.loading import Serving
from mera_server.openai.replies import ModelReply, ModelsReply
from mera_server.settings import Settings
from merasteer.errors import UnknownModel, UnknownTask
from merasteer.types import ServedTask

__all__ = ["Served", "listing", "model_of", "served", "task_in"]

_PLACEHOLDERS = frozenset(
    {"", "tgi", "dummy"}
)  # what clients of servers with one model write: it is not looked at there


@dataclass(frozen=True)
class Served:
    """The served model. names: what requests call it; the first is told. root: what it is by itself. longest: prompt and answer."""

    names: tuple[str, ...]
    root: str = ""
    longest: int = 0
    created: int = 0

    def named(self, asked: str | None) -> str:
        """The name to tell a caller who asked for this one."""
        return self.names[0] if asked is None or asked in _PLACEHOLDERS - {*self.names} else asked


def served(serving: Serving, settings: Settings, created: int = 0) -> Served:
    """The model under the names that the server was started with; its own where there are none."""
    engine = serving.engine
    return Served(settings.served_model_name or (engine.loaded.id,), engine.loaded.id, engine.max_tokens, created)


def task_in(asked: str | None, model: Served, catalog: Catalog) -> ServedTask | None:
    """The task that a model's name carries, None for the model itself. Every known task may be named, certified or not.

    Raises UnknownModel naming the listed models, or what keeps this model from serving the task.
    """
    name = model.named(asked)
    if name in model.names:
        return None
    task = next((name[len(own) + 1 :] for own in model.names if name.startswith(f"{own}:")), None)
    try:
        if task is None:
            raise UnknownTask
        found = catalog.latest.get(task)
        return catalog.task(task) if found is None else found.task
    except UnknownTask:
        known = ", ".join(listed.id for listed in listing(model, catalog).data)
        raise UnknownModel(
            f"model: no such model here; models: {known}, and {model.names[0]}:<task> for each task of GET /tasks"
        ) from None


def listing(model: Served, catalog: Catalog) -> ModelsReply:
    """The model by each of its names, and one name for each of its certified tasks."""
    tasks = [row.name for row in catalog.listing().tasks if row.certified]
    names = (*model.names, *(f"{model.names[0]}:{task}" for task in tasks))
    return ModelsReply(data=[model_of(name, model, catalog) for name in names])


def model_of(name: str, model: Served, catalog: Catalog) -> ModelReply:
    """One model by its name. Raises as `task_in` does."""
    task = task_in(name, model, catalog)
    about = {"id": model.named(name), "created": model.created, "root": model.root, "max_model_len": model.longest}
    if task is None:
        return ModelReply(**about)
    row = next(row for row in catalog.listing().tasks if row.name == task.name)
    return ModelReply(**about, parent=model.names[0], task=row)
