"""Attempts of real runs on the same calibration rows: counted before an outcome is computed, whatever happens to runs and files."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from merasteer import store as artifacts
from merasteer.engine import LoadedModel
from merasteer.errors import InvalidInput
from merasteer.method.certify import certify
from merasteer.method.levels import level_of
from merasteer.pipeline import Job, Options, Report, prepare, run
from merasteer.pipeline.attempts import attempt_of, effects_of
from merasteer.pipeline.batch import Answers
from merasteer.pipeline.telling import notes
from merasteer.store.ledger import FILE, entries

from .told import made

OPTIONS = Options(ordering=40, candidates=("logit_bias",), directions=("covariance",), hook_points=("residual",))


@pytest.fixture
def task(make_task: Any) -> Path:
    return Path(make_task(train=80, calibration=60, test=20))


def go(loaded: LoadedModel, task: Path, store: Path, **options: Any) -> Report:
    report = run(loaded, task, store, replace(OPTIONS, **options))
    assert report is not None
    return report


def attempt(report: Report) -> tuple[int, float]:
    return report["certificate"]["attempt"], report["certificate"]["level"]


def ledger_of(store: Path) -> Path:
    [path] = store.glob(f"*/*/{FILE}")
    return path


def test_a_run_that_dies_between_its_entry_and_its_outcome_keeps_its_attempt(
    loaded: LoadedModel, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"

    def dies(*args: Any, **given: Any) -> Any:
        assert [entry.attempt for entry in entries(store)] == [1]  # the entry is there before anything was asked
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("merasteer.pipeline.calibrate.certify", dies)
        with pytest.raises(KeyboardInterrupt):
            go(loaded, task, store)
    assert attempt(go(loaded, task, store, seed=1)) == (2, level_of(0.05, 2))  # another test, in between
    assert attempt(go(loaded, task, store)) == (1, level_of(0.05, 1))
    shutil.rmtree(store / ".work")
    assert attempt(go(loaded, task, store)) == (1, level_of(0.05, 1))  # and repeated from nothing, it is the same test
    assert [entry.attempt for entry in entries(store)] == [1, 2]


def test_runs_at_once_have_attempts_of_their_own(loaded: LoadedModel, task: Path, tmp_path: Path) -> None:
    jobs = [prepare(loaded, task, tmp_path / "store", replace(OPTIONS, seed=seed)) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(attempt_of, [*jobs, *jobs]))
    assert found[:6] == found[6:]  # a run that is started twice at once is one test
    assert sorted(entry.attempt for entry in found[:6]) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("harm", ["edited", "no file", "a line removed"])
def test_without_a_ledger_that_can_be_trusted_nothing_is_tested(
    loaded: LoadedModel, task: Path, tmp_path: Path, harm: str
) -> None:
    store = tmp_path / "store"
    for seed in (1, 2):
        go(loaded, task, store, seed=seed)
    path, before = ledger_of(store), artifacts.scan([store])
    lines = path.read_text().splitlines(keepends=True)
    if harm == "edited":
        lines[0] = json.dumps(json.loads(lines[0]) | {"level": 0.05}) + "\n"
    path.unlink()
    if harm == "no file":
        path.mkdir()
    else:
        path.write_text("".join(lines[1:] if harm == "a line removed" else lines))
    with pytest.raises(InvalidInput, match=r"ledger: .*fresh rows"):
        go(loaded, task, store)
    after = [entry.digest for entry in artifacts.scan([store]) if entry.digest]
    assert after == [entry.digest for entry in before]
    assert not list((store / ".work").glob(f"*/*/{key(loaded, task, store)}/calibrate*"))


def key(loaded: LoadedModel, task: Path, store: Path) -> str:
    return prepare(loaded, task, store, OPTIONS).workspace.key


def test_a_ledger_that_lost_its_lines_does_not_give_attempts_back(
    loaded: LoadedModel, task: Path, tmp_path: Path
) -> None:
    """A line cut short was never relied on; but an artifact whose entry is gone was tested, and counts."""
    store = tmp_path / "store"
    go(loaded, task, store, seed=1)
    path = ledger_of(store)
    path.write_bytes(path.read_bytes()[:-20])
    assert attempt(go(loaded, task, store, seed=2)) == (2, level_of(0.05, 2))
    path.unlink()
    assert attempt(go(loaded, task, store, seed=3)) == (3, level_of(0.05, 3))


def test_an_artifact_of_before_the_ledger_is_its_first_entry(loaded: LoadedModel, task: Path, tmp_path: Path) -> None:
    go(loaded, task, tmp_path / "made")
    [entry] = artifacts.scan([tmp_path / "made"])
    assert entry.artifact is not None
    told = {
        name: value for name, value in entry.artifact.calibration.items() if name not in ("level", "attempt", "entry")
    }
    held = {name: getattr(entry.artifact, name) for name in ("weight", "bias", "step", "contrastive", "label_bias")}
    tensors = {name: tensor for name, tensor in held.items() if tensor is not None}
    artifacts.publish(tmp_path / "store", manifest=entry.artifact.manifest, calibration=told, tensors=tensors)
    assert attempt(go(loaded, task, tmp_path / "store")) == (2, level_of(0.05, 2))


def test_a_true_repair_below_the_majority_is_certified_with_that_word() -> None:
    """Seven in ten are ham and the model says the opposite of nearly everything: repaired to .6, it is still below "always ham"."""
    truth = [0] * 140 + [1] * 60
    before = [1] * 120 + [0] * 20 + [0] * 50 + [1] * 10
    after = [0] * 80 + [1] * 60 + [1] * 40 + [0] * 20
    examples = tuple(SimpleNamespace(label=label) for label in truth)
    job = SimpleNamespace(splits=SimpleNamespace(calibration=examples), served=SimpleNamespace(labels=("ham", "spam")))
    was, now = (Answers.of_labels(np.asarray(found), 2) for found in (before, after))
    outcomes = was.correct(truth), now.correct(truth)
    certificate = certify(["a"], lambda _: outcomes, delta=level_of(0.05, 1), epsilon=0.0)
    effects = effects_of(cast(Job, job), was, now, certificate)
    assert certificate.certified
    assert (effects["collapse"], effects["below_majority"]) == (None, True)
    assert effects["broken"]["n"] == 30
    assert effects["broken"]["lost"] == int((outcomes[0] & ~outcomes[1]).sum())
    told = list(notes(made(certificate=made()["certificate"] | effects)))
    assert any("below the majority (below_majority)" in one for one in told)
    always = Answers.of_labels(np.zeros(200, dtype=np.int64), 2)
    assert effects_of(cast(Job, job), was, always, certificate)["collapse"] == "ham gets 100% of the answers"
