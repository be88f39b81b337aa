"""Runs the pipeline in children that are killed: imports once, forks for each line {task, model, store, call, after} on stdin.

call: the child kills itself before its `call`-th fsync, replace or rename. after: it is killed after so many seconds. gradients: it kills
itself before it asks for the `gradients`-th part of them, of ten items each. directions: those that are tried.
Answers one line each: {"status": exit status of the child, "digest": of a run that went through}.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from merasteer.pipeline import Options, gradients, run

torch.set_num_threads(1)
gradients.PART = 10
OPTIONS = Options(ordering=40, directions=("covariance",), hook_points=("residual",))


def kill_at(call: int) -> None:
    """SIGKILL before the `call`-th call that makes something durable."""
    left = call

    def counted(function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    for name in ("fsync", "replace", "rename"):
        setattr(os, name, counted(getattr(os, name)))


def kill_at_part(part: int) -> None:
    """SIGKILL before the `part`-th part of the gradients, of those that this process asks for."""
    real, left = gradients.answer_gradients, part

    def counted(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    gradients.answer_gradients = counted


def child(job: dict[str, Any], out: int) -> None:
    if job.get("gradients"):
        kill_at_part(job["gradients"])
    if job.get("call"):
        kill_at(job["call"])
    if job.get("after"):
        timer = threading.Timer(job["after"], os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    options = replace(OPTIONS, directions=tuple(job["directions"])) if "directions" in job else OPTIONS
    report = run(job["model"], Path(job["task"]), Path(job["store"]), options)
    os.write(out, str((report or {})["artifact"]).encode())


def main() -> None:
    gc.collect()
    gc.freeze()  # no child looks through what was imported
    for line in sys.stdin:
        job = json.loads(line)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read)
            status = 1
            try:
                child(job, write)
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        with os.fdopen(read) as pipe:
            digest = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(json.dumps({"status": status, "digest": digest}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
