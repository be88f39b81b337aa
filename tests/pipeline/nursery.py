"""Runs the pipeline in children that are killed: imports once, forks for each line {task, model, store, call, after} on stdin.

call: the child kills itself before its `call`-th fsync, replace or rename. after: it is killed after so many seconds.
Answers one line each: {"status": exit status of the child, "digest": of a run that went through}.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import torch

from merasteer.pipeline import Options, run

torch.set_num_threads(1)
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


def child(job: dict[str, Any], out: int) -> None:
    if job.get("call"):
        kill_at(job["call"])
    if job.get("after"):
        timer = threading.Timer(job["after"], os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    report = run(job["model"], Path(job["task"]), Path(job["store"]), OPTIONS)
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
