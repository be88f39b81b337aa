"""The benchmark runs and ends in its JSON line; how fast anything is does not matter here."""

from __future__ import annotations

import json
import math
import runpy
from pathlib import Path

import pytest


def test_calibration_ends_in_a_ratio(root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.syspath_prepend(root / "benchmarks")
    main = runpy.run_path(str(root / "benchmarks" / "calibration.py"))["main"]
    main(
        ["--size", "tiny", "demo", "--rounds", "1", "--prompts", "3", "--prompt", "12", "--alphas", "2", "--loop", "9"]
    )
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [row.split(" | ")[:2] for row in table[2:]] == [["| tiny", "3 × 5"], ["| demo", "3 × 5"]]
    for size in ("tiny", "demo"):
        assert math.isfinite(found["ratios"][size])
        assert found["ratios"][size] > 0
        assert found["tokens_per_second"][size]["batch"] > 0
    assert found["tokens_per_second"]["demo"]["same_answers"] == 1.0  # both sides do the same work
    assert found["setup"]["rounds"] == 1
