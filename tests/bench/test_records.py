"""results.json and results.parquet: every cell a record and a row, with the same columns whatever was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from merasteer.bench.records import flat, write_tables
from merasteer.errors import InvalidInput

parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra mera-server[pipeline]")


def test_json_holds_the_whole_records_in_order(record: Any, tmp_path: Path) -> None:
    cells = [record("sae"), record("mera"), record.failed("none", model="another")]
    assert [path.name for path in write_tables(cells, tmp_path)] == ["results.json", "results.parquet"]
    assert json.loads((tmp_path / "results.json").read_text()) == [cells[2], cells[1], cells[0]]


def test_every_cell_is_a_row_failed_ones_too(record: Any, tmp_path: Path) -> None:
    cells = [
        record("mera"),
        record.failed("prompt"),
        record.applied("none", 0.0),
        record.abstained("sae", certificate=None),
    ]
    write_tables(cells, tmp_path)
    rows = {row["method"]: row for row in parquet.read_table(tmp_path / "results.parquet").to_pylist()}
    assert list(rows) == ["mera", "none", "prompt", "sae"]
    assert rows["mera"] == flat(cells[0])
    assert (rows["mera"]["spi"], rows["mera"]["spi_low"], rows["mera"]["spi_high"]) == (0.75, 0.68, 0.81)
    assert (rows["mera"]["p_value"], rows["mera"]["n_calibration"], rows["mera"]["seconds_collect"]) == (
        6e-22,
        250,
        1.5,
    )
    assert (
        rows["mera"]["accuracy_label_probe"],
        rows["mera"]["balanced_steered"],
        rows["sae"]["accuracy_text_classifier"],
    ) == (
        0.95,
        0.9,
        0.8,
    )
    said = [
        rows["mera"][name]
        for name in ("test_level", "attempt", "collapse", "below_majority", "broken_n", "broken_upper")
    ]
    assert said == [0.0025, 1, None, False, 150, 0.096]
    assert json.loads(rows["mera"]["versions"]) == cells[0]["versions"]
    assert {name for name, value in rows["prompt"].items() if value is not None} == {
        "schema", "key", "model", "task", "position", "method", "status", "error",
    }  # fmt: skip
    assert (rows["sae"]["decision"], rows["sae"]["p_value"], rows["none"]["alpha"]) == ("abstained", None, None)


def test_types_do_not_depend_on_what_was_measured(record: Any, tmp_path: Path) -> None:
    seconds = {"seconds": {"collect": 1.0, "calibrate": 2.0}}
    write_tables([record("mera")], tmp_path / "done")
    write_tables([record.failed("mera", **seconds)], tmp_path / "failed")
    write_tables([], tmp_path / "empty")
    done, failed, empty = (
        parquet.read_schema(tmp_path / name / "results.parquet") for name in ("done", "failed", "empty")
    )
    assert failed == done
    assert {field.name: field.type for field in empty}.items() <= {field.name: field.type for field in done}.items()
    assert {
        str(done.field(name).type)
        for name in ("n_test", "transitions_broken", "seed", "chances", "attempt", "broken_n")
    } == {"int64"}
    assert {str(done.field(name).type) for name in ("error", "test", "collapse", "versions", "runtime_dtype")} == {
        "string"
    }


def test_equal_cells_give_equal_bytes_in_any_order(record: Any, tmp_path: Path) -> None:
    cells = [record("mera"), record("sae"), record.failed("none")]
    first, second = write_tables(cells, tmp_path / "a"), write_tables(cells[::-1], tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_without_pyarrow_nothing_is_written(record: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidInput, match=r"install mera-server\[pipeline\]"):
        write_tables([record("mera")], tmp_path)
    assert not list(tmp_path.iterdir())
