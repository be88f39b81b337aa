"""The benchmark runs and ends in its JSON line; what anything costs does not matter here."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest


def test_a_runs_cost_is_told_stage_by_stage(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(root / "benchmarks")
    main = runpy.run_path(str(root / "benchmarks" / "run_cost.py"))["main"]
    main(["--train", "60", "--calibration", "20", "--test", "20", "--ordering", "20", "--width", "32", "--depth", "2"])
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert [row["stage"] for row in found["stages"]] == ["collect", "fit", "calibrate", "evaluate"]
    assert [line.split(" | ")[0] for line in table[2:]] == [f"| {row['stage']}" for row in found["stages"]]
    assert all(row["seconds"] > 0 and row["resident_gib"] > 0.1 for row in found["stages"])
    assert found["setup"]["layers"] == 2
