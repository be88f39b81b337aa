"""docs/quickstart.md, walked by a stranger: every block in its order, in shells of their own, with what each is said to print."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from merasteer import demo

ADDRESS = "http://127.0.0.1:8000"


class Walk:
    """A home folder and the shells in it: what one block exports and where it ends, the next finds."""

    def __init__(self, home: Path, root: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.here = root
        bin_folder = str(Path(sys.executable).parent)  # what `activate` puts in front
        self.variables = {
            **{name: value for name, value in os.environ.items() if not name.startswith("MERA_")},
            "HOME": str(home),
            "PATH": os.pathsep.join((bin_folder, os.environ["PATH"])),
            "OMP_NUM_THREADS": "1",
            "MERA_URL": self.address,  # the page's server has the port that is asked by default
        }
        self.serving: subprocess.Popen[str] | None = None

    def sh(self, code: str) -> str:
        state = Path(self.variables["HOME"]) / ".state"
        told = f'printf \'%s\\n\' "$PWD" "$MODEL" > {shlex.quote(str(state))}'
        printed = self._run(["/bin/sh", "-ec", f"{code.replace(ADDRESS, self.address)}\n{told}"])
        here, self.variables["MODEL"] = state.read_text(encoding="utf-8").splitlines()
        self.here = Path(here)
        return printed

    def python(self, code: str) -> str:
        return self._run([sys.executable, "-W", "error", "-c", code.replace(ADDRESS, self.address)])

    def _run(self, command: list[str]) -> str:
        ran = subprocess.run(command, cwd=self.here, env=self.variables, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, f"{command[-1]}\n{ran.stdout}{ran.stderr}"
        return ran.stdout

    def serve(self, command: str) -> None:
        line = shlex.split(command.replace("$MODEL", self.variables["MODEL"]))
        self.serving = subprocess.Popen(
            [*line, "--port", str(self.port)], cwd=self.here, env=self.variables, stderr=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.address}/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                assert self.serving.poll() is None, self.serving.communicate()[1]
            time.sleep(0.1)
        raise TimeoutError("the server was not ready")


@pytest.fixture
def walk(tmp_path: Path, root: Path) -> Iterator[Walk]:
    if not (demo.model_dir() / "config.json").is_file():
        pytest.skip("the built-in demo is not built; run `mera demo build`")
    found = Walk(tmp_path, root)
    yield found
    if found.serving is not None:
        found.serving.terminate()
        found.serving.communicate(timeout=60)
        assert found.serving.returncode == 0


@pytest.mark.slow
def test_the_walk(root: Path, walk: Walk, blocks: Any, differs: Any) -> None:
    install, activate, sample, *rest = blocks((root / "docs" / "quickstart.md").read_text(encoding="utf-8"))
    assert install.code == "make install\n"
    assert "\ninstall:" in (root / "Makefile").read_text(encoding="utf-8")
    first, *more = activate.code.splitlines()
    assert first == ". .venv/bin/activate"  # the test's own environment stands for it
    walk.sh("\n".join(more))
    printed = []
    for block in rest:
        saved = re.search(r"ave as `(\S+)`[^`]*$", block.before)
        if saved is not None:
            (walk.here / saved[1]).write_text(block.code, encoding="utf-8")
        elif block.code.startswith("mera serve"):
            walk.serve(block.code)
        else:
            printed.append((walk.python if block.language == "python" else walk.sh)(block.code))
            if block.kind == "json":
                assert (wrong := differs(json.loads(block.output), json.loads(printed[-1]))) is None, wrong
            elif block.kind == "text":
                assert printed[-1] == block.output

    rows = [json.loads(line) for line in (walk.here / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(json.loads(line).keys() == rows[0].keys() for line in sample.code.splitlines())
    assert len([line for line in (walk.here / "inbox.toml").read_text().splitlines() if line]) <= 20
    answers = [json.loads(line) for line in (walk.here / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    right = sum(answer["label"] == row["folder"] for answer, row in zip(answers, rows, strict=True))
    assert right > 0.95 * len(rows)
