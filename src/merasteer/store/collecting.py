"""Which artifacts nobody needs any more, and removing them. When in doubt an artifact stays."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from merasteer.errors import InvalidInput
from merasteer.store.durable import abandoned, lock, sync, temporary
from merasteer.store.fields import one_line
from merasteer.store.scanning import Entry, latest, scan
from merasteer.store.writing import unwritable

__all__ = ["AGE", "KEEP", "Verdict", "collect", "verdicts"]

KEEP = 3  # artifacts to go back to, per model and task, beside the default
AGE = 24.0  # hours in which what was published stays in any case


@dataclass(frozen=True)
class Verdict:
    """One folder of the store: an artifact, or what a crash left (task empty). `reason` says why it stays or goes."""

    path: Path
    task: str
    removed: bool
    reason: str


def verdicts(store: Path, *, keep: int = KEEP, age: float = AGE) -> list[Verdict]:
    """What would be kept and what would be removed, with reasons. Changes nothing.

    Removed: sound artifacts of a task whose `latest` names another sound one, but for the `keep` newest of them and those
    published in the last `age` hours; and temporary folders that crashes left. Rejected artifacts stay: a newer release may read them.
    """
    if keep < 0 or not age >= 0:
        raise InvalidInput(f"gc: keep {keep} and age {age} must not be negative; give 0 or more")
    found: dict[Path, list[Entry]] = {}
    for entry in scan([store]):
        found.setdefault(entry.path.parent, []).append(entry)
    judged = [verdict for folder, entries in found.items() for verdict in _task(store, folder, entries, keep, age)]
    return [*judged, *(Verdict(path, "", True, "left by a crash") for path in abandoned(store))]


def collect(store: Path, *, keep: int = KEEP, age: float = AGE) -> list[Verdict]:
    """The same, with the removal done. Waits until nobody publishes; each artifact is there, whole, or gone.

    Raises InvalidInput where the store cannot be written or its file system has no locks.
    """
    try:
        with lock(store, alone=True), temporary(store) as bin_:
            judged = verdicts(store, keep=keep, age=age)
            for i, verdict in enumerate(one for one in judged if one.removed):
                os.rename(verdict.path, bin_ / str(i))  # noqa: PTH104, tests count the calls
                sync(verdict.path.parent)
                shutil.rmtree(bin_ / str(i))
    except OSError as error:
        raise unwritable(store, error) from error
    return judged


def _task(store: Path, folder: Path, entries: Sequence[Entry], keep: int, age: float) -> Iterator[Verdict]:
    name = latest(store, folder.parent.name, folder.name)
    sound = sorted((entry for entry in entries if entry.digest), key=lambda entry: _published(entry.path), reverse=True)
    default = next((entry for entry in sound if name and str(entry.digest).startswith(name)), None)
    spare = {entry.path for entry in [one for one in sound if one is not default][:keep]}
    for entry in entries:
        if entry.digest is None:
            kept = f"rejected: {entry.reason}"
        elif default is None:
            kept = "latest names no sound artifact of this task"
        elif entry is default:
            kept = "latest"
        elif time.time() - _published(entry.path) < age * 3600:
            kept = f"published in the last {age:g} hours"
        else:
            kept = f"one of the newest {keep}" if entry.path in spare else ""
        yield Verdict(entry.path, one_line(folder.name), not kept, kept or "superseded")


def _published(folder: Path) -> float:
    """The later of the two times at which it can have been published; a folder that is gone was never old."""
    try:
        return max(folder.stat().st_mtime, (folder / "manifest.json").stat().st_mtime)
    except FileNotFoundError:
        return time.time()
