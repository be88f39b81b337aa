"""Reading rows: every format gives the same rows, and a fault is told with file and line."""

from __future__ import annotations

import gzip
import json
import sys
import types

import pytest

from merasteer.errors import BadTask
from merasteer.tasks import read_examples, read_rows
from merasteer.types import DataSource, Task

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
        (
            "a.csv",
            b'text,label\nb,ham\n"a,ham\nc,spam\n' * 1,
            "line 3: not CSV: a quote is opened in this row and never closed",
        ),
        ("a.csv", b"text,label\ra,ham\rb,spam\r", "line 1: not CSV: a carriage return in a cell without quotes"),
        ("a.csv", b"text;label,x\na;ham,1\n", "line 1: columns may be separated by commas or semicolons; quote"),
        ("a.csv", b"\n", "line 1: no header"),
        ("a.csv", b"text,label\n,\n \n", "holds no rows"),
        ("a.csv", "text,label\na,ham\n".encode("utf-16"), "line 1: UTF-16, not UTF-8; save it as UTF-8"),
        ("a.csv", b"text,label\na\0b,ham\n", "line 2: a NUL byte"),
        (
            "a.csv",
            b"text,label\ncaf\xe9,ham\n",
            "line 2: not UTF-8 (invalid continuation byte at byte 3); save it as UTF-8",
        ),
        ("a.jsonl", b"", "holds no rows"),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16-be"), "line 1: a NUL byte"),
        (
            "a.jsonl",
            b'{"text": "a", "x": 1, "text": "b"}\n',
            "line 1: 'text': a column named twice; rename or remove one",
        ),
        ("a.parquet", b"", "not a parquet file"),
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


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_folder_and_a_link_to_nothing_are_told(tmp_path, suffix):
    folder, link = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    folder.mkdir()
    link.symlink_to(tmp_path / "gone")
    with pytest.raises(BadTask, match=r"cannot be read \(Is a directory\)"):
        read(folder)
    with pytest.raises(BadTask, match=r"cannot be read \(No such file or directory, a link to .*gone\)"):
        read(link)


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("text;label\na, b;ham\n", ["a, b"]),
        ("text\tlabel\na; b\tham\n", ["a; b"]),
        ("text|label\na|ham\n", ["a"]),
        ("sep=;\ntext;label\na;ham\n", ["a"]),
        ('"text";"label"\r\n"a""b";"ham"\r\n', ['a"b']),
        ('text,"label;of it",label\na,x,ham\n', ["a"]),
        ("text,label\na,ham\n ", ["a"]),
        ("text,label\na,ham\n,\n\n", ["a"]),
        (f"text,label\n{'x' * 200_000},ham\n", ["x" * 200_000]),
        ("\ufefftext,label\na,ham\n", ["a"]),
    ],
)
def test_csv_is_read_as_spreadsheets_write_it(tmp_path, content, texts):
    file = tmp_path / "rows.csv"
    file.write_bytes(content.encode())
    assert [row["text"] for row in read(file)] == texts


def test_of_two_delimiters_in_a_header_that_counts_under_which_the_task_finds_its_columns(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text;label;score,x\na;ham;1,5\n")
    (row,) = read_rows(DataSource("label", path=file), {"text", "label"})
    assert (row.values["text"], row.values["label"], row.values["score,x"]) == ("a", "ham", "1,5")


def test_a_column_that_nobody_reads_may_be_there_twice(tmp_path):
    table, lines = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    table.write_text("text,label,,\na,ham,1,2\n")
    lines.write_text('{"text": "a", "label": "ham", "x": 1, "x": {"y": 1, "y": 2}}\n')
    for file in (table, lines):
        (row,) = read_rows(DataSource("label", path=file), {"text", "label"})
        assert (row.values["text"], row.values["label"]) == ("a", "ham")
        with pytest.raises(BadTask, match="a column named twice"):
            read(file)
    table.write_text("text,label,label\na,ham,spam\n")
    with pytest.raises(BadTask, match="line 1: 'label': a column named twice"):
        list(read_rows(DataSource("label", path=table), {"text", "label"}))


def strange(pyarrow):
    """Columns of every type that Python or a task has no value for."""
    return {
        "when": pyarrow.array([1, 2], pyarrow.timestamp("ns")),
        "price": pyarrow.array([None, None], pyarrow.decimal128(38, 2)),
        "tree": pyarrow.array([{"a": [1]}, {"a": None}]),
        "bytes": pyarrow.array([b"\xff", b"a"]),
        "nothing": pyarrow.nulls(2),
        "broken": pyarrow.Array.from_buffers(
            pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xfe")]
        ),
    }


def test_of_a_parquet_file_only_the_columns_that_the_task_names_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "rows.parquet"
    kinds = pyarrow.array(["ham", "spam"]).dictionary_encode()
    columns = {
        "text": pyarrow.array(["a", "b"]),
        "label": kinds,
        "text.more": pyarrow.array([1, 2]),
        **strange(pyarrow),
    }
    parquet.write_table(pyarrow.table(columns), file)
    rows = list(read_rows(DataSource("label", path=file), {"text", "label", "absent"}))
    assert [dict(row.values) for row in rows] == [{"text": "a", "label": "ham"}, {"text": "b", "label": "spam"}]
    assert "'bytes'" in rows[0].names
    (row,) = read_rows(DataSource("label", path=file), {"absent"})
    assert (dict(row.values), "'label'" in row.names) == ({}, True)


@pytest.mark.parametrize("column", ["when", "price", "tree", "bytes", "nothing", "broken"])
@pytest.mark.parametrize("role", ["label", "field", "where"])
def test_a_parquet_column_that_is_no_text_is_refused_in_one_line(tmp_path, column, role):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"a": ["x", "y"], "b": ["ham", "spam"], **strange(pyarrow)}), file)
    used = {"label": ("a", column, {}), "field": (column, "b", {}), "where": ("a", "b", {column: ("x",)})}[role]
    source = DataSource(used[1], path=file, fields={"text": used[0]}, where=used[2])
    task = Task("mine", ("ham", "spam"), (("ham",), ("spam",)), "Is {text} spam?", data=source)
    with pytest.raises(BadTask) as caught:
        read_examples(task)
    assert "\n" not in str(caught.value)
    assert column in str(caught.value) or (role == "field" and "field 'text': is of type" in str(caught.value))


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
