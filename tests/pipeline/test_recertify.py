"""Testing an artifact again: the same numbers where nothing changed, an abstention where the gain is gone, and no other data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mera_server.cli import main
from mera_server.loading import identity_of

from merasteer import store as artifacts
from merasteer.engine import LoadedModel, conditions_of, load_model
from merasteer.errors import BadSplits, BadTask, InvalidInput, UnknownProbe
from merasteer.method.levels import level_of
from merasteer.pipeline import Bars, recertify, renewals
from merasteer.pipeline.batch import answers, running
from merasteer.types import Artifact


@pytest.fixture
def store(finished, tmp_path: Path) -> Path:
    """A copy of the store of a finished run: one certified artifact."""
    return Path(shutil.copytree(finished.store, tmp_path / "store", ignore=shutil.ignore_patterns(".work")))


def default(store: Path, loaded: LoadedModel) -> Artifact:
    found = artifacts.snapshot([store], identity_of(loaded))[1]["desks"].artifact
    assert found is not None
    return found


def again(loaded: LoadedModel, store: Path, **given: Any) -> dict[str, Any]:
    [one] = renewals(loaded, identity_of(loaded), store, **given)
    return recertify(one)


def republished(old: Artifact, store: Path, tensors: dict[str, torch.Tensor] | None = None, **steering: Any) -> Path:
    """The same artifact with other tensors or another method, its certificate untouched."""
    held = {name: getattr(old, name) for name in ("weight", "bias", "step", "contrastive", "label_bias")}
    manifest = {**old.manifest, "steering": {**old.manifest["steering"], **steering}}
    chosen = old.calibration["chosen"]
    rows = [{**row, **steering} if row["key"] == chosen else row for row in old.calibration["candidates"]]
    calibration = {**old.calibration, "candidates": rows}
    return artifacts.publish(store, manifest=manifest, calibration=calibration, tensors=held | (tensors or {}))


@pytest.mark.parametrize("named", [True, False])
def test_where_nothing_changed_the_numbers_are_those_of_the_run(
    finished, loaded: LoadedModel, store: Path, named: bool
) -> None:
    old = default(store, loaded)
    report = again(loaded, store, **({"task": str(finished.task)} if named else {"search": [finished.task.parent]}))
    assert (report["decision"], report["recertifies"]) == ("certified", old.digest)
    assert report["certificate"]["p_value"] == finished.report["certificate"]["p_value"]
    new = default(store, loaded)
    assert new.digest == report["artifact"] != old.digest
    tested = {row["key"]: row for row in old.calibration["tested"]}
    assert report["certificate"]["level"] == level_of(0.05, 2)  # a test of its own, on rows that one was made on
    assert [report[name]["attempt"] for name in ("before", "certificate")] == [1, 2]
    [found], then = new.calibration["tested"], tested[old.calibration["chosen"]]
    at_its_level = ("lower_bound", "broken")  # the same answers, bounded at another level
    assert {**found, **dict.fromkeys(at_its_level)} == {**then, **dict.fromkeys(at_its_level)}
    assert found["lower_bound"] < then["lower_bound"]
    assert found["broken"]["upper"] > then["broken"]["upper"]
    assert (new.certified, new.alpha, new.calibration["recertifies"]) == (True, old.alpha, old.digest)
    assert torch.equal(new.step, old.step)
    assert new.calibration["predicted_error"] == pytest.approx(
        old.calibration["predicted_error"]
    )  # read in other batches
    assert {**new.manifest, "digest": "", "files": {}} == {**old.manifest, "digest": "", "files": {}}


def test_another_dtype_has_a_certificate_of_its_own(finished, model_folder: Path, store: Path) -> None:
    loaded = load_model(model_folder, dtype="bfloat16", device="cpu")
    report = again(loaded, store, task=str(finished.task))
    assert report["runtime"]["dtype"] == "bfloat16"
    found = artifacts.under(*artifacts.snapshot([store], identity_of(loaded)), conditions_of(loaded))["desks"].artifact
    assert found is not None
    if report["decision"] == "certified":
        assert (found.digest, found.manifest["runtime"]["dtype"]) == (report["artifact"], "bfloat16")
    assert report["certificate"]["attempt"] == 2


def test_a_gain_that_is_gone_abstains(finished, loaded: LoadedModel, store: Path) -> None:
    """The steps of an artifact that claims a certificate are replaced by ones that do not repair."""
    old = default(store, loaded)
    weight = torch.randn(old.weight.shape, generator=torch.Generator().manual_seed(1)) * (old.weight != 0)
    step = torch.nan_to_num(weight / weight.square().sum(-1, keepdim=True))
    label_bias = torch.zeros_like(old.label_bias) if old.label_bias is not None else None
    assert label_bias is not None
    folder = republished(old, store, {"weight": weight, "step": step, "label_bias": label_bias})
    report = again(loaded, store, task=str(finished.task), probe=folder.name)
    assert (report["decision"], report["reason"]) == ("abstained", "uncertified")
    new = default(store, loaded)
    assert (new.digest, new.certified, new.alpha) == (report["artifact"], False, None)
    assert new.calibration["recertifies"].startswith(folder.name)
    assert artifacts.summary(artifacts.scan([store])[0])["status"] == "loaded"
    with pytest.raises(InvalidInput, match="holds nothing certified"):
        again(loaded, store, task=str(finished.task))


def test_a_bias_alone_is_asked_without_a_step(finished, loaded: LoadedModel, store: Path) -> None:
    """The bias of the artifact turns every answer to one label: what it gets right is what has that label."""
    bias = torch.tensor([100.0, 0.0])
    folder = republished(default(store, loaded), store, {"label_bias": bias}, method="logit_bias", alpha=None)
    [renewal] = renewals(loaded, identity_of(loaded), store, task=str(finished.task), probe=folder.name)
    calibration = renewal.job.splits.calibration
    prompts, labels = renewal.job.prompts(calibration), [example.label for example in calibration]
    with running(loaded, prompts.longest) as engine, Bars().bar("unsteered", len(labels)) as bar:
        before = answers(engine, prompts.requests(), bar).correct(labels)
    report = recertify(renewal)
    assert report["certificate"]["gain"] == pytest.approx(labels.count(0) / len(labels) - before.mean())


def test_other_rows_or_another_task_are_refused(finished, loaded: LoadedModel, store: Path, make_task) -> None:
    same = finished.task.read_text()
    rows = [json.loads(line) for line in finished.task.with_suffix(".jsonl").read_text().splitlines()]
    task = make_task()
    task.write_text(same)
    task.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:] + rows[:1]))
    with pytest.raises(BadSplits, match=r"splits\.calibration: not the rows .* --data, or calibrate again"):
        again(loaded, store, task=str(task))
    data = finished.task.with_suffix(".jsonl")
    assert again(loaded, store, task=str(task), data=data)["decision"] == "certified"
    task.write_text(same.replace("{text} ?", "{text} ? ?"))
    with pytest.raises(BadTask, match="template: not what artifact"):
        again(loaded, store, task=str(task), data=data)


def test_what_cannot_be_renewed_is_told(finished, loaded: LoadedModel, store: Path, tmp_path: Path) -> None:
    identity = identity_of(loaded)
    with pytest.raises(InvalidInput, match="holds nothing certified"):
        renewals(loaded, identity, tmp_path, task=str(finished.task))
    with pytest.raises(UnknownProbe):
        renewals(loaded, identity, store, probe="ffff")
    with pytest.raises(InvalidInput, match="--task"):
        renewals(loaded, identity, store, data=finished.task.with_suffix(".jsonl"))


def test_on_the_command_line(finished, model_folder: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["recertify", "--model", str(model_folder), "--store", str(store), "--device", "cpu"]
    assert main([*command, "--task", str(finished.task)]) == 0
    [report] = json.loads(capsys.readouterr().out)["recertified"]
    assert report["decision"] == "certified"
    assert main(["recertify", "--model", str(model_folder), "--store", "/absent"]) == 2
    assert "store: no such folder '/absent'" in capsys.readouterr().err
