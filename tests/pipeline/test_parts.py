"""The parts of the run that need no model: thresholds, the work folder, the report file, the bars."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from merasteer.errors import InvalidInput
from merasteer.pipeline import Bars, write_report
from merasteer.pipeline.fit import PAPER_GRID, thresholds
from merasteer.pipeline.workspace import Output, Workspace


def logit(alpha: float) -> float:
    return float(np.log(alpha / (1 - alpha)))


def test_thresholds_are_evenly_spaced_in_logit() -> None:
    predicted = np.linspace(-2.0, 2.0, 1001)
    alphas = thresholds(predicted)
    logits = [logit(alpha) for alpha in alphas]
    assert len(alphas) == 10
    np.testing.assert_allclose(np.diff(logits), np.diff(logits)[0], atol=1e-3)
    assert logits[0] == pytest.approx(-1.96 - 3.92, abs=1e-3)
    assert logits[-1] == pytest.approx(1.6, abs=1e-3)


@pytest.mark.parametrize("predicted", [np.zeros(5), np.array([-500.0, 500.0]), np.full(3, 40.0), np.full(3, -1e9)])
def test_thresholds_are_probabilities_whatever_was_predicted(predicted: np.ndarray) -> None:
    alphas = thresholds(predicted)
    assert 1 <= len(alphas) <= 10
    assert all(0.0 < alpha < 1.0 for alpha in alphas)
    assert sorted(set(alphas)) == alphas


def test_the_paper_grid_does_not_look_at_the_data() -> None:
    assert thresholds(np.array([1.0, 2.0]), "paper") == list(PAPER_GRID)
    np.testing.assert_allclose(np.diff(PAPER_GRID), 0.1)


def test_a_stage_is_saved_whole_and_read_back(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "m", "t", {"seed": 0})
    assert work.load("fit") is None
    work.save("fit", Output({"a": [1, None]}, {"x": torch.arange(6).reshape(2, 3).T}))
    found = work.load("fit")
    assert found is not None
    assert found.facts == {"a": [1, None]}
    assert found.tensors["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert [path.name for path in work.folder.iterdir()] == ["fit.safetensors"]
    work.save("bare", Output({}))
    assert work.load("bare") is not None


def test_a_damaged_stage_counts_as_not_run(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "m", "t", {})
    work.save("fit", Output({}, {"x": torch.ones(100)}))
    file = work.folder / "fit.safetensors"
    for damage in (b"", file.read_bytes()[:50], file.read_bytes()[:-4], b"{}" * 100):
        file.write_bytes(damage)
        assert work.load("fit") is None


def test_inputs_decide_the_folder(tmp_path: Path) -> None:
    keys = {Workspace(tmp_path, "m", "t", inputs).key for inputs in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"})}
    assert len(keys) == 4
    assert Workspace(tmp_path, "m", "t", {"a": 1, "b": 2}).key == Workspace(tmp_path, "m", "t", {"b": 2, "a": 1}).key


def test_leftovers_of_killed_runs_are_swept_after_an_hour(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "m", "t", {})
    work.save("collect", Output({}))
    old, young = work.folder / ".fit.safetensors.1.tmp", work.folder / ".fit.safetensors.2.tmp"
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    work.save("fit", Output({}))
    assert young.exists()
    assert not old.exists()


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    write_report(file, {"spi": 0.5})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InvalidInput, match=r"report\.json: .*No space left"):
        write_report(file, {"spi": 0.9})
    assert json.loads(file.read_text()) == {"spi": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_bars_are_quiet_without_a_terminal() -> None:
    text = io.StringIO()
    with Bars(Console(file=text)).bar("collect", 2) as bar:
        bar.advance()
    assert text.getvalue() == ""
    with Bars(Console(file=text, force_terminal=True)).bar("collect", 2) as bar:
        bar.advance()
    assert "collect" in text.getvalue()
