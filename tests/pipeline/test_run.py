"""The whole run on a small model with a planted failure, and on data where there is nothing to repair."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest

from merasteer import store as artifacts
from merasteer.engine import LoadedModel
from merasteer.errors import BadSplits, InvalidInput
from merasteer.pipeline import Options, run

KEYS = {
    "task", "model", "decision", "reason", "artifact", "alpha", "hook_point", "direction", "n", "accuracy", "spi",
    "spi_interval", "level", "recall", "certificate", "seconds",
}  # fmt: skip
FEW = Options(ordering=100)


def test_a_planted_failure_is_repaired_certified_and_published(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    store, file = tmp_path / "store", tmp_path / "report.json"
    report = run(loaded, make_task(), store, FEW, report=file)
    assert report is not None
    assert set(report) == KEYS
    assert json.loads(file.read_text()) == report
    assert (report["decision"], report["reason"]) == ("certified", None)
    assert report["n"] == {"train": 300, "calibration": 120, "test": 100}
    accuracy = report["accuracy"]
    assert set(accuracy) == {"unsteered", "steered", "majority", "logit_bias"}
    assert accuracy["steered"] > accuracy["unsteered"] + 0.1
    assert report["spi"] > 0.2
    assert report["spi_interval"][0] <= report["spi"] <= report["spi_interval"][1]
    assert set(report["recall"]) == {"yes", "no"}
    assert report["certificate"]["test"] == "mcnemar"
    assert report["certificate"]["p_value"] <= 0.05
    assert report["certificate"]["candidates"] == 60
    assert set(report["seconds"]) == {"collect", "fit", "calibrate", "evaluate"}

    [entry] = artifacts.scan([store])
    assert entry.artifact is not None
    assert entry.digest == report["artifact"]
    assert entry.artifact.certified
    assert entry.artifact.alpha == report["alpha"]
    assert artifacts.default_entry([entry], [store], artifacts.model_slug(loaded.id), "desks") is entry


def test_equal_inputs_give_equal_digests_and_finished_stages_are_not_run_again(
    loaded: LoadedModel, make_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    first = run(loaded, task, tmp_path / "one", FEW)
    second = run(loaded, task, tmp_path / "two", FEW)
    assert first is not None
    assert second is not None
    assert first["artifact"] == second["artifact"]
    assert {**first, "seconds": None} == {**second, "seconds": None}
    assert tree(tmp_path / "one") == tree(tmp_path / "two")

    monkeypatch.setattr("merasteer.engine.Engine.start", lambda self: pytest.fail("a finished stage was run again"))
    assert run(loaded, task, tmp_path / "one", FEW) == first
    other = Options(ordering=100, seed=1)
    with pytest.raises(pytest.fail.Exception, match="run again"):
        run(loaded, task, tmp_path / "one", other)


def test_random_labels_abstain(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    rng = random.Random(7)
    task = make_task(relabel=lambda row: rng.choice(["yes", "no"]))
    report = run(loaded, task, tmp_path / "store", FEW)
    assert report is not None
    assert report["decision"] == "abstained"
    assert report["reason"] in ("uncertified", "no_probe")
    assert report["alpha"] is report["hook_point"] is report["direction"] is None
    assert (report["spi"], report["spi_interval"]) == (0.0, [0.0, 0.0])
    assert report["accuracy"]["steered"] == report["accuracy"]["unsteered"]
    if report["reason"] == "uncertified":
        [entry] = artifacts.scan([tmp_path / "store"])
        assert entry.digest == report["artifact"]
        assert entry.artifact is not None
        assert entry.artifact.alpha is None
        assert report["certificate"]["p_value"] > 0.05


def test_one_class_alone_is_no_probe_and_publishes_nothing(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    report = run(loaded, make_task(relabel=lambda row: "yes"), tmp_path / "store", FEW)
    assert report is not None
    assert (report["decision"], report["reason"]) == ("abstained", "no_probe")
    assert report["artifact"] is report["certificate"] is None
    assert set(report) == KEYS
    assert report["recall"]["no"] == [None, None]
    assert artifacts.scan([tmp_path / "store"]) == []


def test_stages_one_by_one_are_the_run(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    task, store = make_task(), tmp_path / "store"
    for stage in ("collect", "fit", "calibrate"):
        assert run(loaded, task, store, FEW, until=stage) is None
    unpublished = run(loaded, task, store, FEW, until="evaluate")
    assert unpublished is not None
    assert unpublished["artifact"] is None
    assert artifacts.scan([store]) == []
    whole = run(loaded, task, store, FEW)
    assert whole is not None
    assert whole == {**unpublished, "artifact": whole["artifact"]}


@pytest.mark.parametrize(("rows", "train"), [(30, 300), (None, 39)])
def test_too_few_rows_are_refused_with_the_remedy(
    loaded: LoadedModel, make_task, tmp_path: Path, rows: int | None, train: int
) -> None:
    with pytest.raises(BadSplits, match="splits"):
        run(loaded, make_task(train=train, n=rows), tmp_path / "store", FEW)
    assert not (tmp_path / "store").exists()


def test_bad_options_and_hook_points_are_refused(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    for wrong in (
        {"delta": 0.0}, {"epsilon": 1.0}, {"chances": 0}, {"seed": -1}, {"hook_points": ()}, {"directions": ("up",)},
        {"grid": "linear"}, {"family": "forest"}, {"positions": "some"}, {"test": "mcnemar", "epsilon": 0.1}, {"test": "t"},
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            Options(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="until"):
        run(loaded, make_task(), tmp_path / "store", FEW, until="everything")  # type: ignore[arg-type]


def tree(store: Path) -> dict[str, str]:
    """Published files and their hashes."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and ".work" not in path.parts
    }
