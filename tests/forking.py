"""Programs in processes of their own, without the seconds that imports take: each is forked from one that has imported everything.

Run as a script it is that process: it computes nothing itself, so it has one thread, and forking is safe. The children have their own
arguments, environment, output, signals and end, as a fresh interpreter has.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

IMPORTS = (
    "accelerate", "h11", "mera_server.commands.serve", "mera_server.loading", "merasteer.pipeline", "merasteer.store",
    "transformers.generation.continuous_batching", "transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama",
)  # fmt: skip


class Child:
    """What `subprocess.Popen` gives, as far as tests ask for it."""

    def __init__(self, status: int, stdout: int, stderr: int) -> None:
        self._status = os.fdopen(status, "rb")
        self.stdout, self.stderr = os.fdopen(stdout), os.fdopen(stderr)
        self.pid, self.returncode = int(self._status.readline()), None

    def poll(self) -> int | None:
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """The rest of its output (little of it on stderr, which is read behind the other) once it has ended."""
        said = self.stdout.read(), self.stderr.read()
        self.wait(timeout)
        for file in (self._status, self.stdout, self.stderr):
            file.close()
        return said

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.readline())
        return self.returncode


class Forker:
    """The process that children are forked from. A context manager."""

    def __init__(self) -> None:
        self._link, theirs = socket.socketpair()
        # One thread, whatever the libraries would start when they are imported.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(theirs.fileno())]
        self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()

    def __enter__(self) -> Forker:
        return self

    def __exit__(self, *_: object) -> None:
        self._link.close()
        self._process.wait(60)

    def start(self, program: str | Path, arguments: Sequence[str], environ: Mapping[str, str]) -> Child:
        """A child that runs a file (a path), a module (`-m name`) or code."""
        job = {"program": str(program), "file": isinstance(program, Path)}
        job |= {"arguments": list(arguments), "environ": dict(environ)}
        pipes = [os.pipe() for _ in range(3)]
        text = json.dumps(job).encode()
        socket.send_fds(self._link, [len(text).to_bytes(4, "big")], [ours for _, ours in pipes])
        self._link.sendall(text)
        for _, given in pipes:
            os.close(given)
        return Child(*(kept for kept, _ in pipes))


def _serve(link: socket.socket) -> None:
    for name in IMPORTS:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no child looks through what was imported, nor copies its pages for that
    tasks = Path("/proc/self/task")
    assert not tasks.exists() or len(list(tasks.iterdir())) == 1, "a thread of a library: forking is not safe"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        length, given, *_ = socket.recv_fds(link, 4, 3)
        if not length:
            return
        job = link.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL)
        if os.fork() == 0:
            link.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _child(json.loads(job), *given)
            return
        for number in given:
            os.close(number)


def _child(job: dict[str, Any], status: int, stdout: int, stderr: int) -> None:
    """Runs the job in a fork of this process, which stays to tell how it ended."""
    child = os.fork()
    if child:
        _tell(child, status, stdout, stderr)
    os.close(status)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for number in (stdout, stderr):
        os.close(number)
    os.environ.clear()
    os.environ.update(job["environ"])
    program = job["program"]
    sys.argv = [program, *job["arguments"]]
    if job["file"]:
        sys.path.insert(0, str(Path(program).parent))
        runpy.run_path(program, run_name="__main__")
    elif program.startswith("-m "):
        runpy.run_module(program[3:], run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = "-c"
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})


def _tell(child: int, status: int, stdout: int, stderr: int) -> NoReturn:
    for number in (stdout, stderr):
        os.close(number)
    os.write(status, b"%d\n" % child)
    _, code = os.waitpid(child, 0)
    os.write(status, b"%d\n" % os.waitstatus_to_exitcode(code))
    os._exit(0)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
