"""`mera tasks`: what is listed, shown and checked, and that it fails where a run would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mera_server.cli import main

TASK = 'name = "mine"\nlabels = ["ham", "spam"]\n[prompt]\ntemplate = "Is {text} spam?"\n[data]\npath = "rows.csv"\n'
SIZES = "[splits]\ntrain = 40\ncalibration = 20\ntest = 20\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task file and 100 rows."""
    for name in ("MERA_MODEL", "MERA_DATA"):
        monkeypatch.delenv(name, raising=False)
    rows = "".join(f"row {n},{('ham', 'spam')[n % 2]}\n" for n in range(100))
    (tmp_path / "rows.csv").write_text("text,label\n" + rows)
    (tmp_path / "mine.toml").write_text(TASK + SIZES)
    return tmp_path / "mine.toml"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that ends with exit code 2."""
    assert main(["tasks", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("mera: ")
    assert told.count("\n") == 1
    return told


def test_list_says_how_each_task_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "list"]) == 0
    assert "sms_spam" in capsys.readouterr().out


def test_show_reads_the_rows_of_a_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "show", str(file)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["choose"], shown["chat"], shown["splits"]["shuffle"]) == ("labels", False, True)
    (file.parent / "rows.csv").write_text("text,label\na,eggs\n")
    assert "line 2: label: 'eggs' is not one of the labels" in fails(capsys, "show", str(file))
    (file.parent / "rows.csv").unlink()
    assert "rows.csv: cannot be read (No such file or directory)" in fails(capsys, "show", str(file))
    file.write_text(TASK + "[answer]\nchoose = 'any'\n")
    assert "answer.choose: 'any' is unknown" in fails(capsys, "show", str(file))
    assert "cannot be read" in fails(capsys, "show", str(file.parent / "absent.toml"))


def test_check_prints_what_it_finds(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "check", str(file)]) == 0
    found = capsys.readouterr()
    assert found.out.splitlines()[0] == "rows: 100"
    assert "test: 20 rows in a random order (ham 10, spam 10)" in found.out
    assert found.err == ""


def test_check_takes_other_rows(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = file.parent / "other.csv"
    other.write_text("text,label\n" + "".join(f"text {n},{('ham', 'spam')[n % 3 == 0]}\n" for n in range(90)))
    assert main(["tasks", "check", str(file), "--data", str(other)]) == 0
    assert "classes: ham 60, spam 30" in capsys.readouterr().out


def test_check_fails_where_a_run_would(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(TASK)
    assert "2000 rows needed (1500 train + 250 calibration + 250 test), 100 available" in fails(
        capsys, "check", str(file)
    )
    file.write_text(TASK + SIZES.replace("40", "30"))
    assert "splits.train: 30 rows are too few for a run; give 40 or more" in fails(capsys, "check", str(file))
    assert "no such folder" in fails(capsys, "check", str(file), "--model", str(file.parent / "absent"))


def test_check_with_a_model_shows_prompt_labels_and_free_answers(
    make_task: object, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make_task(train=60, calibration=20, test=20)  # type: ignore[operator]
    assert main(["tasks", "check", str(task), "--model", str(model_folder)]) == 0
    found = capsys.readouterr().out
    assert "  yes: yes (decided at token 1)" in found
    assert "prompt: plain, 7 tokens" in found
    assert "too long: no row, for a context of 64 tokens" in found
    assert "free answers: 100% of 50 begin with a label" in found
    assert "  first tokens: 'yes' " in found or "  first tokens: 'no' " in found
    long = task.parent / "desks.jsonl"
    long.write_text(json.dumps({"desk": "A", "text": "g1 " * 80, "label": "yes"}) + "\n" + long.read_text())
    assert "line 1: prompt and answer exceed the model's context; shorten" in fails(
        capsys, "check", str(task), "--model", str(model_folder)
    )
