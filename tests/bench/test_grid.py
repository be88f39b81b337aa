"""The grid: every cell measured once, kept, and taken again; what fails, fails alone; what is killed goes on."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from merasteer.bench import METHODS, Grid, bench, chosen_methods, write_results
from merasteer.bench.methods import Unsteered
from merasteer.bench.reference import GRID
from merasteer.errors import InvalidInput
from merasteer.method.levels import level_of
from merasteer.pipeline import Bars, Options, run
from merasteer.store.ledger import entries

OPTIONS = Options(ordering=40, hook_points=("residual",))
NAMES = ("none", "prompt", "additive-error", "contrastive", "mera-best-covariance", "logit_bias")


@pytest.fixture
def grid(model_folder: Path, make_task: Any, tmp_path: Path) -> Grid:
    """One model, one task, six methods."""
    task = make_task(train=120, calibration=40, test=50)
    return Grid.of([str(model_folder)], [str(task)], chosen_methods(NAMES), tmp_path / "out", OPTIONS)


def without_seconds(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**cell, "seconds": None} for cell in cells]


def test_every_cell_is_measured_written_and_shown(grid: Grid) -> None:
    told: list[str] = []
    lines = io.StringIO()
    cells = bench(grid, Bars(Console(file=lines), lines=True), lambda cell: told.append(cell["method"]))
    assert [name for name in told if f": {name}\n" in lines.getvalue()] == told  # without a terminal, what is under way
    assert [cell["method"] for cell in cells] == told == [name for name in METHODS if name in NAMES]
    assert {cell["status"] for cell in cells} == {"done"}
    by = {cell["method"]: cell for cell in cells}
    assert {by[name]["decision"] for name in ("none", "prompt", "additive-error", "contrastive")} == {"applied"}
    assert by["mera-best-covariance"]["decision"] in ("certified", "alone", "abstained")
    assert by["mera-best-covariance"]["certificate"]["candidates"] == len(by["mera-best-covariance"]["curve"]) == 10
    assert (by["none"]["spi"], by["none"]["transitions"]["repaired"]) == (0.0, 0)
    assert len({cell["accuracy"]["unsteered"] for cell in cells}) == 1
    for cell in cells:
        counts = cell["transitions"]
        assert sum(counts.values()) == cell["n"]["test"] == 50
        assert (counts["kept_right"] + counts["broken"]) / 50 == pytest.approx(cell["accuracy"]["unsteered"])
        assert (counts["kept_right"] + counts["repaired"]) / 50 == pytest.approx(cell["accuracy"]["steered"])
    assert sum(part["n"] for part in by["additive-error"]["percentiles"]) == 50
    assert {row["layer"] for row in by["additive-error"]["probes"]} == {0, 1, 2}
    paths = write_results(grid, cells)
    assert "mera-best-covariance" in paths[0].read_text()
    assert json.loads((grid.out / "results.json").read_text())
    assert {path.suffix for path in paths} >= {".md", ".json", ".parquet", ".png", ".svg"}
    assert not any(path.is_file() for path in (grid.out / ".work").rglob("*"))  # activations are let go of


def test_what_is_done_is_not_measured_again_and_what_has_changed_is(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = bench(grid)

    def start(self: Any) -> None:
        raise RuntimeError("measured again")

    monkeypatch.setattr("merasteer.engine.Engine.start", start)
    assert bench(grid) == cells
    changed = bench(replace(grid, options=replace(OPTIONS, seed=1)))
    assert {cell["status"] for cell in changed} == {"failed"}  # it was tried, and the engine is not to start here
    assert all("measured again" in cell["error"] for cell in changed)


@dataclass(frozen=True)
class Broken(Unsteered):
    """A method that fails."""

    name: str = "broken"

    def measure(self, job: Any, bars: Any) -> Any:
        raise RuntimeError("it broke\nand this is the traceback")


def test_a_cell_that_fails_does_not_lose_the_others_and_is_tried_again(grid: Grid) -> None:
    few = replace(grid, methods=(METHODS["none"], Broken(), METHODS["logit_bias"]))
    cells = bench(few)
    assert [cell["status"] for cell in cells] == ["done", "failed", "done"]
    assert cells[1]["error"] == "RuntimeError: it broke"
    assert "broken" in write_results(few, cells)[0].read_text()
    mended = bench(replace(few, methods=(METHODS["none"], Unsteered("broken"), METHODS["logit_bias"])))
    assert [cell["status"] for cell in mended] == ["done", "done", "done"]
    assert (mended[0], mended[2]) == (cells[0], cells[2])


def test_a_model_or_task_that_cannot_be_read_fails_alone(grid: Grid, make_task: Any, tmp_path: Path) -> None:
    bad = make_task(name="small", train=10, calibration=10, test=10)
    methods = chosen_methods(["none", "logit_bias"])
    wider = Grid.of(["./no-such-folder", *grid.models], [str(bad), str(tmp_path / "desks.toml")], methods, grid.out, OPTIONS)  # fmt: skip
    cells = bench(wider)
    assert [(cell["model"], cell["task"], cell["status"]) for cell in cells[::2]] == [
        ("./no-such-folder", "small", "failed"), ("./no-such-folder", "desks", "failed"),
        ("tiny", "small", "failed"), ("tiny", "desks", "done"),
    ]  # fmt: skip
    assert "no-such-folder" in cells[0]["error"]
    assert "rows" in cells[4]["error"]
    write_results(wider, cells)


def test_interrupted_at_any_write_it_ends_with_the_table_of_one_run(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file becomes visible by one rename: stopped before each of the first, and resumed, nothing differs."""
    few = replace(grid, methods=tuple(chosen_methods(["none", "additive-error", "mera-best-covariance"])))
    whole = bench(replace(few, out=tmp_path / "whole"))
    import os

    real, left = os.replace, 0

    def dying(*args: Any, **kwargs: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        real(*args, **kwargs)

    monkeypatch.setattr(os, "replace", dying)
    stops = 0
    while True:
        left = 2  # one file more each time, then it dies
        try:
            cells = bench(few)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 5
    assert without_seconds(cells) == without_seconds(whole)
    left = 0
    both = ((few, cells), (replace(few, out=tmp_path / "whole"), whole))
    tables = [write_results(one, found)[0].read_text() for one, found in both]
    assert tables[0] == tables[1]


def test_both_answer_positions_are_cells_of_their_own(grid: Grid) -> None:
    both = replace(grid, positions=("last", "exact"), methods=tuple(chosen_methods(["additive-error"])))
    cells = bench(both)
    assert [(cell["position"], cell["status"]) for cell in cells] == [("last", "done"), ("exact", "done")]
    assert cells[0]["key"] != cells[1]["key"]


def test_research_arithmetic_stands_beside_ours_when_asked_for(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merasteer.bench.reference.GRID", GRID[::3])  # one prompt at a time, for each of them
    methods = chosen_methods(["none"], "reference")
    cells = bench(replace(grid, methods=tuple(methods)))
    assert [cell["method"] for cell in cells] == ["none", "reference-error", "reference-contrastive"]
    assert {cell["status"] for cell in cells} == {"done"}
    assert {cell["decision"] for cell in cells} == {"applied"}
    assert len(cells[1]["claimed"]) == 2
    assert cells[1]["accuracy"]["unsteered"] == cells[0]["accuracy"]["unsteered"]
    write_results(replace(grid, methods=tuple(methods)), cells)


@pytest.mark.parametrize(
    ("models", "tasks", "named"),
    [([], ["sms_spam"], "models"), (["a", "a"], ["sms_spam"], "models"), (["a"], [], "tasks"), (["a"], ["sms_spam"] * 2, "tasks")],
)  # fmt: skip
def test_a_grid_whose_records_would_collide_is_refused(models: list[str], tasks: list[str], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        Grid.of(models, tasks, chosen_methods(["none"]), Path("out"), OPTIONS)


def test_a_column_is_one_attempt_whose_level_its_rows_share(grid: Grid) -> None:
    """The three rows that are tested get a third of the first attempt's level each; a repeated bench is the same attempt."""
    few = replace(grid, methods=tuple(chosen_methods(["none", "mera-best-covariance", "mera", "logit_bias"])))
    cells = {cell["method"]: cell for cell in bench(few)}
    tested = [cells[name]["certificate"] for name in ("mera-best-covariance", "mera", "logit_bias")]
    assert {(one["attempt"], one["delta"], one["level"]) for one in tested} == {(1, 0.05, level_of(0.05, 1) / 3)}
    [entry] = entries(few.out)
    assert (entry.what, entry.parts, entry.attempt, entry.level) == ("bench", 3, 1, level_of(0.05, 1))
    for name in ("mera-best-covariance", "mera", "logit_bias"):
        cell = cells[name]
        p, refused = cell["certificate"]["p_value"], cell["certificate"]["collapse"] is not None
        passed = "certified" if p <= level_of(0.05, 1) / 3 else "alone" if p <= 0.05 else "abstained"
        assert cell["decision"] == ("abstained" if refused else passed)
        assert (cell["reason"] == "collapse") == (refused and passed != "abstained")
    few.path(grid.models[0], few.tasks[0], METHODS["mera"]).unlink()
    bench(few)
    assert len(entries(few.out)) == 1
    other = replace(few, methods=tuple(chosen_methods(["mera-best-covariance", "mera-best-euclidean"])))
    again = bench(other)  # other rows are another attempt; the cell that is there keeps the level that it was tested at
    assert [one["certificate"]["attempt"] for one in again] == [2, 1]
    assert [entry.parts for entry in entries(few.out)] == [3, 2]


def test_a_bench_and_a_run_on_the_same_rows_count_each_other(grid: Grid, loaded: Any) -> None:
    few = replace(grid, methods=tuple(chosen_methods(["mera"])))
    bench(few)
    report = run(loaded, few.tasks[0], few.out, METHODS["mera"].options(OPTIONS))  # the very options of the row
    assert report is not None
    assert (report["certificate"]["attempt"], report["certificate"]["level"]) == (2, level_of(0.05, 2))
    [changed] = bench(replace(few, options=replace(OPTIONS, seed=1)))
    assert changed["certificate"]["attempt"] == 3
    assert [entry.what for entry in entries(few.out)] == ["bench", "run", "bench"]


def test_unknown_names_are_told_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match=r"methods: 'prayer'.*mera-best-euclidean"):
        chosen_methods(["none", "prayer"])
    with pytest.raises(InvalidInput, match="compat: 'original' is unknown; give reference"):
        chosen_methods(["none"], "original")
    with pytest.raises(InvalidInput, match="answer positions: 'first'"):
        Grid.of(["a"], ["sms_spam"], chosen_methods(["none"]), Path("out"), OPTIONS, positions=["first"])


def test_rows_that_differ_only_in_what_may_be_chosen_share_one_fit(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with what another row has no candidate for; another direction, or layer, is fit by itself."""
    fitted: list[Any] = []
    measured: list[Any] = []
    for module, name, kept in (("run", "fit", fitted), ("fit", "gradients", measured)):
        real = getattr(sys.modules[f"merasteer.pipeline.{module}"], name)

        def counted(job: Any, *rest: Any, real: Any = real, kept: list[Any] = kept) -> Any:
            kept.append(job.options)
            return real(job, *rest)

        monkeypatch.setattr(sys.modules[f"merasteer.pipeline.{module}"], name, counted)
    names = ["mera", "logit_bias", "label_probe", "mera+bias", "certified-best"]
    shared = replace(grid, methods=tuple(chosen_methods(names)))
    cells = bench(shared)
    assert [cell["status"] for cell in cells] == ["done"] * len(names), [cell["error"] for cell in cells]
    assert (len(fitted), len(measured)) == (1, 1)
    by = {cell["method"]: {row["method"] for row in cell["curve"]} for cell in cells}
    assert by["mera"] == {"mera"}
    assert by["logit_bias"] == {"logit_bias"}
    assert by["label_probe"] == {"label_probe"}
    assert by["certified-best"] == {"mera", "logit_bias", "mera+bias", "label_probe"}
    bench(replace(shared, methods=tuple(chosen_methods(["gradient", "mera-best-euclidean", "mera"]))))
    assert [one.directions for one in fitted[1:]] == [("euclidean",), ("gradient",)]
