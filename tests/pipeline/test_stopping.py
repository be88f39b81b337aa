"""What is seen of a run without a terminal, how it is stopped, and what the libraries say meanwhile."""

from __future__ import annotations

import io
import os
import re
import signal
import time
import warnings
from pathlib import Path

import pytest
from rich.console import Console
from transformers.utils import logging

from merasteer.pipeline import Bars, progress, quiet

from ..forking import Forker

# A run whose first stage takes a while, and which tells of it often.
SLOW = """
import sys, time
from merasteer.pipeline import collect, progress
from merasteer.pipeline.draft import Draft
from mera_server.cli import main
collect.PART_ROWS, progress.EVERY, finish, pause = 20, 0.1, Draft.finish, float(sys.argv.pop())
def slowly(self, parts):
    finish(self, parts)
    time.sleep(pause)
Draft.finish = slowly
sys.exit(main(sys.argv[1:]))
"""


def test_a_run_that_is_interrupted_says_where_and_goes_on_with_the_same_command(
    forker: Forker, model_folder: Path, make_task, tmp_path: Path
) -> None:
    task = make_task(train=80, calibration=40, test=40)
    command = ["run", "--model", str(model_folder), "--task", str(task), "--out", str(tmp_path / "store")]
    command += ["--ordering", "40", "--directions", "covariance", "--device", "cpu"]
    child = forker.start(SLOW, [*command, "1"], os.environ)
    first = child.stderr.readline()
    assert re.fullmatch(r"mera: collect: \d+ of 160(, [\d.]+ a second, \d:\d\d left)?\n", first)
    start = time.monotonic()
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(30)
    assert time.monotonic() - start < 3.0
    assert child.returncode == 130
    assert out == ""
    last = err.splitlines()[-1]
    assert re.fullmatch(r"mera: stopped in collect: \d+ of 160; the same command goes on from there", last)
    again = forker.start(SLOW, [*command, "0"], os.environ)
    out, err = again.communicate(120)
    assert (again.returncode, out != "") == (0, True)
    lines = err.splitlines()
    assert all(line.startswith("mera: ") for line in lines)
    assert [line.split(":")[1].strip() for line in lines if "done in" in line] == [
        "collect", "fit", "calibrate", "evaluate",
    ]  # fmt: skip


def test_without_a_terminal_there_is_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    text = io.StringIO()
    bars = Bars(Console(file=text), lines=True)
    with bars.bar("collect", 1200) as bar:
        bar.skip(200)
        for _ in range(7):
            now[0] += 10.0
            bar.advance(100)
        assert bars.where == "collect: 900 of 1,200"
        with bars.bar("inside", 3) as inner:
            inner.advance()
            assert bars.where == "inside: 1 of 3"
    assert bars.where is None
    assert text.getvalue().splitlines() == [
        "mera: collect: 500 of 1,200, 10 a second, 1:10 left",
        "mera: collect: 800 of 1,200, 10 a second, 0:40 left",
    ]


def test_libraries_are_quiet_inside_and_as_they_were_behind_it() -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet():
        warnings.warn("a remark of a library", stacklevel=1)  # an error in these tests, were it shown
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    with pytest.warns(UserWarning, match="remark"):
        warnings.warn("a remark of a library", stacklevel=1)
