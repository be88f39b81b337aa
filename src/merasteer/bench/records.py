"""The results for other programs: `results.json` has every record whole, `results.parquet` one flat row of each."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from merasteer.bench.cells import Cell
from merasteer.errors import InvalidInput
from merasteer.pipeline.workspace import replace_file

__all__ = ["flat", "write_tables"]

PLACE = ("model", "task", "position", "method", "key")
TEXTS = (*PLACE, "status", "error", "decision", "reason", "correction", "hook_point", "direction")
TEST = ("p_value", "gain", "lower_bound", "delta", "epsilon", "attempt", "collapse", "below_majority")
PARTS = {
    "n": ("train", "calibration", "test"),
    "accuracy": ("unsteered", "steered", "majority", "logit_bias", "label_probe", "text_classifier"),
    "transitions": ("kept_right", "repaired", "broken", "kept_wrong"),
    "runtime": ("dtype", "attention", "device", "threads"),
}
WHOLE = {
    "schema",
    "report_layer",
    "seed",
    "candidates",
    "chances",
    "attempt",
    "broken_n",
    "broken_lost",
    "runtime_threads",
}
WORDS = {*TEXTS, "test", "collapse", "versions", "runtime_dtype", "runtime_attention", "runtime_device"}


def write_tables(cells: Sequence[Cell], out: Path) -> list[Path]:
    """The two files in `out`, each complete or absent, sorted by model, task, position and method.

    Raises InvalidInput where pyarrow is missing or `out` cannot be written.
    """
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise InvalidInput("results.parquet: needs the package pyarrow; install mera-server[pipeline]") from error
    ordered = sorted(cells, key=lambda cell: [str(cell.get(name)) for name in PLACE])
    rows = [flat(cell) for cell in ordered]
    names = list(dict.fromkeys(name for row in [flat({}), *rows] for name in row))
    columns = [arrow.array([row.get(name) for row in rows], getattr(arrow, _type(name))()) for name in names]
    text = json.dumps(ordered, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    paths = [out / "results.json", out / "results.parquet"]
    replace_file(paths[0], lambda to: to.write_text(text, encoding="utf-8"))
    replace_file(paths[1], lambda to: parquet.write_table(arrow.table(columns, names=names), to))
    return paths


def flat(cell: Cell) -> dict[str, Any]:
    """The record's scalars under one name each, None where it has none, as in a failed one.

    n_…, accuracy_…, balanced_…, transitions_…, runtime_… and seconds_… are those of the record; spi_low and spi_high its interval; test,
    p_value, gain, lower_bound, delta, epsilon, attempt, collapse, below_majority, candidates and chances are the certificate's,
    test_level its level, broken_n, broken_lost, broken_share and broken_upper its harm. versions is JSON.
    """
    interval, test = cell.get("spi_interval") or (None, None), cell.get("certificate") or {}
    versions, balanced = cell.get("versions"), cell.get("balanced_accuracy") or (None, None)
    return {
        "schema": cell.get("schema"),
        **{name: cell.get(name) for name in TEXTS},
        **{name: cell.get(name) for name in ("alpha", "report_layer")},
        **{f"{part}_{name}": (cell.get(part) or {}).get(name) for part in ("n", "accuracy") for name in PARTS[part]},
        **{f"balanced_{name}": value for name, value in zip(("unsteered", "steered"), balanced, strict=True)},
        "spi": cell.get("spi"),
        "spi_low": interval[0],
        "spi_high": interval[1],
        "level": cell.get("level"),
        **{name: test.get(name) for name in ("test", *TEST, "candidates", "chances")},
        "test_level": test.get("level"),
        **{f"broken_{name}": (test.get("broken") or {}).get(name) for name in ("n", "lost", "share", "upper")},
        **{f"transitions_{name}": (cell.get("transitions") or {}).get(name) for name in PARTS["transitions"]},
        **{f"seconds_{name}": value for name, value in (cell.get("seconds") or {}).items()},
        "seed": cell.get("seed"),
        "versions": None if versions is None else json.dumps(versions, sort_keys=True),
        **{f"runtime_{name}": (cell.get("runtime") or {}).get(name) for name in PARTS["runtime"]},
    }


def _type(column: str) -> str:
    """The name of the column's Arrow type: by name alone, so that a column without values has it too."""
    if column in WORDS:
        return "string"
    if column == "below_majority":
        return "bool_"
    return "int64" if column in WHOLE or column.startswith(("n_", "transitions_")) else "float64"
