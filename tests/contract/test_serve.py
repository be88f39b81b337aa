"""`mera serve` as a process: it listens, answers, and ends on a signal; a model that cannot be loaded ends it with one line."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
from mera_server.settings import Settings

Serve = Callable[..., AbstractContextManager[tuple[subprocess.Popen[str], str]]]


def test_it_serves_until_it_is_interrupted(settings: Settings, mera_serve: Serve, tmp_path: Path) -> None:
    with mera_serve("--port", "0", fresh=True, MERA_STORE=str(tmp_path), MERA_MAX_REQUESTS="4") as (process, address):
        assert httpx.get(f"{address}/health/live").status_code == 200
        deadline = time.monotonic() + 60
        while httpx.get(f"{address}/health/ready").status_code != 200 and time.monotonic() < deadline:
            time.sleep(0.1)
        body = {"inputs": {"desk": "A", "text": "hello"}, "steering": {"task": "demo_spam"}}
        found = httpx.post(f"{address}/generate", json=body).json()
        assert found["mera"]["task"] == "demo_spam"
        config = httpx.get(f"{address}/info").json()["config"]
        assert (config["max_requests"], config["store"]) == (4, str(tmp_path))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_a_model_that_cannot_be_loaded(settings: Settings, mera_serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with mera_serve("--port", "0", "--model", str(tmp_path)) as (process, _):
        assert process.wait(60) == 2
        assert process.stderr is not None
        lines = [line for line in process.stderr.read().splitlines() if line.startswith("mera: ")]
        assert len(lines) == 1
        assert lines[0].startswith("mera: model: ")
