"""OpenAI's client for JavaScript and Vercel's AI SDK: plain, streamed, n, stop, log-probabilities, errors, cancel, a task's labels.

npm brings them into a folder of the test. Without node, npm or a registry there is nothing to try.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.slow

PACKAGES = ("openai@6", "ai@6", "@ai-sdk/openai-compatible@2", "zod@4")
PROMPT = 'Message: "Win a holiday for two. Enter your code 2220 online." Is this ham or spam? Answer as desk B'
SCRIPT = Path(__file__).with_name("javascript.mjs")


@pytest.fixture(scope="session")
def packages(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with the packages in it."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")

    def install(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            told = ran.stderr if ran.returncode else ""
        except subprocess.TimeoutExpired:
            told = "npm took more than five minutes"
        (folder / "told").write_text(told)

    folder = once("javascript", install)
    if told := (folder / "told").read_text():
        pytest.skip(f"npm does not bring {', '.join(PACKAGES)}: {' '.join(told.split())[-300:]}")
    return folder


def test_the_clients_of_javascript(packages: Path, address: str) -> None:
    script = shutil.copy(SCRIPT, packages)  # node looks for packages beside the script
    command = ["node", script, address, "mera-demo", "mera-demo:demo_spam", PROMPT]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    assert {found[name] for name in ("plain", "stream", "completion", "token")} == {" ham"}
    assert {found[name] for name in ("vercelPlain", "vercelStream")} == {" ham"}
    assert found["vercelCompletion"]  # it writes the prompt as a dialogue
    assert (found["several"], found["cancelled"]) == (3, 3)
    assert (found["stop"]["message"]["content"], found["stop"]["finish_reason"]) == (" h", "stop")
    assert "mera-demo" in found["models"]
    wrong = {"kind": "BadRequestError", "status": 400}
    assert found["wrong"] == {**wrong, "code": "invalid_input", "param": "temperature"}
    assert found["tooLong"] == {**wrong, "code": "context_length_exceeded", "param": "messages"}
    assert found["unknown"] == {"kind": "NotFoundError", "status": 404, "code": "unknown_model", "param": "model"}
    assert found["vercelObject"] == {"label": "spam"}
    assert (found["vercelUsage"], found["vercelFinish"]) == (2, "stop")
    assert found["vercelWrong"]["status"] == 400
    running, deadline = "", time.monotonic() + 10
    while running != "0.0" and time.monotonic() < deadline:
        lines = httpx.get(f"{address}/metrics").text.splitlines()
        running = next(line.split()[-1] for line in lines if line.startswith("mera_requests_running "))
    assert running == "0.0"  # what was cancelled has left the batch
