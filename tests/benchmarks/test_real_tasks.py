"""The task files of the study on real models: the built-in tasks' prompts and labels over rows where they lie."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from merasteer.errors import InvalidInput
from merasteer.tasks import load_task, read_examples

ROWS: dict[str, dict[str, Any]] = {
    "sms_spam": {"text": "win a prize", "label": "spam"},
    "sentiment_analysis": {"text": "profit rose", "label": "positive"},
    "yes_no_question": {"text": "is it so?", "label": "Yes"},
    "mmlu_high_school": {"question": "which?", "choices": ["a", "b", "c", "d"], "label": "A"},
}


@pytest.fixture
def made(root: Path) -> dict[str, Any]:
    return runpy.run_path(str(root / "benchmarks" / "real_tasks.py"))


def test_each_task_is_the_built_in_one_over_the_rows_where_they_lie(made: dict[str, Any], tmp_path: Path) -> None:
    for name, row in ROWS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    files = made["write_tasks"](tmp_path, tmp_path / "out")
    assert [path.stem for path in files] == [
        "sms_spam", "sms_spam_1", "sms_spam_2", "sentiment_analysis", "yes_no_question", "mmlu_high_school",
    ]  # fmt: skip
    for path in files:
        task, known = load_task(path), load_task(path.stem.rsplit("_", 1)[0] if path.stem[-1].isdigit() else path.stem)
        assert (task.labels, task.template, task.chat) == (known.labels, known.template, known.chat)
        assert task.splits.shuffle
        assert len(read_examples(task)) == 1
    assert [load_task(path).splits.seed for path in files[:3]] == [0, 1, 2]


def test_a_data_set_that_is_missing_is_named(made: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no sms_spam/sms_spam.jsonl or .jsonl.gz"):
        made["write_tasks"](tmp_path, tmp_path / "out")
