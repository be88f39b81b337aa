"""Data sets of a hub, played by a stand-in for the package `datasets`: configurations, filters, columns, and no network."""

from __future__ import annotations

import json
import sys
import types
from collections import Counter

import pytest

from merasteer.errors import BadTask
from merasteer.tasks import builtin_names, check_disjoint, load_task, make_splits, read_rows
from merasteer.types import DataSource


class Set(list):
    """Rows, and the classes of one column as the package declares them."""

    def __init__(self, rows, **classes):
        super().__init__(rows)
        self.features = {name: types.SimpleNamespace(names=names) for name, names in classes.items()}
        self.features["other"] = object()


@pytest.fixture
def hub(monkeypatch):
    """Sets by (name, configuration); what was asked for is in `asked`."""
    found = types.SimpleNamespace(sets={}, asked=[])

    def load_dataset(name, config=None, *, split):
        found.asked.append((name, config, split))
        if (name, config) not in found.sets:
            raise ConnectionError(f"cannot reach the hub\nfor {name}")
        return found.sets[name, config]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return found


def test_configurations_are_read_in_order_and_named_in_errors(hub):
    hub.sets = {("a/b", name): Set([{"text": name + str(n)} for n in (1, 2)]) for name in ("two", "one")}
    rows = list(read_rows(DataSource("label", hub="a/b", split="test", config=("two", "one"))))
    assert [row.values["text"] for row in rows] == ["two1", "two2", "one1", "one2"]
    assert [row.where for row in rows[1:3]] == ["a/b/two: row 2", "a/b/one: row 1"]
    assert hub.asked == [("a/b", "two", "test"), ("a/b", "one", "test")]
    with pytest.raises(BadTask, match=r"'a/b' \(config 'three', split 'train'\) cannot be had \(ConnectionError"):
        list(read_rows(DataSource("label", hub="a/b", config=("three",))))


@pytest.mark.parametrize("name", builtin_names())
def test_a_built_in_task_without_a_hub_is_told_in_one_line(hub, name):
    with pytest.raises(BadTask) as caught:
        make_splits(load_task(name))
    assert "cannot be had (ConnectionError: cannot reach the hub for" in str(caught.value)
    assert "--data" in str(caught.value)
    assert "\n" not in str(caught.value)


def splits_of(name):
    task = load_task(name)
    splits = make_splits(task)
    assert (len(splits.train), len(splits.calibration), len(splits.test)) == (
        task.splits.train,
        task.splits.calibration,
        task.splits.test,
    )
    check_disjoint(splits.digests)
    return splits


def test_messages(hub):
    rows = [{"sms": f"message {n}\n", "label": n % 2} for n in range(3500)]
    hub.sets["ucirvine/sms_spam", None] = Set(rows, label=["ham", "spam"])
    first = splits_of("sms_spam").train[:2]
    assert [one.label for one in first] == [0, 1]
    assert "message 0" in first[0].prompt


@pytest.mark.parametrize("kind", ["high_school", "professional"])
@pytest.mark.parametrize("declared", [True, False], ids=["class", "number"])
def test_questions_of_every_subject_are_in_every_split(hub, kind, declared):
    task = load_task(f"mmlu_{kind}")
    for config in task.data.config:
        assert config.startswith(f"{kind}_")
        rows = [
            {"question": f"{config} {n}?", "subject": config, "choices": list("wxyz"), "answer": n % 4}
            for n in range(260 if kind == "high_school" else 680)
        ]
        hub.sets["cais/mmlu", config] = Set(rows, **({"answer": list("ABCD")} if declared else {}))
    splits = splits_of(task.name)
    assert len(hub.asked) == len(set(hub.asked)) == {"high_school": 14, "professional": 4}[kind]
    assert {split for _, _, split in hub.asked} == {"test"}
    for part in (splits.train, splits.calibration, splits.test):
        assert len({one.fields["question"].split()[0] for one in part}) == len(task.data.config)
        for one in part[:20]:
            assert one.label == int(one.fields["question"].split()[1][:-1]) % 4
            assert "A. w\nB. x\nC. y\nD. z\n" in one.prompt


@pytest.mark.parametrize(
    ("name", "answers"),
    [("sentiment_analysis", ("Positive", "neutral", "negative")), ("yes_no_question", ("Yes", "no"))],
)
def test_one_set_of_many_jobs_is_filtered(hub, name, answers):
    rows = []
    for n in range(3500):
        rows += [
            {"user_prompt": f"it is {n}", "inputs": "long", "answer": answers[n % len(answers)], "task_type": name},
            {"user_prompt": f"else {n}", "inputs": "long", "answer": answers[0], "task_type": "qa"},
            {"user_prompt": f"bull {n}", "inputs": "long", "answer": "bullish", "task_type": name},
            {"user_prompt": None, "inputs": None, "answer": None, "task_type": "qa"},
        ]
    hub.sets["sujet-ai/Sujet-Finance-Instruct-177k", None] = Set(rows)
    splits = splits_of(name)
    everything = splits.train + splits.calibration + splits.test
    assert all(one.label == int(one.fields["text"].removeprefix("it is ")) % len(answers) for one in everything)
    assert len(Counter(one.label for one in splits.test)) == len(answers)


def test_a_description_can_be_written_down():
    from dataclasses import asdict

    for name in builtin_names():
        assert json.loads(json.dumps(asdict(load_task(name)), default=str))["name"] == name
