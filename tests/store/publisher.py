"""Run by test_crashes.py in a process of its own: forks processes that publish, and kills them where it is told to.

usage: publisher.py crash ROOT      one child per call of fsync, rename, replace or mkdir, killed just before that call
       publisher.py race ROOT       processes publishing at once
ROOT holds parts-<i>.json and parts-<i>.safetensors; `crash` starts each time from a copy of ROOT/before.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from merasteer.store import publish

DURABLE = ("fsync", "rename", "replace", "mkdir")


def parts(root: Path, i: int) -> dict[str, Any]:
    return {**json.loads((root / f"parts-{i}.json").read_text()), "tensors": load_file(root / f"parts-{i}.safetensors")}


def kill_before(call: int, names: Sequence[str] = DURABLE) -> None:
    """Make this process die by SIGKILL just before its `call`-th call of these functions of `os`."""
    count = 0

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            return original(*args, **kwargs)

        return wrapper

    for name in names:
        setattr(os, name, counted(getattr(os, name)))


def fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def crash(root: Path) -> None:
    killed = 0
    while True:
        store, args = root / f"store-{killed}", parts(root, 1)
        shutil.copytree(root / "before", store)

        def work(store: Path = store, args: dict[str, Any] = args, call: int = killed) -> None:
            kill_before(call)
            publish(store, **args)

        status = os.waitpid(fork(work), 0)[1]
        if not os.WIFSIGNALED(status):
            sys.stdout.write(json.dumps({"killed": killed, "exit": os.WEXITSTATUS(status)}))
            return
        killed += 1


def race(root: Path) -> None:
    """Four processes, five artifacts each in different orders; all five are shared by all processes."""
    loaded = [parts(root, i) for i in range(5)]
    orders = [loaded, loaded[::-1], loaded[2:] + loaded[:2], loaded]
    children = [fork(lambda order=order: [publish(root / "store", **args) for args in order]) for order in orders]
    sys.stdout.write(json.dumps([os.WEXITSTATUS(os.waitpid(child, 0)[1]) for child in children]))


if __name__ == "__main__":
    {"crash": crash, "race": race}[sys.argv[1]](Path(sys.argv[2]))
