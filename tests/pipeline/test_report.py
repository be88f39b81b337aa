"""What a report adds to the accuracies, against plain counts of the very same answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merasteer.engine import LoadedModel
from merasteer.method.settling import rows_to_settle
from merasteer.pipeline import Options, prepare, run, stages
from merasteer.pipeline.beside import beside
from merasteer.pipeline.collect import activations_of, answers_of, first_tokens_of
from merasteer.pipeline.report import certificate_in
from merasteer.pipeline.text_classifier import text_classifier_answers
from merasteer.probes.selection import auroc

FEW = Options(ordering=40, hook_points=("residual",), directions=("covariance",))


def test_scores_are_those_of_the_answers(finished: Any, loaded: LoadedModel) -> None:
    job = prepare(loaded, finished.task, finished.store, finished.options)
    done = stages(job)
    labels = np.array([example.label for example in job.splits.test])
    pair = (answers_of(done["collect"], "test").label, done["evaluate"].tensors["label"].numpy())
    report = finished.report
    for i, (name, answers) in enumerate(zip(("unsteered", "steered"), pair, strict=True)):
        counts = np.array(report["confusion"][name])
        assert counts.tolist() == [[int(((labels == y) & (answers == c)).sum()) for c in (0, 1)] for y in (0, 1)]
        assert report["accuracy"][name] == pytest.approx(np.trace(counts) / len(labels))
        recalls = np.diag(counts) / counts.sum(1)
        assert [report["recall"][label][i] for label in ("yes", "no")] == pytest.approx(recalls.tolist())
        assert report["balanced_accuracy"][i] == pytest.approx(recalls.mean())
    assert report["coverage"] is None
    assert next(row["key"] for row in report["candidates"]) == "logit_bias"
    assert len(report["candidates"]) == report["certificate"]["candidates"]


def test_the_label_probe_knows_what_the_model_does_not_say(finished: Any, loaded: LoadedModel) -> None:
    job = prepare(loaded, finished.task, finished.store, finished.options)
    collected = stages(job, "collect")["collect"]
    found, report = beside(job, collected), finished.report
    labels = np.array([example.label for example in job.splits.test])
    probe = found.label_probe
    rows = activations_of(collected, probe.hook_point, "test")[:, probe.layer]
    assert report["accuracy"]["label_probe"] == pytest.approx((probe.predict(rows).numpy() == labels).mean())
    assert report["accuracy"]["label_probe"] > report["accuracy"]["unsteered"] + 0.15  # at desk B it says the opposite
    shown = report["baselines"]["label_probe"]
    assert (shown["hook_point"], shown["layer"]) == (probe.hook_point, probe.layer)
    for name, answers in found.answers.items():
        recalls = [float((answers == labels)[labels == y].mean()) for y in (0, 1)]
        assert list(report["baselines"][name]["recall"].values()) == pytest.approx(recalls)
        assert report["accuracy"][name] == pytest.approx((answers == labels).mean())
    texts = [[example.prompt for example in split] for split in (job.splits.train, job.splits.test)]
    again = text_classifier_answers(texts[0], [example.label for example in job.splits.train], texts[1])
    assert again.tolist() == found.answers["text_classifier"].tolist()


def test_both_aurocs_are_of_wrong_unsteered_answers(finished: Any, loaded: LoadedModel) -> None:
    job = prepare(loaded, finished.task, finished.store, finished.options)
    done = stages(job)
    unsteered = answers_of(done["collect"], "test")
    wrong = (~unsteered.correct([example.label for example in job.splits.test])).astype(float)
    doubt = 1.0 - unsteered.probabilities.max(1)
    assert finished.report["auroc"]["token_probability"] == pytest.approx(auroc(doubt, wrong))
    assert finished.report["auroc"]["probe"] > 0.8


def test_a_model_that_is_always_right_has_no_auroc(loaded: LoadedModel, make_task: Any, tmp_path: Path) -> None:
    task = make_task(train=120, calibration=60, test=40)
    job = prepare(loaded, task, tmp_path / "store", FEW)
    said = answers_of(stages(job, "collect")["collect"], "test").label
    agreed = tuple(replace(row, label=int(label)) for row, label in zip(job.splits.test, said, strict=True))
    report = stages(replace(job, splits=replace(job.splits, test=agreed)))["evaluate"].facts["report"]
    assert report["accuracy"]["unsteered"] == 1.0
    assert report["auroc"] == {"probe": None, "token_probability": None}


def test_free_answers_have_a_coverage_and_a_column_for_what_is_missing(
    loaded: LoadedModel, make_task: Any, tmp_path: Path
) -> None:
    task = make_task(train=120, calibration=60, test=40)
    text = (
        task.read_text().replace('labels = ["yes", "no"]', 'labels = ["yes", "A"]').replace('no = ["no"]', 'A = ["A"]')
    )
    task.write_text(text.replace("[data]", '[answer]\nchoose = "free"\n[data]'))
    rows = tmp_path / "desks.jsonl"
    rows.write_text(rows.read_text().replace('"label": "no"', '"label": "A"'))
    report = run(loaded, task, tmp_path / "store", FEW)
    assert report is not None
    job = prepare(loaded, task, tmp_path / "store", FEW)
    collected = stages(job, "collect")["collect"]
    unsteered, first = answers_of(collected, "test"), first_tokens_of(collected, "test")
    missing = int((unsteered.label < 0).sum())
    assert 0 < missing < 40  # the model says "no", which is no label here
    coverage = report["coverage"]
    assert coverage["unsteered"] == pytest.approx(1 - missing / 40)
    words = [loaded.tokenizer.decode([token]) for token in first]
    assert coverage["first_tokens"][0][1] == max(words.count(word) for word in words) / 40
    assert {text for text, _ in coverage["first_tokens"]} == set(words)
    counts = np.array(report["confusion"]["unsteered"])
    assert counts.shape == (2, 3)
    assert counts[:, 2].sum() == missing
    assert report["auroc"]["token_probability"] > 0.5  # what is missing is known to be wrong


def test_on_abstention_the_certificate_says_what_was_tested_and_what_it_would_take(
    loaded: LoadedModel, make_task: Any, tmp_path: Path
) -> None:
    options = Options(ordering=60, delta=1e-9, candidates=("logit_bias",))  # asks for more than so few rows can show
    job = prepare(loaded, make_task(train=160, calibration=60, test=40), tmp_path / "store", options)
    done = stages(job)
    document, found = done["calibrate"].facts["calibration"], done["evaluate"].facts["report"]["certificate"]
    assert document["reason"] == "uncertified"
    [tested] = document["tested"]
    assert {name: found[name] for name in ("n", "gained", "lost")} == {
        name: tested[name] for name in ("n", "gained", "lost")
    }
    assert found["candidate"] == tested["key"] == "logit_bias"
    [ranked] = document["candidates"]
    both = [ranked[name] + tested[name] for name in ("gained", "lost")]
    assert found["rows_to_settle"] == rows_to_settle(*both, 120, document["level"])


def calibration(**changes: Any) -> dict[str, Any]:
    rows = [
        {"key": "a", "hook_point": None, "direction": None, "alpha": None, "gain": 0.04, "gained": 6, "lost": 2},
        {"key": "b", "hook_point": None, "direction": None, "alpha": None, "gain": 0.0, "gained": 1, "lost": 1},
    ]
    tested = {"key": "a", "n": 250, "gained": 9, "lost": 5, "p_value": 0.2, "gain": 0.016, "lower_bound": -0.02}
    document = {"test": "mcnemar", "epsilon": 0.0, "delta": 0.05, "chances": 1, "decision": "abstained", "reason": "uncertified",
                "chosen": None, "candidates": rows, "tested": [tested]}  # fmt: skip
    return document | changes


def test_all_rows_that_a_candidate_was_tried_on_say_how_many_would_settle_it() -> None:
    found = certificate_in(calibration())
    assert found is not None
    assert found["rows_to_settle"] == rows_to_settle(
        15, 7, 350, 0.05
    )  # 100 rows of the ordering subset: 6 − 2 of them are .04
    halved = certificate_in(calibration(chances=2))
    assert halved is not None
    assert halved["rows_to_settle"] > found["rows_to_settle"]
    bare = [
        {name: row[name] for name in ("key", "hook_point", "direction", "alpha", "gain")}
        for row in calibration()["candidates"]
    ]
    alone = certificate_in(calibration(candidates=bare))  # of before, without counts
    assert alone is not None
    assert alone["rows_to_settle"] == rows_to_settle(9, 5, 250, 0.05)
    passed = {**calibration()["tested"][0], "p_value": 0.01}
    certified = certificate_in(calibration(decision="certified", reason=None, chosen="a", tested=[passed]))
    assert certified is not None
    assert certified["rows_to_settle"] is None
    lost = certificate_in(calibration(tested=[{**calibration()["tested"][0], "gained": 2, "lost": 9}]))
    assert lost is not None
    assert lost["rows_to_settle"] is None
