"""`mera serve` as a process of its own over a copy of the demo's store, and what can be read of it from outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from merasteer import demo

from .asks import MAX_BODY

POLICIES = (
    12  # rows for steering vectors: a version takes 3 of a hook point's, and if they stayed the fifth would find none
)
OPTIONS = {
    "port": 0,
    "log-format": "json",
    "max-body-bytes": MAX_BODY,
    "max-policies": POLICIES,
    "max-waiting": 256,  # a machine that stops for a moment is no overload
    "reload-seconds": 1,
}


HARMLESS = (  # warnings of libraries: of a prompt that is refused, and of a caller who left while events were sent
    "Token indices sequence length is longer",
    "socket.send() raised exception",
)


class Server:
    """The process, its store, its address and its log."""

    def __init__(self, folder: Path) -> None:
        self.store, self._log = folder / "store", folder / "log"
        shutil.copytree(demo.store_dir(), self.store)
        options = [text for name, value in OPTIONS.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "mera_server", "serve", "--store", str(self.store), *options]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.address = ""

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self._log.read_text(encoding="utf-8")
            if found := re.search(r"listening on (http://[^\s\"]+)", self._log.read_text(encoding="utf-8")):
                self.address = found[1]
                if httpx.get(f"{self.address}/health/ready").status_code == 200:
                    return
            time.sleep(0.2)
        raise TimeoutError("the server is not ready")

    def resident(self) -> int:
        """Bytes of memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def answered(self) -> dict[str, list[tuple[str, int]]]:
        """Request id -> route and status of each line of the access log."""
        found: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for told in self._lines():
            if told["logger"] == "mera.access":
                found[told["request_id"]].append((told["route"], told["status"]))
        return found

    def complaints(self) -> list[str]:
        """Lines of the log that tell of a fault, those of `HARMLESS` apart."""
        odd = [told for told in self._lines() if told["level"] not in ("info", "debug")]
        return [str(told) for told in odd if not told["message"].startswith(HARMLESS)]

    def _lines(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self._log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Ready. What is left of it at the end is killed."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    found = Server(tmp_path)
    try:
        found.wait_until_ready()
        yield found
    finally:
        found.process.kill()
        found.process.wait()
