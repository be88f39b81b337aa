"""The built-in model and its two tasks, with fewer rows than they are calibrated with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from merasteer.demo import paths
from merasteer.demo.corpus import DESK_A_TEMPLATE, deploy_rows
from merasteer.demo.taskfile import write_task
from merasteer.pipeline import Options, run
from merasteer.tasks import load_task
from merasteer.types import SplitSizes, Task

SIZES = SplitSizes(train=600, calibration=200, test=200)
OPTIONS = Options(ordering=150, directions=("covariance", "contrastive"), hook_points=("mlp_input",))


@pytest.fixture
def model() -> Path:
    if not (paths.model_dir() / "config.json").is_file():
        pytest.skip("the built-in model is not there; run `mera demo build`")
    return paths.model_dir()


def small(name: str) -> Task:
    return replace(load_task(paths.tasks_dir() / f"{name}.toml"), splits=SIZES)


def test_the_planted_failure_is_repaired(model: Path, tmp_path: Path) -> None:
    report = run(model, small("demo_spam"), tmp_path, OPTIONS)
    assert report is not None
    assert report["decision"] == "certified"
    assert report["spi_interval"][0] > 0.2


def test_where_there_is_nothing_to_repair_it_abstains(model: Path, tmp_path: Path) -> None:
    report = run(model, small("demo_desk_a"), tmp_path, OPTIONS)
    assert report is not None
    assert report["decision"] == "abstained"
    assert report["accuracy"]["steered"] == report["accuracy"]["unsteered"]


def test_answers_that_all_become_one_word_are_a_collapse(model: Path, tmp_path: Path) -> None:
    """The README's own task: the generator's messages without their desk, all asked at the desk where the model says the opposite.

    A bias that says one word to everything is right half of the time instead of a seventh: a true gain of accuracy, and no repair.
    """
    rows = [{"text": row["text"], "label": row["label"]} for row in deploy_rows(1050, 3)]
    asked = DESK_A_TEMPLATE.replace("desk A", "desk B")
    task = write_task(tmp_path, "my_task", "The README's own task.", asked, rows, SIZES)
    report = run(model, task, tmp_path / "store", replace(OPTIONS, candidates=("mera", "logit_bias", "mera+bias")))
    assert report is not None
    assert (report["decision"], report["reason"]) == ("abstained", "collapse")
    assert report["certificate"]["p_value"] <= report["certificate"]["level"] == 0.025
    assert report["certificate"]["collapse"].endswith("gets 100% of the answers")
    assert report["accuracy"]["steered"] == report["accuracy"]["unsteered"] < 0.25
