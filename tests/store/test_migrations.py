"""Older artifacts are brought to the present schema as they are read, newer ones refused; shown with versions made up for it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merasteer import demo
from merasteer.errors import BadArtifact
from merasteer.store import ModelIdentity, collect, latest, load, scan
from merasteer.store.migrations import STEPS, Step, migrate
from merasteer.store.schema import SCHEMA
from merasteer.store.tensors import encode

from .conftest import aged

OLD = SCHEMA - 2


def _named(parts: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {(new if name == old else name): value for name, value in parts.items()}


@pytest.fixture
def two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two versions ago the seeds had another name; one version ago w was called `readout`, and `chances` did not exist."""
    monkeypatch.setitem(STEPS, OLD, Step(manifest=lambda m: _named(m, "random", "seeds")))
    monkeypatch.setitem(
        STEPS,
        OLD + 1,
        Step(calibration=lambda c: {**c, "chances": 1}, tensors=lambda t: _named(t, "readout", "weight")),
    )


@pytest.fixture
def old(parts: Any, reseal: Any, tmp_path: Path) -> Path:
    """An artifact as it was written two versions ago."""
    folder = parts.publish(tmp_path)
    (folder / "probe.safetensors").write_bytes(encode(_named(parts.tensors, "weight", "readout")))
    calibration = json.loads((folder / "calibration.json").read_text("utf-8"))
    del calibration["chances"]
    (folder / "calibration.json").write_text(json.dumps(calibration), "utf-8")

    def edit(manifest: dict[str, Any]) -> None:
        manifest["schema"] = OLD
        manifest["random"] = manifest.pop("seeds")

    return Path(reseal(folder, edit))


def test_an_old_artifact_is_read_as_the_present_ones_are(
    two_steps: None, old: Path, parts: Any, identity: ModelIdentity
) -> None:
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    artifact = load(old, identity)
    assert artifact.manifest["schema"] == SCHEMA
    assert artifact.manifest["seeds"] == parts.manifest["seeds"]
    assert artifact.calibration == parts.calibration
    assert torch.equal(artifact.weight, parts.tensors["weight"])
    assert artifact.digest[:12] == old.name  # what it was written as
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert [entry.status for entry in scan([old.parents[2]], identity)] == ["loaded"]


def test_an_artifact_of_before_labels_were_chosen_stays_free(tmp_path: Path) -> None:
    """Schema 1, with the demo's artifact taken back to it: read, verified as it was written, and answered as it was certified."""
    source = next(demo.store_dir().glob("*/demo_spam/*/manifest.json")).parent
    folder = tmp_path / source.relative_to(demo.store_dir())
    shutil.copytree(source.parent, folder.parent)
    old = aged(folder, demo.model_dir())
    now, found = load(source), load(old)
    assert json.loads((old / "manifest.json").read_text("utf-8"))["schema"] == 1
    assert found.manifest["schema"] == SCHEMA
    assert (found.digest[:12], found.certified, found.alpha) == (old.name, True, now.alpha)
    assert (now.task.choose, found.task) == ("labels", replace(now.task, choose="free"))
    assert (found.task.choice, found.task.answer_tokens) == (None, ((272,), (271,)))
    assert torch.equal(found.weight, now.weight)
    assert latest(tmp_path, *folder.parts[-3:-1]) == old.name
    manifest = json.loads((old / "manifest.json").read_text("utf-8"))
    manifest["task"]["max_new_tokens"] = 2
    (old / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BadArtifact, match="the file was edited"):
        load(old)


def test_an_old_artifact_is_verified_as_it_was_written(two_steps: None, old: Path) -> None:
    manifest = json.loads((old / "manifest.json").read_text("utf-8"))
    manifest["random"]["fit"] = 8
    (old / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BadArtifact, match="the file was edited"):
        load(old)


def test_a_version_that_was_dropped_is_refused_with_the_remedy(old: Path) -> None:
    with pytest.raises(BadArtifact, match=f"schema: {OLD} is older than any version .* mera run"):
        load(old)


def test_what_cannot_be_migrated_is_one_bad_artifact(
    two_steps: None, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STEPS, OLD, Step(manifest=lambda m: {**m, "seeds": m["gone"]}))
    with pytest.raises(BadArtifact, match=f"manifest: cannot be brought from schema {OLD} to {OLD + 1} .KeyError"):
        load(old)


def test_steps_change_nothing_that_they_are_given(two_steps: None) -> None:
    manifest = {"schema": OLD, "random": {"fit": 1}}
    assert migrate("manifest", manifest, OLD) == {"schema": SCHEMA, "seeds": {"fit": 1}}
    assert manifest == {"schema": OLD, "random": {"fit": 1}}
    assert migrate("manifest", manifest, SCHEMA) is manifest


@pytest.mark.parametrize(
    ("release", "remedy"),
    [
        ("0.9.1", r"pip install 'mera-server>=0\.9\.1'"),
        (None, "pip install --upgrade mera-server"),
        ("1; rm -rf /", "pip install --upgrade mera-server"),  # what an artifact says ends up in a shell
    ],
)
def test_a_newer_artifact_says_what_to_install(
    parts: Any, reseal: Any, tmp_path: Path, release: str | None, remedy: str
) -> None:
    parts.manifest["versions"] = {} if release is None else {"mera-server": release}
    folder = reseal(parts.publish(tmp_path), lambda m: m.update(schema=SCHEMA + 1, surprise=[1]))
    with pytest.raises(
        BadArtifact, match=f"schema: {SCHEMA + 1} is newer than {SCHEMA}, .* upgrade mera-server: {remedy}$"
    ):
        load(folder)
    assert not [
        one for one in collect(tmp_path, keep=0, age=0.0) if one.removed
    ]  # it is left for the release that reads it


@pytest.mark.parametrize("version", [None, "1", 1.0, True, [], -1, 0])
def test_what_is_no_version_is_refused(parts: Any, reseal: Any, tmp_path: Path, version: object) -> None:
    folder = reseal(parts.publish(tmp_path), lambda m: m.update(schema=version))
    with pytest.raises(BadArtifact, match=r"manifest\.json: schema: "):
        load(folder)
