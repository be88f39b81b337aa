"""The artifacts of the stores, and which of their vectors are in the engine: read once at the start, and again when the stores change.

What a request was planned with stays in the engine until the request has ended, whatever is read meanwhile: a catalog is replaced as a
whole, and vectors leave once nobody holds the `Probe` whose they are.
"""

from __future__ import annotations

import logging
import os
import stat
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mera_server.catalog import Catalog, Probe, probe_of
from mera_server.vectors import BASELINES, baseline
from merasteer.engine import Engine, LoadedModel, conditions_of, identity_facts
from merasteer.errors import InvalidInput, MeraError, NotReady
from merasteer.store import Entry, ModelIdentity, identify, snapshot, under
from merasteer.types import Artifact, HookPoint, ServedTask, SteeringVectors

__all__ = ["Shelf", "identity_of"]

log = logging.getLogger("mera.shelf")
_FILES = ("manifest.json", "calibration.json", "probe.safetensors")

Mark = tuple[str, tuple[int, ...] | None]


@dataclass(frozen=True, eq=False)
class _Item:
    """Vectors that the engine should have under `key`."""

    key: str
    artifact: Artifact
    vectors: SteeringVectors


class Shelf:
    """Reads the stores for one engine. One thread at a time.

    tasks: those that are known without an artifact. stores: the first that has a `latest` for a task decides.
    """

    def __init__(self, engine: Engine, stores: Sequence[Path], tasks: dict[str, ServedTask | MeraError]) -> None:
        self._engine, self._stores, self._tasks = engine, stores, tasks
        self._identity, self._conditions = identity_of(engine.loaded), conditions_of(engine.loaded)
        self._resident: dict[str, HookPoint] = {}
        self._wanted: frozenset[str] = frozenset()
        self._leaving: list[tuple[weakref.ref[Probe], set[str]]] = []  # keys that stay while the probe is held
        self._seen: list[Mark] = []
        self._short = False  # something had no room and may have some later
        if not stores[0].is_dir():
            log.warning("store %s is no folder: only the built-in artifacts are served", stores[0])

    def read(self, before: Catalog | None = None) -> Catalog:
        """What the stores hold now, its vectors in the engine. `before`: what has been served until now.

        Raises NotReady where a store that was read before cannot be: what is served then stays.
        """
        if before is not None:
            self._check_readable(before.entries)
        seen = list(_marks([store / self._identity.slug for store in self._stores]))
        entries, named = snapshot(self._stores, self._identity)
        named = under(entries, named, self._conditions)
        defaults = {id(entry) for entry in named.values()}
        ordered = sorted(entries, key=lambda entry: id(entry) not in defaults)  # a full table drops no task's default
        wanted, dropped = self._choose([entry.artifact for entry in ordered if entry.artifact is not None])
        self._wanted = frozenset(item.key for item in wanted)
        self._let_go()
        refused = dropped | self._register(wanted)
        probes = self._probes(wanted, refused, {} if before is None else before.probes)
        latest = {task: probes[str(entry.digest)] for task, entry in named.items() if entry.digest in probes}
        if before is not None:
            self._retire(before, probes)
        self._seen, self._short = seen, bool(refused and self._leaving)
        for key, reason in refused.items():
            digest, _, method = key.partition("/")
            log.warning("%s artifact %s %s", method or "the", digest[:12], reason)
        tasks = {**self._tasks, **{probe.task.name: probe.task for probe in probes.values()}}
        shown = [_with_reason(entry, refused) for entry in entries]
        loaded = self._engine.loaded
        return Catalog(loaded.layers, tasks, probes, latest, shown, loaded.tokenizer)

    def changed(self) -> bool:
        """Whether the stores differ from what was read, or room was found for what had none."""
        freed = self._let_go()
        seen = list(_marks([store / self._identity.slug for store in self._stores]))
        return seen != self._seen or (freed and self._short)

    def _check_readable(self, entries: Sequence[Entry]) -> None:
        for store in self._stores:
            if not any(entry.path.is_relative_to(store) for entry in entries):
                continue
            try:
                os.scandir(store).close()
                if (folder := store / self._identity.slug).exists():
                    os.scandir(folder).close()
            except OSError as error:
                raise NotReady(
                    f"store: it cannot be read ({error.strerror}); what was loaded is served on, mend it and try again"
                ) from None

    def _choose(self, artifacts: Sequence[Artifact]) -> tuple[list[_Item], dict[str, str]]:
        """What fits the engine's tables: every artifact before any fixed-strength baseline. And why each other does not.

        The baselines leave an eighth of the rows to artifacts that come before those that they replace have gone.
        """
        rows = self._engine.config.max_policies
        items = [_Item(artifact.digest, artifact, artifact.vectors) for artifact in artifacts]
        for artifact in artifacts:
            made = ((method, baseline(method, artifact)) for method in BASELINES)
            items += [
                _Item(f"{artifact.digest}/{method}", artifact, vectors)
                for method, vectors in made
                if vectors is not None
            ]
        used: Counter[HookPoint] = Counter()
        chosen, dropped = [], {}
        for item in items:
            limit = rows if item.key == item.artifact.digest else rows - rows // 8
            room = limit - used[item.vectors.hook_point]
            if item.vectors.rows <= room and item.artifact.digest not in dropped:
                used[item.vectors.hook_point] += item.vectors.rows
                chosen.append(item)
            else:
                dropped[item.key] = f"not served: all {rows} rows for steering vectors are taken; raise max_policies"
        return chosen, dropped

    def _register(self, wanted: Sequence[_Item]) -> dict[str, str]:
        """Brings what is missing into the engine. What was refused, with the reason."""
        refused: dict[str, str] = {}
        for item in wanted:
            if item.key in self._resident or item.artifact.digest in refused:
                continue
            try:
                self._engine.register(item.key, item.vectors)
                self._resident[item.key] = item.vectors.hook_point
            except MeraError as error:
                refused[item.key] = f"not served: {error}"
        return refused

    def _probes(
        self, wanted: Sequence[_Item], refused: Mapping[str, str], before: Mapping[str, Probe]
    ) -> dict[str, Probe]:
        """The facts of each artifact that is in the engine. One that has not changed is the same object as before."""
        here = {item.key for item in wanted if item.key not in refused}
        probes: dict[str, Probe] = {}
        for artifact in (item.artifact for item in wanted if item.key == item.artifact.digest and item.key in here):
            methods = frozenset(method for method in BASELINES if f"{artifact.digest}/{method}" in here)
            probe = probe_of(artifact, self._conditions, methods)
            earlier = before.get(artifact.digest)
            probes[artifact.digest] = earlier if earlier == probe else probe
        return probes

    def _retire(self, before: Catalog, probes: Mapping[str, Probe]) -> None:
        """Vectors that only what was served until now needs leave with the last request that holds it."""
        for digest, probe in before.probes.items():
            gone = {probe.digest, *(f"{digest}/{method}" for method in probe.baselines)} - self._wanted
            if gone and probes.get(digest) is not probe:
                self._leaving.append((weakref.ref(probe), gone))

    def _let_go(self) -> bool:
        """Takes out what nobody holds any more; whether that was anything."""
        gone = {key for probe, keys in self._leaving if probe() is None for key in keys}
        self._leaving = [(probe, keys) for probe, keys in self._leaving if probe() is not None]
        free = gone - self._wanted - {key for _, keys in self._leaving for key in keys}
        for key in free & self._resident.keys():
            self._engine.unregister(key)
            del self._resident[key]
        return bool(free)


