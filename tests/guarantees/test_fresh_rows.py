"""The built-in model on rows that nobody has seen, seed by seed: the planted failure is repaired, certified, and worth it."""

from __future__ import annotations

from pathlib import Path

import pytest

from merasteer import demo
from merasteer.demo.build import build_model
from merasteer.demo.corpus import CLEAR, DESK_A_TEMPLATE, TEMPLATE, deploy_rows
from merasteer.demo.paths import MODEL
from merasteer.demo.taskfile import write_task
from merasteer.engine import LoadedModel, load_model
from merasteer.pipeline import Options, run
from merasteer.types import SplitSizes

SIZES = SplitSizes(train=2000, calibration=250, test=500)
ROWS = SIZES.train + SIZES.calibration + SIZES.test


@pytest.fixture(scope="module")
def built_in() -> LoadedModel:
    return load_model(demo.model_dir())


@pytest.mark.parametrize("seed", [11, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (12, 13))])
def test_two_desks_certify(built_in: LoadedModel, seed: int, tmp_path: Path) -> None:
    task = write_task(tmp_path, "fresh", "Fresh rows.", TEMPLATE, deploy_rows(ROWS, seed), SIZES)
    report = run(built_in, task, tmp_path / "store", Options(seed=seed))
    assert report is not None
    print(f"seed {seed}: {report['accuracy']} spi {report['spi']:.3f} {report['spi_interval']}")  # noqa: T201
    assert report["decision"] == "certified"
    assert report["certificate"]["p_value"] <= report["certificate"]["level"] == 0.025
    assert report["spi"] >= 0.40
    assert report["spi_interval"][0] > 0.25
    accuracy = report["accuracy"]
    assert accuracy["steered"] > max(accuracy["majority"], accuracy["logit_bias"], accuracy["unsteered"])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_demo_rebuilt_from_source_does_as_well(seed: int, tmp_path: Path) -> None:
    """Another training seed, another model: the same failure, repaired and certified as well."""
    build_model(tmp_path, seed, progress=False)
    test_two_desks_certify(load_model(tmp_path / MODEL), 200 + seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_desk_a_alone_abstains(built_in: LoadedModel, seed: int, tmp_path: Path) -> None:
    """Nothing to repair: a false certificate has probability δ a run, so all three of three seeded runs abstain."""
    rows = [{"text": row["text"], "label": row["label"]} for row in deploy_rows(ROWS, seed, 0.0, CLEAR)]
    report = run(
        built_in, write_task(tmp_path, "fresh", "Fresh rows.", DESK_A_TEMPLATE, rows, SIZES), tmp_path / "store"
    )
    assert report is not None
    assert (report["decision"], report["spi"], report["alpha"]) == ("abstained", 0, None)
