"""Made-up records of a bench: one cell, a whole realistic grid, and a large one."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

Cell = dict[str, Any]
METHODS = (
    "none", "prompt", "additive", "contrastive", "reference", "mera", "mera-covariance", "mera-contrastive",
    "mera-logistic", "mera-all-positions", "mera-best-layer", "paper", "paper-lasso", "logit_bias", "mera+bias",
    "sae", "sae-top50", "sae-top200", "mera-second-chances", "certified-best",
)  # fmt: skip
ALPHAS = (0.003, 0.01, 0.03, 0.08, 0.2, 0.4, 0.6, 0.8)


def make_cell(method: str = "mera", **changes: Any) -> Cell:
    """A certified cell without figures; `changes` replace whole fields."""
    cell: Cell = {
        "schema": 3, "key": "0" * 12, "model": "tiny-llama", "task": "sms_spam", "position": "last", "method": method,
        "status": "done", "error": None, "decision": "certified", "reason": None, "correction": "mera", "alpha": 0.03,
        "hook_point": "residual", "direction": "covariance", "report_layer": 3,
        "n": {"train": 2000, "calibration": 250, "test": 1000},
        "accuracy": {"unsteered": 0.6, "steered": 0.9, "majority": 0.5, "logit_bias": 0.7, "label_probe": 0.95, "text_classifier": 0.8},
        "balanced_accuracy": [0.6, 0.9],
        "spi": 0.75, "spi_interval": [0.68, 0.81], "level": 0.95,
        "transitions": {"kept_right": 580, "repaired": 320, "broken": 20, "kept_wrong": 80},
        "classes": {
            "ham": {"precision": [0.6, 0.9], "recall": [0.6, 0.9], "f1": [0.6, None]},
            "spam": {"precision": [None, 0.9], "recall": [None, None], "f1": [None, None]},
        },
        "percentiles": None, "probes": [], "curve": [], "tested": [],
        "certificate": {"test": "mcnemar", "delta": 0.05, "epsilon": 0.0, "p_value": 6e-22, "gain": 0.3,
                        "lower_bound": 0.22, "candidates": 60, "chances": 1, "level": 0.0025, "attempt": 1, "collapse": None,
                        "below_majority": False, "broken": {"n": 150, "lost": 5, "share": 5 / 150, "upper": 0.096}},
        "seconds": {"collect": 1.5, "calibrate": 3.0}, "seed": 0, "versions": {"torch": "2.11.0", "transformers": "5.23.0"},
        "runtime": {"dtype": "float32", "attention": "sdpa", "device": "cpu", "threads": 2},
    }  # fmt: skip
    return cell | changes


def abstained(method: str, **changes: Any) -> Cell:
    """A cell whose best candidate was tested and not certified."""
    test = {**make_cell()["certificate"], "p_value": 0.31, "gain": 0.02, "lower_bound": -0.03}
    same = {"kept_right": 600, "repaired": 0, "broken": 0, "kept_wrong": 400}
    accuracy = make_cell()["accuracy"] | {"steered": 0.6}
    given = {"decision": "abstained", "reason": "uncertified", "correction": None, "alpha": None, "hook_point": None,
             "direction": None, "spi": 0.0, "spi_interval": [0.0, 0.0], "accuracy": accuracy, "transitions": same,
             "certificate": test}  # fmt: skip
    return make_cell(method, **given | changes)


def alone(method: str, **changes: Any) -> Cell:
    """A cell whose candidate passes at δ, and not at its column's level."""
    return make_cell(
        method, **{"decision": "alone", "certificate": {**make_cell()["certificate"], "p_value": 0.02}} | changes
    )


def applied(method: str, spi: float, **changes: Any) -> Cell:
    """A baseline that is always on."""
    steered = 0.6 + (0.4 if spi > 0 else 0.6) * spi
    right = round(1000 * steered)
    counts = {"kept_right": min(right, 600) - 20, "repaired": right - min(right, 600) + 20}
    counts |= {"broken": 600 - counts["kept_right"], "kept_wrong": 400 - counts["repaired"]}
    given = {"decision": "applied", "correction": None, "alpha": None, "hook_point": None, "direction": None,
             "spi": spi, "spi_interval": [spi - 0.06, spi + 0.05], "certificate": None, "report_layer": None,
             "accuracy": make_cell()["accuracy"] | {"steered": steered}, "transitions": counts}  # fmt: skip
    return make_cell(method, **given | changes)


def failed(method: str, **changes: Any) -> Cell:
    """A cell of which there is nothing but its place and the reason."""
    place = {name: make_cell()[name] for name in ("schema", "key", "model", "task", "position")}
    return {**place, "method": method, "status": "failed", "error": "CUDA out of memory", **changes}


