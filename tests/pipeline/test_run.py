"""The whole run on a small model with a planted failure, and on data where there is nothing to repair."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from merasteer import store as artifacts
from merasteer.engine import LoadedModel
from merasteer.engine.layers import family_of
from merasteer.errors import BadSplits, InvalidInput
from merasteer.method.levels import level_of
from merasteer.pipeline import Options, prepare, run
from merasteer.pipeline.batch import running
from merasteer.store import ledger

KEYS = {
    "task", "model", "decision", "reason", "artifact", "method", "alpha", "hook_point", "direction", "n", "accuracy", "spi",
    "spi_interval", "level", "recall", "certificate", "seconds", "balanced_accuracy", "confusion", "auroc", "coverage", "baselines",
    "candidates", "strength",
}  # fmt: skip
FEW = Options(ordering=100)


def test_a_planted_failure_is_repaired_and_certified(finished) -> None:
    report = finished.report
    assert set(report) == KEYS
    assert json.loads(finished.file.read_text()) == report
    assert (report["decision"], report["reason"]) == ("certified", None)
    assert report["n"] == {"train": 300, "calibration": 120, "test": 100}
    accuracy = report["accuracy"]
    assert set(accuracy) == {"unsteered", "steered", "majority", "logit_bias", "label_probe", "text_classifier"}
    assert accuracy["steered"] > accuracy["unsteered"] + 0.1
    assert report["spi"] > 0.2
    assert report["spi_interval"][0] <= report["spi"] <= report["spi_interval"][1]
    assert set(report["recall"]) == {"yes", "no"}
    assert report["certificate"]["test"] == "mcnemar"
    certificate = report["certificate"]
    assert certificate["p_value"] <= certificate["level"] == level_of(0.05, certificate["attempt"]) == 0.025
    assert (certificate["collapse"], certificate["below_majority"]) == (None, False)
    assert certificate["broken"]["lost"] == certificate["lost"]
    assert certificate["broken"]["share"] < certificate["broken"]["upper"] < 0.2
    assert 60 + 1 + 5 < certificate["candidates"] <= 200  # steps, the bias, the best steps with it, the label probe
    assert report["method"] in ("mera", "mera+bias", "label_probe")
    assert set(report["seconds"]) == {"collect", "fit", "calibrate", "evaluate"}


def test_the_published_artifact_is_the_reported_one(finished, loaded: LoadedModel) -> None:
    [entry] = artifacts.scan([finished.store])
    assert entry.artifact is not None
    assert entry.digest == finished.report["artifact"]
    assert entry.artifact.certified
    assert entry.artifact.alpha == finished.report["alpha"]
    assert entry.artifact.contrastive is not None
    assert entry.artifact.label_bias is not None
    assert artifacts.default_entry([entry], [finished.store], artifacts.model_slug(loaded.id), "desks") is entry


def test_the_predicted_error_of_the_calibration_split_is_that_of_the_served_path(finished, loaded: LoadedModel) -> None:
    [entry] = artifacts.scan([finished.store])
    artifact = entry.artifact
    assert artifact is not None
    job = prepare(loaded, finished.task, finished.store, finished.options)
    served = artifact.correction.under("served")
    prompts = job.prompts(job.splits.calibration)
    with running(loaded, prompts.longest) as engine:
        engine.register("served", artifact.vectors)
        read = {
            name: [engine.submit(request).result(60).predicted_error.before for request in prompts.requests(asked)]
            for name, asked in (("served", served), ("unsteered", served.watching()))
        }
    assert artifact.calibration["predicted_error"]["n"] == len(job.splits.calibration)
    mean = {name: sum(values) / len(values) for name, values in read.items()}
    assert artifact.calibration["predicted_error"]["mean"] == pytest.approx(mean["served"], abs=1e-4)
    assert abs(mean["served"] - mean["unsteered"]) > 0.01  # the two are told apart


def test_finished_stages_are_not_run_again(finished, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("merasteer.engine.Engine.start", lambda self: pytest.fail("a finished stage was run again"))
    assert run(loaded, finished.task, finished.store, finished.options) == finished.report
    with pytest.raises(pytest.fail.Exception, match="run again"):
        run(loaded, finished.task, finished.store, Options(ordering=100, seed=1))


def test_random_labels_abstain(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    rng = random.Random(7)
    task = make_task(relabel=lambda row: rng.choice(["yes", "no"]))
    report = run(loaded, task, tmp_path / "store", FEW)
    assert report is not None
    assert report["decision"] == "abstained"
    assert report["reason"] in ("uncertified", "no_probe")
    assert report["alpha"] is report["hook_point"] is report["direction"] is report["method"] is None
    assert (report["spi"], report["spi_interval"]) == (0.0, [0.0, 0.0])
    assert report["accuracy"]["steered"] == report["accuracy"]["unsteered"]
    if report["reason"] == "uncertified":
        [entry] = artifacts.scan([tmp_path / "store"])
        assert entry.digest == report["artifact"]
        assert entry.artifact is not None
        assert entry.artifact.alpha is None
        assert report["certificate"]["p_value"] > report["certificate"]["level"] == 0.025


def test_one_class_alone_is_no_probe_and_publishes_an_artifact_that_says_so(
    loaded: LoadedModel, make_task, tmp_path: Path
) -> None:
    report = run(loaded, make_task(relabel=lambda row: "yes"), tmp_path / "store", FEW)
    assert report is not None
    assert (report["decision"], report["reason"]) == ("abstained", "no_probe")
    assert report["certificate"] is None
    [entry] = artifacts.scan([tmp_path / "store"])
    assert entry.digest == report["artifact"]
    assert entry.artifact is not None
    assert (entry.artifact.certified, entry.artifact.alpha, entry.artifact.vectors.active_layers) == (False, None, ())
    assert set(report) == KEYS
    assert report["recall"]["no"] == [None, None]


def test_the_papers_bound_cannot_certify() -> None:
    with pytest.raises(InvalidInput, match="test: 'paper' is not one of mcnemar, betting, hoeffding"):
        Options(test="paper")


def test_stages_one_by_one_are_the_run_and_equal_inputs_give_equal_files(
    loaded: LoadedModel, finished, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for stage in ("collect", "fit", "calibrate"):
        assert run(loaded, finished.task, store, finished.options, until=stage) is None
    unpublished = run(loaded, finished.task, store, finished.options, until="evaluate")
    assert unpublished is not None
    assert unpublished["artifact"] is None
    assert artifacts.scan([store]) == []
    whole = run(loaded, finished.task, store, finished.options)
    assert whole == {**unpublished, "artifact": finished.report["artifact"]}
    assert {**whole, "seconds": None} == {**finished.report, "seconds": None}
    assert tree(store) == tree(finished.store)


def test_other_options_run_through(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    """The answer anywhere in the text, a gain above epsilon, second chances, the paper's grid and probe, all positions."""
    task = make_task(train=120, calibration=60, test=40)
    task.write_text(task.read_text().replace("[data]", '[answer]\nposition = "exact"\nmax_new_tokens = 3\n[data]'))
    options = Options(
        ordering=40, epsilon=0.02, chances=3, grid="paper", family="lasso", positions="all",
        hook_points=("residual",), directions=("euclidean", "contrastive"), top_k=20,
    )  # fmt: skip
    report = run(loaded, task, tmp_path / "store", options)
    assert report is not None
    assert report["certificate"]["test"] == "betting"
    assert report["certificate"]["chances"] == 3
    assert report["certificate"]["candidates"] == 20 + 1 + 5
    [entry] = artifacts.scan([tmp_path / "store"])
    assert entry.artifact is not None
    assert entry.artifact.manifest["steering"]["positions"] == "all"
    assert entry.artifact.task.position == "exact"
    assert len(entry.artifact.calibration["tested"]) == 3


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
        {"grid": "linear"}, {"family": "forest"}, {"positions": "some"}, {"layers": "some"}, {"candidates": ()}, {"candidates": ("luck",)},
        {"candidates": ("mera", "mera")}, {"test": "mcnemar", "epsilon": 0.1}, {"test": "t"},
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match=next(iter(wrong))):
            Options(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="until"):
        run(loaded, make_task(), tmp_path / "store", FEW, until="everything")  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()


def test_a_hook_point_that_the_architecture_lacks_is_refused(
    loaded: LoadedModel, make_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = {"residual": family_of(loaded.model).sites["residual"]}
    monkeypatch.setattr("merasteer.pipeline.job.family_of", lambda model: replace(family_of(model), sites=sites))
    with pytest.raises(InvalidInput, match=r"hook_points.*mlp_input.*use residual"):
        run(loaded, make_task(), tmp_path / "store", FEW)


def test_a_model_without_a_folder_cannot_be_named(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="save it first"):
        run(replace(loaded, source=None), make_task(), tmp_path / "store", FEW)


def tree(store: Path) -> dict[str, str]:
    """Published files and their hashes; the ledger holds the time, which differs."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file() and ".work" not in path.parts and path.name != ledger.FILE
    }
