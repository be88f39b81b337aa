"""What the stores hold for a model: good artifacts loaded, bad ones listed with their reason; and how to pick one."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from merasteer.conditions import Conditions, differences
from merasteer.errors import BadArtifact, UnknownProbe
from merasteer.store.fields import one_line
from merasteer.store.identity import SLUG, ModelIdentity
from merasteer.store.manifest import SHORT, TASK_NAME
from merasteer.store.reading import load
from merasteer.types import Artifact

__all__ = ["Entry", "default_entry", "latest", "resolve_prefix", "scan", "snapshot", "under"]

log = logging.getLogger("merasteer.store")


@dataclass(frozen=True, eq=False)
class Entry:
    """One artifact folder. Loaded: digest and artifact are set. Rejected: only the reason, one line without a path."""

    path: Path
    task: str
    digest: str | None
    status: Literal["loaded", "rejected"]
    reason: str | None
    artifact: Artifact | None


def scan(stores: Sequence[Path], model: ModelIdentity | None = None) -> list[Entry]:
    """Every artifact under `<store>/<slug>/` in order of store, task and folder. model None: of any model.

    Never raises for what it finds there: a bad artifact is an Entry with status "rejected" and one line in the log.
    Hidden (temporary) folders are passed over; an artifact that several stores hold is listed once, from the first.
    """
    entries: list[Entry] = []
    seen: set[str | None] = {None}
    for store in stores:
        for slug in _folders(store) if model is None else [store / model.slug]:
            for folder in (folder for task in _folders(slug) for folder in _folders(task)):
                entry = _entry(folder, model)
                if entry.status == "rejected" and not folder.exists():
                    continue  # removed while it was read
                if entry.status == "rejected":
                    log.warning("rejected %s (store %s)", entry.reason, store)
                if entry.digest not in seen or entry.status == "rejected":
                    entries.append(entry)
                    seen.add(entry.digest)
    return entries


def snapshot(stores: Sequence[Path], model: ModelIdentity) -> tuple[list[Entry], dict[str, Entry]]:
    """What `scan` finds, and task -> the entry that `default_entry` picks, consistent while others publish and collect.

    Every `latest` is read first: what it names was complete before, so the scan behind it cannot miss it.
    """
    names = {
        (store, folder.name): latest(store, model.slug, folder.name)
        for store in stores
        for folder in _folders(store / model.slug)
    }
    entries = scan(stores, model)
    found = {
        task: _pick(entries, [names.get((store, task)) for store in stores], task)
        for task in {entry.task for entry in entries}
    }
    return entries, {task: entry for task, entry in found.items() if entry is not None}


def _entry(folder: Path, model: ModelIdentity | None) -> Entry:
    task = one_line(folder.parent.name)
    try:
        artifact = load(folder, model)
        if artifact.task.name != task:
            raise BadArtifact(f"{task}/{folder.name}: made for the task {artifact.task.name}; move it there")
    except BadArtifact as error:
        return Entry(folder, task, None, "rejected", str(error), None)
    return Entry(folder, task, artifact.digest, "loaded", None, artifact)


def _folders(parent: Path) -> Iterator[Path]:
    """Sub-folders by name, hidden ones left out; none where `parent` is not a readable folder."""
    try:
        names = sorted(child.name for child in parent.iterdir() if not child.name.startswith(".") and child.is_dir())
    except FileNotFoundError:
        return iter(())
    except OSError as error:
        log.warning("passed over %s: cannot be listed (%s); check its permissions", parent, error.strerror)
        return iter(())
    return (parent / name for name in names)


def latest(store: Path, slug: str, task: str) -> str | None:
    """The digest (its first 12 digits) that `<store>/<slug>/<task>/latest` names; None where there is none to read."""
    if not (TASK_NAME.fullmatch(task) and SLUG.fullmatch(slug)):
        return None
    try:
        text = (store / slug / task / "latest").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return text if re.fullmatch(rf"[0-9a-f]{{{SHORT},64}}", text) else None


def default_entry(entries: Iterable[Entry], stores: Sequence[Path], slug: str, task: str) -> Entry | None:
    """The entry served for `task` when a request names no probe: of the first store (the writable one) whose `latest`
    names a loaded artifact. Where no store has a `latest`, the only loaded artifact, if there is just one.
    """
    return _pick(entries, [latest(store, slug, task) for store in stores], task)


def _pick(entries: Iterable[Entry], latests: Iterable[str | None], task: str) -> Entry | None:
    """The same, with what the `latest` of each store names."""
    loaded = [entry for entry in entries if entry.task == task and entry.digest]
    names = [name for name in latests if name]
    for name in names:
        for entry in loaded:
            if entry.digest and entry.digest.startswith(name):
                return entry
    return loaded[0] if not names and len(loaded) == 1 else None


def under(entries: Iterable[Entry], defaults: Mapping[str, Entry], here: Conditions) -> dict[str, Entry]:
    """Task -> the entry that is served under these conditions.

    The default where it was made under them, certified or not; else the newest that is certified under them; else the default. So what is
    published for other conditions takes nothing away here.
    """
    found = dict(defaults)
    known = list(entries)
    for task, entry in defaults.items():
        if _fits(entry, here):
            continue
        own = [
            one for one in known if one.task == task and one.artifact and one.artifact.certified and _fits(one, here)
        ]
        if own:
            found[task] = max(own, key=lambda one: (_written(one), one.digest or ""))
    return found


def _fits(entry: Entry, here: Conditions) -> bool:
    made = None if entry.artifact is None else entry.artifact.conditions
    return made is not None and not differences(made, here)


def _written(entry: Entry) -> int:
    """When an artifact came to this store, in ns; 0 where it has just left."""
    try:
        return (entry.path / "manifest.json").stat().st_mtime_ns
    except OSError:
        return 0


def resolve_prefix(entries: Iterable[Entry], prefix: str) -> Entry:
    """The one loaded entry whose digest starts with `prefix`. Raises UnknownProbe, never echoing it."""
    entries = list(entries)
    found = [entry for entry in entries if prefix and entry.digest and entry.digest.startswith(prefix.lower())]
    if len({entry.digest for entry in found}) > 1:
        raise UnknownProbe(f"probe: this prefix fits {len(found)} artifacts; give more digits of the digest")
    if found:
        return found[0]
    for entry in entries:
        if prefix and entry.status == "rejected" and entry.path.name.startswith(prefix[:SHORT].lower()):
            raise UnknownProbe(f"probe: this artifact was rejected: {entry.reason}")
    raise UnknownProbe(
        "probe: no loaded artifact has a digest with this prefix; GET /probes or mera probes list shows them"
    )
