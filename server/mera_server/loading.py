"""From settings to a running engine and a catalog: the model, its artifacts, the vectors that stay resident. Slow; runs in a thread."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch

from mera_server.catalog import Catalog
from mera_server.settings import Settings
from mera_server.shelf import Shelf, identity_of
from merasteer import demo
from merasteer.engine import Engine, EngineConfig, LoadedModel, load_model
from merasteer.errors import EngineFailed, InvalidInput, MeraError
from merasteer.tasks import builtin_names, load_task, resolve
from merasteer.types import ServedTask

__all__ = ["Serving", "identity_of", "load"]

log = logging.getLogger("mera.loading")


@dataclass(frozen=True, eq=False)
class Serving:
    """What answers requests. special: ids of the tokenizer's special tokens. shelf: where the catalog is read again, if it can be."""

    engine: Engine
    catalog: Catalog
    special: frozenset[int]
    shelf: Shelf | None = None


def load(settings: Settings) -> Serving:
    """A started engine and its catalog. Raises a MeraError in one line; nothing is left running then."""
    loaded = load_model(
        demo.named(settings.model or demo.WORD),
        dtype=settings.dtype,
        device=settings.device,
        device_map=settings.device_map,
        tensor_parallel=settings.tensor_parallel,
    )
    engine = _started(loaded, settings)
    try:
        shelf = Shelf(engine, [settings.store, demo.store_dir()], _known_tasks(loaded))
        catalog = shelf.read()
        if settings.default_task is not None:
            _check_default(settings.default_task, catalog)
    except BaseException:
        engine.stop()
        raise
    log.info("serving %s with %d artifacts", loaded.id, len(catalog.probes))
    special = frozenset(getattr(loaded.tokenizer, "all_special_ids", ()))
    # Several processes would have to read a changed store at the same moment: with them the catalog stays as it is.
    return Serving(engine, catalog, special, shelf if settings.tensor_parallel == 1 else None)


def _started(loaded: LoadedModel, settings: Settings) -> Engine:
    config = replace(EngineConfig(warm_up=True), **settings.engine_sizes)
    if config.max_waiting is None:  # a server's queue has an end
        config = replace(config, max_waiting=max(1, config.max_requests // 2))
    try:
        engine = Engine(loaded, config)
        engine.start()
    except (MemoryError, RuntimeError, EngineFailed) as error:
        # The cache is made on the engine's thread. torch tells by its message alone that a CPU's memory has run out.
        cause = error.__cause__ if isinstance(error, EngineFailed) else error
        if not isinstance(cause, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(cause):
            raise
        raise InvalidInput(
            f"memory: that of {loaded.device} holds the model but not its cache and its tables; "
            "lower cache_tokens, max_policies or max_requests"
        ) from error
    return engine


def _check_default(name: str, catalog: Catalog) -> None:
    try:
        catalog.task(name)
    except MeraError:
        raise InvalidInput(
            f"default-task: {name!r} cannot be served by this model; known tasks: {catalog.names}"
        ) from None


def _known_tasks(loaded: LoadedModel) -> dict[str, ServedTask | MeraError]:
    """The built-in tasks and the demo's, against this tokenizer."""
    search = [demo.tasks_dir()]
    known: dict[str, ServedTask | MeraError] = {}
    for name in builtin_names(search):
        try:
            known[name] = resolve(load_task(name, search=search), loaded.tokenizer)
        except MeraError as error:
            known[name] = type(error)(*error.args)  # its traceback would hold this thread's frames for ever
    return known
