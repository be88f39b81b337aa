"""A run that dies at any point leaves the store as it was or complete, and the next one ends with the same artifact."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from merasteer import store as artifacts
from merasteer.method.levels import level_of
from merasteer.store.ledger import entries

KILLED = -signal.SIGKILL


class Nursery:
    """A process that forks pipeline runs and reports how they ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def run(self, **job: Any) -> tuple[int, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job, default=str) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["digest"]


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    script = Path(__file__).with_name("nursery.py")
    with subprocess.Popen([sys.executable, str(script)], stdin=-1, stdout=-1, text=True) as process:
        yield Nursery(process)
        assert process.stdin is not None
        process.stdin.close()


def state(store: Path) -> set[str]:
    """Names of what a later run can see."""
    return {str(p.relative_to(store)) for p in store.rglob("*") if p.is_file() and p.suffix != ".tmp" and not hidden(p)}


def hidden(path: Path) -> bool:
    return any(part.startswith(".publish-") for part in path.parts)


def check(store: Path, digest: str) -> bool:
    """Whether the artifact is there; if so it is whole. Nothing is ever rejected."""
    entries = artifacts.scan([store])
    assert [entry.status for entry in entries] in ([], ["loaded"])
    assert all(entry.digest == digest for entry in entries)
    return bool(entries)


def test_killed_before_every_durable_call(nursery: Nursery, model_folder: Path, make_task, tmp_path: Path) -> None:
    """One store; a new run is killed before its 1st, 2nd, … call that makes something durable, from the first again
    whenever something became visible, until one goes through.
    """
    job = {"model": model_folder, "task": make_task(train=80, calibration=40, test=20)}
    status, digest = nursery.run(**job, store=tmp_path / "whole")
    assert status == 0
    store, call, kills, seen = tmp_path / "killed", 1, 0, {0: set[str]()}
    while True:
        status, found = nursery.run(**job, store=store, call=call)
        check(store, digest)
        if status == 0:
            break
        assert status == KILLED
        kills += 1
        assert kills < 80
        now = state(store)
        call = call + 1 if now == seen[kills - 1] else 1
        seen[kills] = now
    assert found == digest
    assert check(store, digest)
    assert kills >= 4 * 2 + 8
    # After each stage and what stands beside it (the other classifiers, gradients), the ledger's entry, and the artifact's three files.
    assert {len(names) for names in seen.values()} >= {0, 1, 2, 3, 5, 6, 7, 10}
    [entry] = entries(
        store
    )  # killed before its entry was durable, between entry and outcome, and behind it: one attempt
    assert (entry.attempt, entry.level) == (1, level_of(0.05, 1))


@pytest.mark.slow
def test_killed_at_random_times(nursery: Nursery, model_folder: Path, make_task, tmp_path: Path) -> None:
    job = {"model": model_folder, "task": make_task(train=120, calibration=60, test=40)}
    status, digest = nursery.run(**job, store=tmp_path / "whole")
    assert status == 0
    rng = random.Random(0)
    killed = 0
    for i in range(50):
        store = tmp_path / f"store{i}"
        status, _ = nursery.run(**job, store=store, after=rng.uniform(0.05, 2.5))
        killed += status == KILLED
        check(store, digest)
        status, found = nursery.run(**job, store=store)
        assert (status, found) == (0, digest)
        assert check(store, digest)
    assert killed >= 10