def probes(rng: random.Random, readout: str = "error", layers: int = 12) -> list[Cell]:
    """Held-out scores that are worst at the ends, at two hook points."""
    rows = []
    for hook_point in ("residual", "mlp_input"):
        depth = rng.uniform(0.1, 0.5)
        for layer in range(layers):
            rmse = 1.02 - depth * np.sin(np.pi * layer / layers) + rng.gauss(0, 0.02)
            area = None if readout == "contrastive" else min(1.0, 0.5 + (1.02 - rmse))
            rows.append({"hook_point": hook_point, "readout": readout, "layer": layer, "rmse": 2.0 * rmse,
                         "dummy_rmse": 2.0, "auroc": area, "standard_error": 0.02, "idle": rmse > 0.98})  # fmt: skip
    return rows


def curve(rng: random.Random) -> list[Cell]:
    """Gains that rise and fall with α, for every hook point and direction, with the bias alone and on top."""
    rows: list[Cell] = []
    for hook_point in ("residual", "mlp_input"):
        for direction in ("euclidean", "covariance", "contrastive"):
            top = rng.uniform(0, 0.3)
            for i, alpha in enumerate(ALPHAS):
                gain = top * np.sin(np.pi * i / 7) + rng.gauss(0, 0.01)
                rows.append({"key": f"{hook_point}/{direction}/{alpha:g}", "method": "mera", "hook_point": hook_point,
                             "direction": direction, "alpha": alpha, "gain": gain, "lower_bound": gain - 0.08})  # fmt: skip
    best = max(rows, key=lambda row: row["gain"])
    bias = {"key": "logit_bias", "method": "logit_bias", "hook_point": None, "direction": None, "alpha": None}
    rows.append({**bias, "gain": 0.12, "lower_bound": 0.05})
    rows.append({**best, "key": best["key"] + "+bias", "method": "mera+bias", "gain": best["gain"] + 0.03})
    return rows


def make_grid(
    models: Iterable[str], tasks: Iterable[str], positions: Iterable[str], methods: Iterable[str]
) -> list[Cell]:
    """Cells of every kind with all that figures show. Equal arguments give equal cells."""
    rng, cells = random.Random(0), []
    for place in [(m, t, p) for m in models for t in tasks for p in positions]:
        where = dict(zip(("model", "task", "position"), place, strict=True))
        shared = probes(rng)
        for number, method in enumerate(methods):
            if number == 0:
                cells.append(applied(method, 0.0, **where))
            elif number < 5:
                cells.append(applied(method, rng.uniform(-0.8, 0.4), **where))
            elif rng.random() < 0.07:
                cells.append(failed(method, **where))
            else:
                cells.append(_calibrated(rng, method, where, shared))
    return cells


def _calibrated(rng: random.Random, method: str, where: Cell, shared: list[Cell]) -> Cell:
    own = {"logistic": "logistic", "contrastive": "contrastive", "sae": "sae"}
    readout = next((value for name, value in own.items() if name in method), None)
    candidates = curve(rng)
    best = max(candidates, key=lambda row: row["gain"])
    gain = best["gain"] - 0.02
    tested = {
        "key": best["key"],
        "n": 250,
        "gained": 40,
        "lost": 9,
        "p_value": 1e-4,
        "gain": gain,
        "lower_bound": gain - 0.07,
    }
    error = np.sort(np.clip([0.05 + 0.09 * i + rng.gauss(0, 0.05) for i in range(10)], 0, 1))
    changes = where | {
        "curve": candidates,
        "tested": [tested],
        "probes": probes(rng, readout) if readout else shared,
        "percentiles": [{"predicted": 0.1 * i + 0.05, "error": float(e), "n": 100} for i, e in enumerate(error)],
    }
    if gain < 0.2:
        return abstained(method, **changes)
    score = min(1.0, gain / 0.4)
    return make_cell(method, spi=score, spi_interval=[score - 0.07, min(1.0, score + 0.06)], **changes)


@pytest.fixture(scope="session")
def record() -> Callable[..., Cell]:
    """Makes a certified cell; record.abstained, record.alone, record.applied and record.failed make the others."""
    make_cell.abstained, make_cell.applied, make_cell.failed = abstained, applied, failed  # type: ignore[attr-defined]
    make_cell.alone = alone  # type: ignore[attr-defined]
    return make_cell


@pytest.fixture(scope="session")
def grid() -> Callable[..., list[Cell]]:
    """Makes the cells of a grid of models, tasks, positions and methods."""
    return make_grid


@pytest.fixture(scope="session")
def realistic() -> list[Cell]:
    """One model, two tasks, one of them at both answer positions in other cells; eight methods."""
    return make_grid(
        ["tiny-llama"], ["sms_spam", "yes_no_question"], ["last"], METHODS[:2] + METHODS[5:9] + METHODS[13:15]
    )
