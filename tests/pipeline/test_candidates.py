"""The logit bias as a candidate beside the steps and on top of them, logistic probes, one layer alone, one position alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merasteer import store as artifacts
from merasteer.engine import LoadedModel
from merasteer.method.scores import apply_logit_bias
from merasteer.pipeline import Options, run
from merasteer.pipeline.calibrate import COMBINED, Choice, choose, key_of
from merasteer.pipeline.job import prepare
from merasteer.pipeline.telling import verdict
from merasteer.store.schema import OWN_METHODS
from merasteer.types import Artifact, Correction

STEPS = [Correction("mera", "residual/euclidean", alpha / 10) for alpha in range(1, 9)]
BIAS = Correction("logit_bias", bias=(0.0, 1.0))


def chosen_from(
    candidates: tuple[Any, ...], gains: dict[str, float], steps: Sequence[Correction] = STEPS
) -> tuple[Choice, list[list[str]]]:
    """The choice when each candidate has the given gain (0 if none), and what was asked for, batch by batch."""
    asked: list[list[str]] = []

    def gains_of(wanted: Sequence[Correction]) -> list[float]:
        asked.append([key_of(one) for one in wanted])
        return [gains.get(key_of(one), 0.0) for one in wanted]

    def outcomes(one: Correction) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(100) < 50, np.arange(100) < 50 + round(100 * gains.get(key_of(one), 0.0))

    return choose(steps, (0.0, 1.0), gains_of, outcomes, Options(candidates=candidates), lambda: 0.05), asked


def test_keys_and_methods_tell_candidates_apart() -> None:
    assert [
        (key_of(one), one.method) for one in (STEPS[0], BIAS, Correction("mera+bias", "a/b", 0.25, bias=(0.0, 1.0)))
    ] == [
        ("residual/euclidean/0.1", "mera"),
        ("logit_bias", "logit_bias"),
        ("a/b/0.25+bias", "mera+bias"),
    ]


def test_the_best_is_certified_whichever_it_is() -> None:
    for best in ("logit_bias", "residual/euclidean/0.3", "residual/euclidean/0.3+bias"):
        choice, asked = chosen_from(OWN_METHODS, {"residual/euclidean/0.3": 0.1, "logit_bias": 0.1, best: 0.2})
        assert choice.chosen is not None
        assert key_of(choice.chosen) == best
        assert choice.certificate.candidates == 1 + 8 + COMBINED
        assert choice.readout == "residual/euclidean"
        assert len(asked) == 2


def test_the_bias_goes_on_top_of_the_best_steps_only() -> None:
    gains = {f"residual/euclidean/0.{i}": i / 100 for i in range(1, 9)}
    choice, asked = chosen_from(("mera+bias",), gains)
    assert asked == [[key_of(step) for step in STEPS], [f"residual/euclidean/0.{i}+bias" for i in (8, 7, 6, 5, 4)]]
    assert {one.method for one in choice.candidates} == {"mera+bias"}
    assert choice.chosen is None


def test_of_equal_gains_the_one_that_does_less_is_preferred() -> None:
    gains = {"logit_bias": 0.2, "residual/euclidean/0.1": 0.2, "residual/euclidean/0.1+bias": 0.2}
    for candidates, best in ((OWN_METHODS, "logit_bias"), (("mera", "mera+bias"), "residual/euclidean/0.1")):
        choice, _ = chosen_from(candidates, gains)
        assert choice.certificate.chosen == best


def test_without_steps_the_bias_alone_is_tried_and_has_no_readout() -> None:
    choice, asked = chosen_from(OWN_METHODS, {"logit_bias": 0.2}, [])
    assert asked == [["logit_bias"]]
    assert choice.chosen == BIAS
    assert choice.readout is None
    none, _ = chosen_from(("mera",), {}, [])
    assert (none.candidates, none.readout, none.certificate.certified) == ((), None, False)
    watched, asked = chosen_from(("logit_bias",), {"logit_bias": 0.2})
    assert asked == [["logit_bias"]]  # no step is measured where none can be chosen
    assert watched.readout == "residual/euclidean"


def test_a_level_is_asked_for_once_when_all_is_ranked_and_is_what_the_best_is_tested_at() -> None:
    told: list[str] = []
    gains = {"logit_bias": 0.05}  # 5 gained and none lost: p = 2^-5

    def gains_of(wanted: Sequence[Correction]) -> list[float]:
        told.append("ranked")
        return [gains.get(key_of(one), 0.0) for one in wanted]

    def outcomes(one: Correction) -> tuple[np.ndarray, np.ndarray]:
        told.append("tested")
        return np.arange(100) < 50, np.arange(100) < 50 + round(100 * gains.get(key_of(one), 0.0))

    def level_of(level: float) -> float:
        told.append("level")
        return level

    for level, certified in ((0.05, True), (0.025, False)):
        choice = choose(STEPS, (0.0, 1.0), gains_of, outcomes, Options(), lambda level=level: level_of(level))
        assert (choice.certificate.certified, choice.certificate.delta) == (certified, level)
    assert told == ["ranked", "ranked", "level", "tested"] * 2
    told.clear()
    none = choose([], (), gains_of, outcomes, Options(candidates=("mera",)), lambda: level_of(0.05))
    assert (none.certificate.certified, "level" in told) == (False, False)  # what tests nothing is no attempt


def published(store: Path) -> Artifact:
    [entry] = artifacts.scan([store])
    assert entry.artifact is not None, entry.reason
    return entry.artifact


def mostly_yes(row: dict[str, str]) -> str:
    return "yes" if random.Random(row["text"]).random() < 0.9 else "no"


def test_a_bias_is_certified_published_and_measured_like_a_step(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    """Nine labels of ten are "yes" whatever the text says: the bias repairs that, and the readouts beside it only watch."""
    options = Options(ordering=100, candidates=("logit_bias",), allow_collapse=True)  # it says yes to everything
    task = make_task(relabel=mostly_yes)
    report = run(loaded, task, tmp_path / "store", options)
    assert report is not None
    assert (report["decision"], report["method"]) == ("certified", "logit_bias")
    assert report["alpha"] is report["hook_point"] is report["direction"] is None
    assert report["accuracy"]["steered"] > report["accuracy"]["unsteered"] + 0.2
    assert report["spi"] > 0.5
    assert report["certificate"]["candidates"] == 1
    assert report["certificate"]["collapse"] == "yes gets 100% of the answers"
    assert not report["certificate"]["below_majority"]
    found = published(tmp_path / "store")
    assert found.certified
    assert found.alpha is None
    assert found.manifest["steering"]["method"] == "logit_bias"
    assert found.vectors.active_layers
    [row] = found.calibration["candidates"]
    assert (row["key"], row["method"], row["hook_point"], row["alpha"]) == ("logit_bias", "logit_bias", None, None)
    # The batch answers as the stored bias does on the stored class scores; it was fit without the ordering subset.
    job = prepare(loaded, task, tmp_path / "store", options)
    collected = job.ground.load("collect")
    assert collected is not None
    assert found.label_bias is not None
    scores = collected.tensors["probabilities"].clamp_min(1e-30).log().numpy()[job.ordering]
    labels = np.array([example.label for example in job.splits.train])[job.ordering]
    by_hand = (apply_logit_bias(scores, found.label_bias.numpy()) == labels).mean()
    before = (collected.tensors["label"].numpy()[job.ordering] == labels).mean()
    assert row["gain"] == pytest.approx(by_hand - before, abs=1e-9)


def test_a_gain_that_moves_answers_to_one_class_abstains_as_a_collapse(
    loaded: LoadedModel, make_task, tmp_path: Path
) -> None:
    """The same bias passes its test, and is not served: the answers become one word. Its report and its artifact say so."""
    report = run(
        loaded, make_task(relabel=mostly_yes), tmp_path / "store", Options(ordering=100, candidates=("logit_bias",))
    )
    assert report is not None
    assert (report["decision"], report["reason"], report["method"]) == ("abstained", "collapse", None)
    certificate = report["certificate"]
    assert certificate["p_value"] <= certificate["level"] == 0.025
    assert certificate["collapse"] == "yes gets 100% of the answers"
    assert report["accuracy"]["steered"] == report["accuracy"]["unsteered"]
    assert "no repair: yes gets 100% of the answers (--allow-collapse would certify it)" in verdict(report)
    found = published(tmp_path / "store")
    assert (found.certified, found.calibration["reason"], found.calibration["chosen"]) == (False, "collapse", None)
    assert certificate["broken"]["lost"] == certificate["lost"] > 0  # what was right and is lost, of all that was right
    assert certificate["broken"]["share"] < certificate["broken"]["upper"] <= 1.0


def test_one_class_alone_has_neither_probe_nor_bias(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    """Always to say the one label would be right here and teaches nothing: zeros are published, nothing is certified."""
    task, store = make_task(relabel=lambda row: "yes"), tmp_path / "store"
    report = run(loaded, task, store, Options(ordering=100))
    assert report is not None
    assert (report["decision"], report["reason"], report["method"]) == ("abstained", "no_probe", None)
    assert report["certificate"] is None
    found = published(store)
    assert found.digest == report["artifact"]
    assert (found.vectors.active_layers, found.alpha, found.certified) == ((), None, False)
    assert not found.vectors.weight.any()
    assert found.label_bias is not None
    assert not found.label_bias.any()
    assert found.manifest["probe"]["scores"] == []


def test_a_bias_on_top_of_a_step_is_certified_as_such(loaded: LoadedModel, make_task, tmp_path: Path) -> None:
    options = Options(ordering=100, candidates=("mera+bias",), directions=("covariance",), hook_points=("mlp_input",))
    report = run(loaded, make_task(), tmp_path / "store", options)
    assert report is not None
    assert (report["decision"], report["method"]) == ("certified", "mera+bias")
    assert (report["hook_point"], report["direction"]) == ("mlp_input", "covariance")
    assert report["certificate"]["candidates"] == COMBINED
    found = published(tmp_path / "store")
    assert found.alpha == report["alpha"]
    assert found.manifest["steering"]["method"] == "mera+bias"
    assert found.calibration["chosen"] == f"mlp_input/covariance/{found.alpha:g}+bias"
    assert {row["method"] for row in found.calibration["candidates"]} == {"mera+bias"}


def test_all_candidates_compete_by_default(finished, loaded: LoadedModel, tmp_path: Path) -> None:
    report, found = finished.report, published(finished.store)
    assert report["decision"] == "certified"
    assert 1 + 60 + COMBINED + 6 < report["certificate"]["candidates"] <= 200
    methods = [row.get("method", "mera") for row in found.calibration["candidates"]]
    assert methods.count("mera") > 60  # and steps along gradients
    assert [methods.count(name) for name in OWN_METHODS[1:3]] == [1, COMBINED]
    assert methods.count("label_probe") == 6
    best = max(
        found.calibration["candidates"], key=lambda row: row["gain"]
    )  # the first of equal ones, as `rank` has it
    assert found.calibration["chosen"] == best["key"]
    assert found.manifest["steering"].get("method", "mera") == report["method"]
    for row in found.calibration["candidates"]:
        assert (row["gained"] - row["lost"]) / 100 == pytest.approx(row["gain"])
        assert row["lower_bound"] <= row["gain"]
    few = Options(ordering=100, candidates=("mera",), directions=("covariance",), hook_points=("residual",))
    only = run(loaded, finished.task, tmp_path / "store", few)
    assert only is not None
    steps = published(tmp_path / "store")
    assert only["certificate"]["candidates"] == 10
    assert "method" not in steps.manifest["steering"]
    assert not any("method" in row for row in steps.calibration["candidates"])


def test_logistic_probes_and_one_layer_and_the_last_position_run_through(
    finished, loaded: LoadedModel, tmp_path: Path
) -> None:
    options = Options(
        ordering=100, family="logistic", layers="best", positions="last", hook_points=("residual",),
        directions=("covariance", "euclidean"),
    )  # fmt: skip
    report = run(loaded, finished.task, tmp_path / "store", options)
    assert report is not None
    found = published(tmp_path / "store")
    steering, probe = found.manifest["steering"], found.manifest["probe"]
    assert steering["positions"] == "last"
    assert steering["active_layers"] == [steering["report_layer"]]
    assert probe["family"] == "logistic"
    assert all(0.0 <= score["auroc"] <= 1.0 for score in probe["scores"])
    acting = [score["layer"] for score in probe["scores"] if not score["idle"]]
    assert acting == steering["active_layers"]
    assert max(probe["scores"], key=lambda score: score["auroc"])["layer"] == acting[0]
    assert probe["scores"][acting[0]]["auroc"] > 0.7
    # σ(z) is near the share of wrong answers: the probe says how probable an error is.
    job = prepare(loaded, finished.task, tmp_path / "store", options)
    collected = job.ground.load("collect")
    assert collected is not None
    rows = collected.tensors[f"activations.{steering['hook_point']}"][job.ordering, acting[0]]
    said = torch.sigmoid(rows @ found.vectors.weight[acting[0]] + found.vectors.bias[acting[0]])
    labels = torch.tensor([example.label for example in job.splits.train])[job.ordering]
    wrong = collected.tensors["label"][job.ordering] != labels
    assert float(said.mean()) == pytest.approx(float(wrong.float().mean()), abs=0.12)
