"""Reading rows: every format gives the same rows, and a fault is told with file and line."""

from __future__ import annotations

import gzip
import json
import sys
import types

import pytest

from merasteer.errors import BadTask
from merasteer.tasks import read_rows
from merasteer.types import DataSource

ROWS = [{"text": 'a\u2028b\x85c, "d"', "label": "ham"}, {"text": "two\nlines", "label": "spam"}]


def read(path):
    return [dict(row.values) for row in read_rows(DataSource("label", path=path))]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def test_jsonl_is_cut_at_line_feeds_only(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS[:1]) + b"\r\n\n" + jsonl(ROWS[1:]))
    assert read(file) == ROWS
    assert [row.where for row in read_rows(DataSource("label", path=file))] == [f"{file}: line 1", f"{file}: line 4"]


def test_gzip_csv_and_parquet_give_the_same_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    packed, table, columns = tmp_path / "rows.jsonl.gz", tmp_path / "rows.CSV", tmp_path / "rows.parquet"
    packed.write_bytes(gzip.compress(jsonl(ROWS)))
    table.write_bytes('text,label\n"a\u2028b\x85c, ""d""",ham\n\n"two\nlines",spam\n'.encode())
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), columns)
    assert read(packed) == read(table) == read(columns) == ROWS
    assert [row.where for row in read_rows(DataSource("label", path=table))][1] == f"{table}: line 5"
    assert [row.where for row in read_rows(DataSource("label", path=columns))][1] == f"{columns}: row 2"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: not JSON"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2: JSON, but not an object"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": "\xff"}\n', "line 3: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("a.jsonl", b"1" * 5000, "line 1: not JSON"),
        ("a.jsonl.gz", b"no gzip at all", "cannot be read (Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(jsonl(ROWS * 50), mtime=0)[:-9], "cannot be read (Compressed file ended"),
        ("a.jsonl.gz", gzip.compress(b"x" * 99, mtime=0)[:10] + b"\xff" * 30, "cannot be read (Error -3"),
        ("a.csv", b"", "line 1: no header"),
        ("a.csv", b"text,text\n1,2\n", "a column named twice"),
        ("a.csv", b"text,label\na,ham\nb,c,spam\n", "line 3: 3 cells under 2 columns"),
        ("a.csv", b"text,label\nham\n", "line 2: 1 cells under 2 columns"),
        ("a.csv", b'text,label\n"a"b,ham\n', "line 2: not CSV"),
        ("a.csv", b'text,label\n"a,ham\n', "line 2: not CSV"),
        ("a.csv", b"text,label\n" + b"x" * 200_000 + b",ham\n", "line 2: not CSV (field larger"),
        ("a.csv", b"text,label\n\xff,ham\n", "line 2: not UTF-8"),
        ("a.parquet", b"PAR1 it is not", "not a parquet file"),
        ("a.txt", b"", "ends in none of .jsonl"),
    ],
)
def test_a_fault_is_told_with_file_and_line(tmp_path, name, content, says):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(BadTask) as caught:
        read(file)
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_a_missing_file_is_told(tmp_path, suffix):
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(BadTask, match=r"cannot be read .*No such file"):
        read(tmp_path / f"absent.{suffix}")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadTask, match=r"mera-server\[pipeline\]"):
        read(tmp_path / "rows.parquet")


HUB = DataSource("label", hub="owner/set")


def test_the_hub_gives_class_names_for_class_numbers(monkeypatch):
    asked = []

    class Set(list):
        features = types.MappingProxyType({"text": object(), "label": types.SimpleNamespace(names=["ham", "spam"])})

    def load_dataset(name, split):
        asked.append((name, split))
        return Set([{"text": "a", "label": 1}, {"text": "b", "label": -1}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    rows = list(read_rows(HUB))
    assert asked == [("owner/set", "train")]
    assert [row.values for row in rows] == [{"text": "a", "label": "spam"}, {"text": "b", "label": -1}]
    assert rows[1].where == "owner/set: row 2"


def test_a_missing_package_or_hub_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadTask, match="'owner/set' needs the package datasets"):
        list(read_rows(HUB))

    def load_dataset(name, split):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(BadTask, match=r"cannot be had \(ConnectionError: no route to host\)"):
        list(read_rows(HUB))
