"""`mera serve --tensor-parallel 2`: two processes, one server, the demo's answers; SIGTERM to the first ends both."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

pytestmark = pytest.mark.slow
ASK = {
    "inputs": {"desk": "B", "text": "Claim your reward before Thursday. Win a holiday for two."},
    "steering": {"task": "demo_spam"},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ready(url: str, processes: list[subprocess.Popen[bytes]]) -> None:
    end = time.monotonic() + 90
    while time.monotonic() < end and all(process.poll() is None for process in processes):
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError([process.poll() for process in processes])


def test_two_processes_serve_as_one_and_end_together() -> None:
    port, meeting = free_port(), free_port()
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "mera_server",
        "serve",
        "--tensor-parallel",
        "2",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": str(i), "LOCAL_RANK": str(i)}, stderr=subprocess.DEVNULL
        )
        for i in range(2)
    ]
    url = f"http://127.0.0.1:{port}"
    try:
        ready(url, processes)
        own = httpx.post(f"{url}/generate", json=ASK, timeout=60).json()["mera"]
        assert (own["reason"], own["guarantee"]["certified"]) == ("conditions", False)
        assert own["guarantee"]["why"].endswith("tensor-parallel ranks 1 then, 2 here")  # it was certified on one
        told = {**ASK, "steering": {**ASK["steering"], "alpha": 0.03}}
        answers = [httpx.post(f"{url}/generate", json=told, timeout=60).json() for _ in range(3)]
        assert [answer["generated_text"] for answer in answers] == [" spam"] * 3
        assert answers[0]["mera"]["decision"] == "steered"
        assert answers[0]["mera"]["predicted_error"]["after"] <= answers[0]["mera"]["alpha"] + 1e-4
        assert httpx.post(f"{url}/probes/reload").status_code == 422  # no process may see another store than the rest
        for process in reversed(processes):  # as torchrun does
            process.send_signal(signal.SIGTERM)
        assert [process.wait(40) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
