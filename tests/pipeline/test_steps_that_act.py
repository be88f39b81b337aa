"""Steps along gradients over a whole run: which planted failure they repair, what is done again after a kill, what they publish."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mera_server.loading import identity_of

from merasteer.engine import LoadedModel
from merasteer.pipeline import Bars, Options, Report, gradients, prepare, recertify, renewals, run
from merasteer.pipeline.collect import collect
from merasteer.pipeline.page import page
from merasteer.pipeline.summary import summary
from merasteer.pipeline.telling import correction
from merasteer.store import load, scan
from merasteer.types import Artifact

from .test_kill import KILLED, Nursery, nursery  # noqa: F401, a fixture

MakeTask = Callable[..., Path]
OPTIONS = Options(ordering=100, hook_points=("residual",), candidates=("mera",))


def published(store: Path) -> Artifact:
    [entry] = scan([store])
    assert entry.artifact is not None, entry.reason
    return entry.artifact


def repaired(loaded: LoadedModel, task: Path, store: Path, *directions: Any) -> Report:
    found = run(loaded, task, store, replace(OPTIONS, directions=directions))
    assert found is not None
    return found


def test_a_failure_both_ways_is_repaired_by_a_step_for_each_class_and_not_by_one(
    loaded: LoadedModel, make_task: MakeTask, tmp_path: Path
) -> None:
    """At desk B the model says no for yes and yes for no. One axis moves all to one label, which a constant per label does as well."""
    task = make_task()
    both = repaired(loaded, task, tmp_path / "both", "gradient_by_label")
    one = repaired(loaded, task, tmp_path / "one", "gradient")
    assert both["decision"] == "certified"
    assert both["direction"] == "gradient_by_label"
    assert both["accuracy"]["steered"] > 0.97 > 0.75 > both["accuracy"]["unsteered"]
    assert all(after > 0.95 > before for before, after in both["recall"].values())
    assert both["accuracy"]["steered"] > both["accuracy"]["logit_bias"] + 0.1
    assert one["accuracy"]["steered"] <= one["accuracy"]["logit_bias"] + 0.01
    gained = [after - before for before, after in one["recall"].values()]
    assert min(gained) < 0.02 < max(gained)
    artifact = published(tmp_path / "both")
    assert artifact.vectors.law == "gated"
    assert artifact.vectors.classes is not None
    assert artifact.correction.strength == both["strength"] > 0
    weight, step = artifact.vectors.classes.weight[0], artifact.vectors.classes.step[0]
    assert float(torch.cosine_similarity(step[0], step[1], dim=0)) < 0  # towards the one, away from the other
    assert weight.shape == step.shape == (2, loaded.width)


def test_a_step_has_its_length_where_none_was_a_candidate(
    loaded: LoadedModel, make_task: MakeTask, tmp_path: Path
) -> None:
    """The readouts beside a bias are those that watch; a request may ask for a step by an α of its own."""
    options = replace(OPTIONS, directions=("gradient",), candidates=("logit_bias",))
    found = run(loaded, make_task(), tmp_path / "store", options)
    assert found is not None
    assert (found["decision"], found["method"]) == ("certified", "logit_bias")
    artifact = published(tmp_path / "store")
    assert (artifact.vectors.law, artifact.manifest["steering"]["strength"]) == ("gated", 0.3)
    assert (artifact.correction.method, artifact.correction.strength) == ("logit_bias", 0.0)


def test_stopped_between_parts_only_the_part_under_way_is_asked_again(
    loaded: LoadedModel, make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = prepare(
        loaded, make_task(train=80, calibration=50, test=40), tmp_path / "store", replace(OPTIONS, ordering=40)
    )
    monkeypatch.setattr(gradients, "PART", 8)
    collected, asked = collect(job, Bars()), []
    whole = gradients.gradients(job, collected, "residual", Bars())
    means = [(whole.pooled(layer), whole.by_class(layer)) for layer in range(loaded.layers)]
    [path] = job.ground.folder.glob("gradients-*")
    facts, expected = path.read_bytes(), len(whole._found.facts["items"])
    path.unlink()
    real = gradients.answer_gradients

    def counted(*args: Any) -> Any:
        asked.append(len(args[2]))
        if len(asked) in (3, 5):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(gradients, "answer_gradients", counted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            gradients.gradients(job, collected, "residual", Bars())
    found = gradients.gradients(job, collected, "residual", Bars())
    parts = [min(8, expected - start) for start in range(0, expected, 8)]
    assert len(parts) >= 4
    assert asked == [*parts[:3], *parts[2:4], *parts[3:]]
    assert path.read_bytes() == facts
    for layer, (pooled, by_class) in enumerate(means):
        assert torch.equal(found.pooled(layer), pooled)
        assert torch.equal(found.by_class(layer), by_class)
    assert gradients.gradients(job, collected, "residual", Bars()).size(0) > 0
    assert len(asked) == len(parts) + 2  # taken from the work folder


def test_killed_between_parts_a_run_goes_on_to_the_same_artifact(
    nursery: Nursery,  # noqa: F811
    model_folder: Path,
    make_task: MakeTask,
    tmp_path: Path,
) -> None:
    job = {"model": model_folder, "task": make_task(train=80, calibration=40, test=20), "directions": ["gradient"]}
    status, digest = nursery.run(**job, store=tmp_path / "whole")
    assert (status, len(digest)) == (0, 64)
    store, kills = tmp_path / "killed", 0
    while (found := nursery.run(**job, store=store, gradients=2))[0] != 0:
        assert found[0] == KILLED == -signal.SIGKILL
        assert scan([store]) == []
        kills += 1
        assert kills < 20
    assert kills == 3  # each time one part more was finished
    assert found == (0, digest)


@pytest.mark.parametrize(("candidate", "direction"), [("mera", "gradient_by_label"), ("label_probe", "label_probe")])
def test_what_is_tested_again_is_the_same_and_is_told_in_words(
    loaded: LoadedModel, make_task: MakeTask, tmp_path: Path, candidate: Any, direction: Any
) -> None:
    directions = ("gradient_by_label",)
    task, store = make_task(), tmp_path / "store"
    report = run(loaded, task, store, replace(OPTIONS, candidates=(candidate,), directions=directions))
    assert report is not None
    assert (report["decision"], report["direction"]) == ("certified", direction)
    first = published(store)
    [renewal] = renewals(loaded, identity_of(loaded), store, task=str(task))
    again = recertify(renewal)
    assert again["decision"] == "certified"
    second = load(next(entry.path for entry in scan([store]) if entry.digest == again["artifact"]))
    assert second.correction == replace(first.correction, readout=second.digest)
    for name in ("weight", "bias", "step", "class_weight", "class_bias", "class_step"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    assert {row["method"] for row in report["candidates"]} == {candidate}
    assert correction(report).startswith(
        "a gradient_by_label step of" if candidate == "mera" else "the label that a probe reads"
    )
    assert correction(report) in " ".join(summary(report).split())
    assert direction in page(report)
