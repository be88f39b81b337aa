"""`mera bench`, killed for real at random moments and started again, ends with the table of one run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

METHODS = ["none", "additive-error", "contrastive", "mera-best-covariance", "mera-logistic-euclidean", "logit_bias"]
KILLS = 5


@pytest.mark.slow
def test_killed_five_times_and_resumed_it_is_the_table_of_one_run(
    model_folder: Path, make_task: Any, tmp_path: Path
) -> None:
    task = make_task(train=160, calibration=60, test=50)

    def command(out: Path) -> list[str]:
        given = ["--models", str(model_folder), "--tasks", str(task), "--methods", *METHODS, "--ordering", "40"]
        return [sys.executable, "-m", "mera_server", "bench", *given, "--out", str(out)]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), env=environment, check=True, capture_output=True, timeout=300)
    seconds = time.monotonic() - start
    rng, killed, out = random.Random(0), 0, tmp_path / "killed"
    for _ in range(20):
        process = subprocess.Popen(
            command(out), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout=rng.uniform(0.3, 0.7) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        if killed == KILLS:
            break
        if process.returncode == 0:  # it came to its end before it could be killed often enough: one cell again
            shutil.rmtree(next((out / "cells").glob("*/*/*")))
    assert killed == KILLS
    subprocess.run(command(out), env=environment, check=True, capture_output=True, timeout=300)
    assert (out / "table.md").read_text() == (tmp_path / "whole" / "table.md").read_text()
    assert not list(out.rglob("*.tmp"))