def identity_of(loaded: LoadedModel) -> ModelIdentity:
    """Which model artifacts are checked against."""
    if loaded.source is None:
        raise InvalidInput("model: it has no folder; artifacts cannot be checked against it, give a model folder")
    return identify(**identity_facts(loaded))


def _with_reason(entry: Entry, refused: dict[str, str]) -> Entry:
    """An artifact that is sound and not served is shown as rejected, too."""
    reason = refused.get(entry.digest or "")
    if reason is None:
        return entry
    return replace(
        entry, status="rejected", digest=None, reason=f"{entry.task}/{entry.path.name}: {reason}", artifact=None
    )


def _marks(folders: Sequence[Path]) -> Iterator[Mark]:
    """What changes when somebody publishes, removes, repairs or points `latest` elsewhere. Only `stat`, nothing is opened."""
    for folder in folders:
        for task in _children(folder):
            yield _mark(task / "latest")
            for artifact in _children(task):
                yield from (_mark(artifact / name) for name in _FILES)


def _children(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            return sorted(Path(one.path) for one in found if one.is_dir() and not one.name.startswith("."))
    except OSError:
        return []


def _mark(path: Path) -> Mark:
    try:
        found = path.stat()
    except OSError:
        return str(path), None
    regular = stat.S_ISREG(found.st_mode)
    return str(path), (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, regular)
