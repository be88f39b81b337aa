"""The parts of the run that need no model: options, fitting, thresholds, the work folder, the report file, the bars."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from rich.console import Console

from merasteer.errors import InvalidInput
from merasteer.pipeline import Bars, Job, Options, write_report
from merasteer.pipeline.fit import PAPER_GRID, fit, thresholds, vectors_of
from merasteer.pipeline.options import check_layers
from merasteer.pipeline.workspace import Output, Workspace
from merasteer.probes import FAMILIES, error_target
from merasteer.types import CLOSED_FORM, Example, ServedTask, Splits

ALONG = np.eye(6)[0]  # the error moves activations this way
SIGNAL = (2.0, 0.0, 0.6, 1.1)  # how far, per layer: layer 1 is noise


def logit(alpha: float) -> float:
    return float(np.log(alpha / (1 - alpha)))


def test_thresholds_are_evenly_spaced_in_logit() -> None:
    predicted = np.linspace(-2.0, 2.0, 1001)
    alphas = thresholds(predicted)
    logits = [logit(alpha) for alpha in alphas]
    assert len(alphas) == 10
    np.testing.assert_allclose(np.diff(logits), np.diff(logits)[0], atol=1e-3)
    assert logits[0] == pytest.approx(-1.96 - 3.92, abs=1e-3)
    assert logits[-1] == pytest.approx(1.6, abs=1e-3)


@pytest.mark.parametrize("predicted", [np.zeros(5), np.array([-500.0, 500.0]), np.full(3, 40.0), np.full(3, -1e9)])
def test_thresholds_are_probabilities_whatever_was_predicted(predicted: np.ndarray) -> None:
    alphas = thresholds(predicted)
    assert 1 <= len(alphas) <= 10
    assert all(0.0 < alpha < 1.0 for alpha in alphas)
    assert sorted(set(alphas)) == alphas


def test_the_paper_grid_does_not_look_at_the_data() -> None:
    assert thresholds(np.array([1.0, 2.0]), "paper") == list(PAPER_GRID)
    np.testing.assert_allclose(np.diff(PAPER_GRID), 0.1)


def test_a_stage_is_saved_whole_and_read_back(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "m", "t", {"seed": 0})
    assert work.load("fit") is None
    work.save("fit", Output({"a": [1, None]}, {"x": torch.arange(6).reshape(2, 3).T}))
    found = work.load("fit")
    assert found is not None
    assert found.facts == {"a": [1, None]}
    assert found.tensors["x"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert [path.name for path in work.folder.iterdir()] == ["fit.safetensors"]
    work.save("bare", Output({}))
    assert work.load("bare") is not None


def test_a_damaged_stage_counts_as_not_run(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "m", "t", {})
    work.save("fit", Output({}, {"x": torch.ones(100)}))
    file = work.folder / "fit.safetensors"
    for damage in (b"", file.read_bytes()[:50], file.read_bytes()[:-4], b"{}" * 100):
        file.write_bytes(damage)
        assert work.load("fit") is None


def test_inputs_decide_the_folder(tmp_path: Path) -> None:
    keys = {Workspace(tmp_path, "m", "t", inputs).key for inputs in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"})}
    assert len(keys) == 4
    assert Workspace(tmp_path, "m", "t", {"a": 1, "b": 2}).key == Workspace(tmp_path, "m", "t", {"b": 2, "a": 1}).key


def test_leftovers_of_killed_runs_are_swept_after_an_hour(tmp_path: Path) -> None:
    work = Workspace(tmp_path, "m", "t", {})
    work.save("collect", Output({}))
    old, young = work.folder / ".fit.safetensors.1.tmp", work.folder / ".fit.safetensors.2.tmp"
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 4000,) * 2)
    work.save("fit", Output({}))
    assert young.exists()
    assert not old.exists()


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    write_report(file, {"spi": 0.5})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InvalidInput, match=r"report\.json: .*No space left"):
        write_report(file, {"spi": 0.9})
    assert json.loads(file.read_text()) == {"spi": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_bars_are_quiet_without_a_terminal() -> None:
    text = io.StringIO()
    with Bars(Console(file=text)).bar("collect", 2) as bar:
        bar.advance()
    assert text.getvalue() == ""
    with Bars(Console(file=text, force_terminal=True)).bar("collect", 2) as bar:
        bar.advance()
    assert "collect" in text.getvalue()


@pytest.mark.parametrize("layers", ["all", "best", "median", "worst", (0, 2, 3)])
def test_layers_are_a_name_or_indices_and_plain_json(layers: Any) -> None:
    said = json.loads(json.dumps(Options(layers=layers).as_dict()))["layers"]
    assert said == (list(layers) if isinstance(layers, tuple) else layers)
    check_layers(Options(layers=layers), 4)


@pytest.mark.parametrize("layers", ["second", "", (), (1, 1), (-1,), (0.5,), ("0",), (True,)])
def test_other_layers_are_refused(layers: Any) -> None:
    with pytest.raises(InvalidInput, match=r"layers: .* all, best, median, worst nor a list"):
        Options(layers=layers)


def test_a_listed_layer_outside_the_model_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"layers: 4 is outside 0\.\.3"):
        check_layers(Options(layers=(4, 0)), 4)


def collected(options: Options, signal: tuple[float, ...] = SIGNAL, n: int = 300) -> tuple[Job, Output]:
    """A job of `n` training items without a model, and what its first stage would have read."""
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(2, size=n), rng.normal(size=n) * 1.5
    error = 1.0 / (1.0 + np.exp(-logits))
    probabilities = np.stack([error, error], axis=1)
    probabilities[np.arange(n), labels] = 1.0 - error
    h = rng.normal(size=(n, len(signal), len(ALONG))) + np.array(signal)[:, None] * logits[:, None, None] * ALONG + 3.0
    train = tuple(Example(f"{i}", int(label), f"{i}") for i, label in enumerate(labels))
    model = cast(Any, SimpleNamespace(layers=len(signal), width=len(ALONG)))
    # A free answer that may come late: nothing is moved along a gradient, which would ask the model.
    served = ServedTask("planted", ("a", "b"), (((1,),), ((2,),)), "{text}", choose="free", position="exact")
    job = Job(
        model,
        cast(Any, None),
        cast(Any, None),
        cast(Any, None),
        served,
        Splits(train, (), ()),
        options,
        Path(),
    )
    tensors = {f"activations.{point}": torch.from_numpy(h).float() for point in options.hook_points}
    said = torch.from_numpy(probabilities.argmax(1))
    return job, Output({}, {"label": said, "probabilities": torch.from_numpy(probabilities), **tensors})


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_fits_readouts_that_point_at_error_in_every_direction(family: Any) -> None:
    job, read = collected(Options(family=family, directions=CLOSED_FORM, ordering=100))
    fitted = fit(job, read, Bars())
    assert list(fitted.facts["readouts"]) == [
        f"{point}/{name}" for point in ("residual", "mlp_input") for name in CLOSED_FORM
    ]
    probabilities = read.tensors["probabilities"].numpy()
    labels = np.array([example.label for example in job.splits.train])
    target = error_target(1.0 - probabilities[np.arange(len(labels)), labels])[job.ordering]
    for key, vectors in vectors_of(fitted).items():
        facts = fitted.facts["readouts"][key]
        assert vectors.report_layer == 0
        assert set(vectors.active_layers) >= {0, 2, 3}
        assert all(0.0 < alpha < 1.0 for alpha in facts["alphas"])
        held_out = read.tensors[f"activations.{vectors.hook_point}"][job.ordering]
        for layer in (0, 2, 3):
            z = held_out[:, layer] @ vectors.weight[layer] + vectors.bias[layer]
            assert np.corrcoef(z.numpy(), target)[0, 1] > 0.5
            assert float(vectors.step[layer].double() @ torch.from_numpy(ALONG)) > 0
        assert all(score["auroc"] > 0.7 for score in facts["scores"] if score["layer"] in (0, 2, 3))
    rows = json.loads(json.dumps(fitted.facts["probes"]))
    kinds = ["logistic" if family == "logistic" else "error", "contrastive"]
    assert [(row["hook_point"], row["readout"], row["layer"]) for row in rows] == [
        (point, kind, layer) for point in ("residual", "mlp_input") for kind in kinds for layer in range(4)
    ]
    assert all(row["rmse"] < row["dummy_rmse"] for row in rows if row["layer"] == 0)


@pytest.mark.parametrize(
    ("layers", "acting", "report"),
    [
        ("all", (0, 2, 3), 0), ("best", (0,), 0), ("median", (3,), 3), ("worst", (2,), 2),
        ((2, 3), (2, 3), 3), ((1, 2), (2,), 2), ((3, 2, 1, 0), (0, 2, 3), 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("family", ["ridge", "logistic"])
def test_the_layers_asked_for_act_and_the_best_of_them_reports(
    family: Any, layers: Any, acting: tuple[int, ...], report: int
) -> None:
    job, read = collected(Options(family=family, layers=layers, hook_points=("residual",), ordering=100))
    fitted = fit(job, read, Bars())
    assert len(fitted.facts["readouts"]) == 3
    for vectors in vectors_of(fitted).values():
        assert (vectors.active_layers, vectors.report_layer) == (acting, report)
    assert len(fitted.facts["probes"]) == 8  # all layers are scored, whichever act


def test_without_a_layer_to_act_there_is_no_readout_and_the_scores_are_kept() -> None:
    for options, signal in ((Options(layers=(1,), ordering=100), SIGNAL), (Options(ordering=100), (0.0, 0.0))):
        job, read = collected(options, signal)
        facts = fit(job, read, Bars()).facts
        assert facts["readouts"] == {}
        assert len(facts["probes"]) == 2 * 2 * len(signal)
        assert all(row["idle"] for row in facts["probes"] if signal[row["layer"]] == 0.0)
        assert all(0.3 < row["auroc"] < 0.7 for row in facts["probes"] if signal[row["layer"]] == 0.0)
