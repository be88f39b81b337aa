"""From settings to a running engine and a catalog: the model, its artifacts, the vectors that stay resident. Slow; runs in a thread."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mera_server.catalog import Catalog, Probe, probe_of
from mera_server.settings import Settings
from mera_server.vectors import BASELINES, baseline
from merasteer import demo
from merasteer.engine import Engine, EngineConfig, LoadedModel, load_model
from merasteer.errors import InvalidInput, MeraError
from merasteer.store import Entry, ModelIdentity, identify, snapshot
from merasteer.tasks import builtin_names, load_task, resolve
from merasteer.types import ServedTask

__all__ = ["Serving", "identity_of", "load"]

log = logging.getLogger("mera.loading")


@dataclass(frozen=True, eq=False)
class Serving:
    """What answers requests. `special`: ids of the tokenizer's special tokens."""

    engine: Engine
    catalog: Catalog
    special: frozenset[int]


def load(settings: Settings) -> Serving:
    """A started engine and its catalog. Raises a MeraError in one line; nothing is left running then."""
    loaded = load_model(
        settings.model or demo.model_dir(),
        dtype=settings.dtype,
        device=settings.device,
        device_map=settings.device_map,
    )
    engine = Engine(loaded, replace(EngineConfig(), **settings.engine_sizes))
    engine.start()
    try:
        catalog = _catalog(engine, loaded, [settings.store, demo.store_dir()])
        if settings.default_task is not None:
            _check_default(settings.default_task, catalog)
    except BaseException:
        engine.stop()
        raise
    log.info("serving %s with %d artifacts", loaded.id, len(catalog.probes))
    return Serving(engine, catalog, frozenset(getattr(loaded.tokenizer, "all_special_ids", ())))


def _check_default(name: str, catalog: Catalog) -> None:
    try:
        catalog.task(name)
    except MeraError:
        raise InvalidInput(
            f"default-task: {name!r} cannot be served by this model; known tasks: {catalog.names}"
        ) from None


def _catalog(engine: Engine, loaded: LoadedModel, stores: Sequence[Path]) -> Catalog:
    identity = identity_of(loaded)
    if not stores[0].is_dir():
        log.warning("store %s is no folder: only the built-in artifacts are served", stores[0])
    entries, named = snapshot(stores, identity)
    defaults = {id(entry) for entry in named.values()}
    probes: dict[str, Probe] = {}
    for entry in sorted(entries, key=lambda entry: id(entry) not in defaults):  # a full table drops no task's default
        probe = _register(engine, loaded, entry)
        if probe is not None:
            probes[probe.digest] = probe
    _register_baselines(engine, entries, probes)
    latest = {task: probes[str(entry.digest)] for task, entry in named.items() if entry.digest in probes}
    tasks = {**_known_tasks(loaded), **{probe.task.name: probe.task for probe in probes.values()}}
    return Catalog(loaded.layers, tasks, probes, latest, entries)


def identity_of(loaded: LoadedModel) -> ModelIdentity:
    """Which model artifacts are checked against."""
    if loaded.folder is None:
        raise InvalidInput("model: it has no folder; artifacts cannot be checked against it, give a model folder")
    facts = {name: getattr(loaded, name) for name in ("architecture", "layers", "width", "vocab")}
    return identify(loaded.folder, model_id=loaded.id, **facts)


def _register(engine: Engine, loaded: LoadedModel, entry: Entry) -> Probe | None:
    """The artifact's facts once its vectors are resident; None, with a log line, where there is no room for them."""
    if entry.artifact is None:
        return None
    try:
        engine.register(entry.artifact.digest, entry.artifact.vectors)
    except MeraError as error:
        log.warning("artifact %s of task %s is not served: %s", entry.artifact.digest[:12], entry.task, error)
        return None
    return probe_of(entry.artifact, loaded.dtype, loaded.attention, frozenset())


def _register_baselines(engine: Engine, entries: Sequence[Entry], probes: dict[str, Probe]) -> None:
    """The fixed-strength vectors of each artifact, as far as there is room behind the artifacts themselves."""
    for artifact in (entry.artifact for entry in entries if entry.artifact is not None and entry.digest in probes):
        resident = set()
        for method in BASELINES:
            vectors = baseline(method, artifact)
            try:
                if vectors is not None:
                    engine.register(f"{artifact.digest}/{method}", vectors)
                    resident.add(method)
            except MeraError as error:
                log.warning("%s of artifact %s is not served: %s", method, artifact.digest[:12], error)
        probes[artifact.digest] = probe_of(artifact, engine.loaded.dtype, engine.loaded.attention, frozenset(resident))


def _known_tasks(loaded: LoadedModel) -> dict[str, ServedTask | MeraError]:
    """The built-in tasks and the demo's, against this tokenizer."""
    search = [demo.tasks_dir()]
    known: dict[str, ServedTask | MeraError] = {}
    for name in builtin_names(search):
        try:
            known[name] = resolve(load_task(name, search=search), loaded.tokenizer)
        except MeraError as error:
            known[name] = error
    return known
