"""What stands against a study is told before its first cell: all of it, in one line, and nothing is written."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merasteer.bench import Grid, check_grid, chosen_methods
from merasteer.bench.tracking import check_tracker
from merasteer.errors import InvalidInput
from merasteer.pipeline import Options


@pytest.fixture
def grid(model_folder: Path, make_task: Any, tmp_path: Path) -> Grid:
    """A study against which nothing stands."""
    task = make_task(train=60, calibration=30, test=20)
    return Grid.of([str(model_folder)], [str(task)], chosen_methods(["none"]), tmp_path / "out", Options())


def test_a_good_study_is_let_through_without_a_model_being_loaded(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merasteer.engine.loading.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    check_grid(grid)
    assert list(grid.out.iterdir()) == []


def test_everything_is_told_at_once(grid: Grid, make_task: Any, tmp_path: Path) -> None:
    few = make_task(name="few", train=10, calibration=10, test=10)
    spelt = make_task(name="spelt", train=60, calibration=30, test=20)
    spelt.write_text(spelt.read_text().replace('no = ["no"]', 'no = ["nowhere"]'))
    wrong = Grid.of(
        ["./no-such-folder", *grid.models], [str(few), str(spelt)], grid.methods, grid.out,
        Options(layers=(7,)),
    )  # fmt: skip
    with pytest.raises(InvalidInput) as caught:
        check_grid(wrong)
    said = str(caught.value)
    assert said.startswith("4 things stand against this study: ")
    for part in (
        "'few': splits.train: 10 rows are too few",
        "no such folder './no-such-folder'",
        "layers: 7 is outside",
        "variants.no",
    ):
        assert part in said
    assert "\n" not in said
    assert not grid.out.exists()


def test_one_thing_is_told_as_it_is(grid: Grid) -> None:
    with pytest.raises(InvalidInput, match=r"^model: no such folder '\./absent'"):
        check_grid(replace(grid, models=("./absent",)))


def test_rows_that_one_model_cannot_take_are_told(grid: Grid, tmp_path: Path) -> None:
    rows = tmp_path / "desks.jsonl"
    lines = rows.read_text().splitlines()
    rows.write_text("\n".join([lines[0].replace('"text": "', '"text": "' + "g1 " * 80), *lines[1:]]) + "\n")
    with pytest.raises(InvalidInput, match=r"tiny: .*desks\.jsonl: line 1: prompt and answer exceed"):
        check_grid(grid)


@pytest.mark.parametrize("name", ["pyarrow", "matplotlib"])
def test_a_missing_package_names_its_extra(grid: Grid, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InvalidInput, match=rf"{name}: the package is missing; install mera-server\[pipeline\]"):
        check_grid(grid)


def test_a_folder_that_cannot_be_written_is_told(grid: Grid, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"^out: .* cannot be written"):
        check_grid(replace(grid, out=tmp_path / "file" / "out"))


def test_a_tracker_is_looked_for_and_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    check_tracker(None)
    with pytest.raises(InvalidInput, match="'paper' is not known"):
        check_tracker("paper")
    monkeypatch.setattr("merasteer.bench.tracking.find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"needs the package trackio; install mera-server\[trackio\]"):
        check_tracker("trackio")
