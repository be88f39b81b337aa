"""Thousands of damaged task files and files of rows: each is read, or refused in one line; nothing else ever comes out.

A mutation follows from its number alone, so a failure names the one to look at.
"""

from __future__ import annotations

import io
import json
import random
import sys
from pathlib import Path

import pytest
from mera_server.cli import main

from merasteer.errors import MeraError
from merasteer.tasks import check, load_task

FORMATS = ("toml", "csv", "jsonl", "parquet")
FEW, MANY = 60, 2000  # mutations of each format: in the ordinary suite, and in the slow one
TASK = """name = "mine"
labels = ["ham", "spam", "3"]
[variants]
ham = ["ham", " ham"]
[prompt]
template = "Is {text} spam? {choices}"
examples = 3
[answer]
choose = "free"
max_new_tokens = 2
[data]
path = "rows.FORMAT"
label = "kind"
label_index = true
fields = { text = "body" }
where = { on = [1, "yes"] }
[splits]
train = 9
calibration = 6
test = 3
"""
ROWS = [
    {"body": f'row {n}, "quoted"\nsecond; line', "kind": ("ham", "spam", 2)[n % 3], "on": 1, "choices": ["a", "b"], "x": 1.5}
    for n in range(24)
]  # fmt: skip
PIECES = (
    b'"', b"'", b",", b";", b"\t", b"\r", b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\xc3", b"\\", b"\\ud800",
    b"{", b"}", b"[", b"]", b"[[", b"{{", b"=", b"#", b":", b"null", b"true", b"NaN", b"1e999", b"1.0", b"-1", b"0x" + b"f" * 5000,
    b"9" * 5000, b"[" * 3000, b'"a":1,' * 2, b"1979-05-27T07:32:00Z", b'"""', b" ", b"\xe2\x80\xa8", b"hub = 'a/b'\n", b"kind", b"body",
    b"PAR1", b"\x7f\xff\xff\xff", b"\x80" * 9, b"x" * 200_000,
)  # fmt: skip
WORDS = (
    '""', '" "', '"a\\u0000b"', '"a\\nb"', '"a\\nb.csv"', '"{}"', '"{text"', '"{kind} {text}"', '"../x"', '"rows.csv"', '"/dev/null.csv"',
    '"."', '"\\U0001f600"', "0", "-1", "5", "0x7fffffffffffffff", "9223372036854775808", "1e400", "nan", "0.5", "true", "false",
    "1979-05-27", "07:32:00", "[]", "[[]]", '["ham", "spam"]', '["1", "2", "3"]', '["ham", "a\\nb"]', "[1, 2, 3]", "[true]", "{}",
    "{ a = 1 }", '{ text = "kind" }', '{ text = "a\\nb" }', '{ body = ["x"] }', '{ "a\\nb" = "x" }', '"last"', '"labels"',
)  # fmt: skip
VALUES = (
    None,
    True,
    1,
    0,
    -1,
    1.0,
    0.5,
    10**30,
    float("nan"),
    "",
    " ",
    "1",
    "1.0",
    "HAM ",
    "\ud800",
    "\0",
    [],
    ["a", 1],
    {"a": 1},
    "x" * 99,
)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    for name in ("MERA_MODEL", "MERA_DATA"):
        monkeypatch.delenv(name, raising=False)


def content(form: str, rows: list[dict[str, object]]) -> bytes:
    """The rows as a file of that format."""
    if form == "parquet":
        return packed(rows)
    if form == "jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    quoted = ([str(value).replace('"', '""') for value in row.values()] for row in rows)
    lines = [",".join(rows[0]), *('"' + '","'.join(cells) + '"' for cells in quoted)]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def packed(rows: list[dict[str, object]]) -> bytes:
    """As parquet, each column in the type that its values allow, else as text."""
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        try:
            columns[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError, UnicodeError):
            columns[name] = pyarrow.array([repr(value) for value in values])
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """The bytes after one to four changes."""
    for _ in range(rng.randint(1, 4)):
        at, end = sorted(rng.choices(range(len(raw) + 1), k=2))
        end = min(end, at + rng.choice((0, 1, 4, 40, len(raw))))
        put = rng.choice(
            (b"", raw[at:end] * 2, rng.choice(PIECES), bytes(rng.choices(range(256), k=rng.randint(1, 4))))
        )
        raw = raw[:at] + put + raw[end:]
    return raw


def revalued(task: bytes, rng: random.Random) -> bytes:
    """The task file with one to three values replaced by others, keys removed or lines moved elsewhere."""
    lines = task.decode().splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        key = lines[at].partition(" = ")[0]
        put = rng.choice(
            ([f"{key} = {rng.choice(WORDS)}"], [f"{key}x = {rng.choice(WORDS)}"], [], [lines[at], rng.choice(lines)])
        )
        lines[at : at + 1] = put
    return "\n".join(lines).encode()


def mutated(form: str, number: int) -> tuple[bytes, bytes]:
    """The task file and the rows of one mutation."""
    rng = random.Random(f"{form} {number}")
    kind = "jsonl" if form == "toml" else form
    rows: list[dict[str, object]] = [dict(row, kind=str(row["kind"])) for row in ROWS]
    if rng.random() < 0.5 and form != "toml":
        for row in rows if rng.random() < 0.3 else [rng.choice(rows)]:
            row[rng.choice(list(row))] = rng.choice(VALUES)
    task, data = TASK.replace("FORMAT", kind).encode(), content(kind, rows)
    if form == "toml":
        task = revalued(task, rng) if rng.random() < 0.7 else task
        return damaged(task, rng) if rng.random() < 0.4 else task, data
    if kind == "csv":  # which holds no lists
        task = task.replace(b" {choices}", b"")
    if rng.random() < 0.3:
        task = task.replace(b'{ on = [1, "yes"] }', rng.choice((b"{}", b"{ x = 1 }", b'{ kind = "ham" }')))
    return task, damaged(data, rng) if rng.random() < 0.7 else data


def outcome(folder: Path, form: str, number: int) -> str:
    """What came of one mutation. Anything but a result or an error of ours in one line raises."""
    task, data = mutated(form, number)
    (folder / "task.toml").write_bytes(task)
    (folder / f"rows.{'jsonl' if form == 'toml' else form}").write_bytes(data)
    try:
        error = check(load_task(folder / "task.toml")).error
    except MeraError as raised:
        error = raised
    except BaseException as raised:
        raise AssertionError(f"{form} {number}: {type(raised).__name__}: {raised}") from raised
    if error is None:
        return "read"
    assert 10 < len(str(error)) < 2000, f"{form} {number}: {error}"
    assert len(str(error).splitlines()) == 1, f"{form} {number}: {error!r}"
    return "refused"


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path: Path, form: str) -> None:
    assert {outcome(tmp_path, form, number) for number in range(FEW)} == {"read", "refused"}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_thousands_of_damaged_files_are_read_or_refused_in_one_line(tmp_path: Path, form: str) -> None:
    found = [outcome(tmp_path, form, number) for number in range(FEW, MANY)]
    assert min(found.count("read"), found.count("refused")) > MANY // 50


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_the_command_line_tells_a_damaged_file_in_one_line(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(MANY, MANY + 200):
        outcome(tmp_path, form, number)
        code = main(["tasks", "show", str(tmp_path / "task.toml")])
        told = capsys.readouterr().err
        assert (code, told.count("\n")) in ((0, 0), (2, 1)), f"{form} {number}: {told}"
