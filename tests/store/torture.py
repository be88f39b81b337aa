"""Run by test_operations.py in a process of its own: crowds, kills at random times, and disks that are full.

usage: torture.py crowd ROOT             two processes publish, others read all the while
       torture.py kill ROOT TIMES        a process that publishes and collects, killed at random times
       torture.py collect ROOT           one child per call of a collection that changes the disk, killed just before it
       torture.py full ROOT              publishing into a store whose disk is full
ROOT holds parts-0.json and parts-0.safetensors, which `publisher.parts` reads, and identity.json. Prints one JSON value.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from publisher import DURABLE, fork, kill_before, parts

from merasteer.errors import InvalidInput
from merasteer.meaning import ModelMeaning
from merasteer.store import ModelIdentity, collect, publish, scan, snapshot
from merasteer.store.durable import abandoned

ROOT = Path(sys.argv[2])
STORE = ROOT / "store"
PARTS = parts(ROOT, 0)
GIVEN = json.loads((ROOT / "identity.json").read_text())
MODEL = ModelIdentity(**{**GIVEN, "meaning": ModelMeaning(**GIVEN["meaning"]), "source": None})


def send(seed: int, store: Path = STORE) -> str:
    """Publishes the artifact of that seed; the name of its folder."""
    manifest = {**PARTS["manifest"], "seeds": {"fit": seed}}
    return publish(store, **{**PARTS, "manifest": manifest}).name


def flaws(seen: set[str]) -> list[str]:
    """What is wrong with the store as a reader finds it: bad artifacts, a default that is none, and what was `seen` and is gone."""
    entries, defaults = snapshot([STORE], MODEL)
    names = {entry.path.name for entry in entries}
    found = [str(entry.reason) for entry in entries if entry.status != "loaded"]
    found += ["no default"] if entries and "spam" not in defaults else []
    found += [f"{name} is gone" for name in seen - names]
    seen |= names
    return found


def finished(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def crowd() -> object:
    """Two writers of 30 artifacts, 10 of them the same; three readers. Every reader leaves what it found in a file."""
    send(0)

    def read(name: str) -> None:
        seen: set[str] = set()
        looks, found = 0, list[str]()
        while not (ROOT / "over").exists():
            found += flaws(seen)
            looks += 1
        (ROOT / name).write_text(json.dumps([looks, found, len(seen)]))

    readers = [fork(lambda i=i: read(f"reader-{i}")) for i in range(3)]
    writers = [fork(lambda first=first: [send(seed) for seed in range(first, first + 30)]) for first in (1, 21)]
    codes = [finished(writer) for writer in writers]
    (ROOT / "over").touch()
    codes += [finished(reader) for reader in readers]
    names = sorted(entry.path.name for entry in scan([STORE], MODEL) if entry.status == "loaded")
    return {
        "codes": codes,
        "readers": [json.loads((ROOT / f"reader-{i}").read_text()) for i in range(3)],
        "names": names,
    }


def kill() -> object:
    """The flaws after each kill, and how many kills left a temporary folder behind: those fell into an operation."""
    draw, found, inside = random.Random(0), list[str](), 0
    send(0)
    for i in range(int(sys.argv[3])):

        def work(i: int = i) -> None:
            for seed in range(10_000):
                send(1000 * i + seed)
                if seed % 3 == 2:
                    collect(STORE, keep=1, age=0.0)

        child = fork(work)
        time.sleep(draw.uniform(0.0, 0.04))
        os.kill(child, signal.SIGKILL)
        finished(child)
        inside += bool(list(abandoned(STORE)))
        found += flaws(set())
    send(-1)
    return {"flaws": found, "inside": inside, "left": [str(path) for path in abandoned(STORE)]}


def collection() -> object:
    """What a reader finds after each kill: how many artifacts, and the flaws."""
    names = [send(seed, ROOT / "before") for seed in range(3)]
    outcomes: list[Any] = []
    while True:
        shutil.rmtree(STORE, ignore_errors=True)
        shutil.copytree(ROOT / "before", STORE)

        def work(call: int = len(outcomes)) -> None:
            kill_before(call, (*DURABLE, "unlink", "rmdir"))
            collect(STORE, keep=0, age=0.0)

        code = finished(fork(work))
        kept = {entry.path.name for entry in scan([STORE], MODEL)}
        outcomes.append([len(kept), names[-1] in kept, flaws(set())])
        if code >= 0:
            return {"exit": code, "outcomes": outcomes}


def full() -> object:
    """(limit in bytes, what was said, the flaws and leftovers) of publishing where no file may grow beyond the limit.

    With FILL in the environment the disk itself is small, and is filled first.
    """
    first, said = send(0), list[Any]()
    if "FILL" in os.environ:
        with (ROOT / "ballast").open("wb") as file, suppress(OSError):
            while True:
                os.write(file.fileno(), bytes(1024))

    def attempt(limit: int) -> None:
        if limit >= 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            send(1)
        except InvalidInput as error:
            sys.stdout.write(f"{error}\n")

    for limit in (-1,) if "FILL" in os.environ else (0, 5, 100, 600, 1500):
        out, into = os.pipe()
        child = fork(lambda limit=limit, into=into: (os.dup2(into, 1), attempt(limit), sys.stdout.flush()))
        os.close(into)
        with os.fdopen(out) as file:
            text = file.read()
        left = [path.name for path in STORE.iterdir() if path.name.startswith(".")]
        names = [entry.path.name for entry in scan([STORE], MODEL)]
        said.append([limit, finished(child), text, flaws(set()) + left + [name for name in names if name != first]])
    return said


if __name__ == "__main__":
    MODES: dict[str, Callable[[], object]] = {"crowd": crowd, "kill": kill, "collect": collection, "full": full}
    sys.stdout.write(json.dumps(MODES[sys.argv[1]]()))
