"""The built-in tasks on the local copies of their data sets, and what each prompt looks like."""

from __future__ import annotations

from collections import Counter

import pytest

from merasteer.tasks import builtin_names, check_disjoint, fields_of, load_task, make_splits, matches, render

FILES = {
    "mmlu_high_school": ("mmlu_high_school.jsonl.gz", 3420, ("question", "choices")),
    "sentiment_analysis": ("sentiment_analysis.jsonl", 4846, ("text",)),
    "sms_spam": ("sms_spam.jsonl", 5574, ("text",)),
    "yes_no_question": ("yes_no_question.jsonl.gz", 5270, ("text",)),
}


@pytest.mark.parametrize("name", FILES)
def test_the_local_rows_fill_the_splits(real_data, name):
    file, total, fields = FILES[name]
    task = load_task(name, data=real_data / name / file)
    splits = make_splits(task)
    parts = (splits.train, splits.calibration, splits.test)
    assert [len(part) for part in parts] == [task.splits.train, task.splits.calibration, task.splits.test]
    assert sum(map(len, parts)) + splits.skipped <= total
    check_disjoint(splits.digests)
    for part in parts:
        shares = Counter(one.label for one in part)
        assert set(shares) == set(range(len(task.labels)))
        assert min(shares.values()) > 0.05 * len(part)
    for one in splits.test:
        assert tuple(one.fields) == fields
        assert matches(task.template, one.prompt)
        assert one.prompt.endswith("?")


EXAMPLES = {
    "mmlu_high_school": {"question": "2 + 2?", "choices": ["1", "2", "3", "4"]},
    "mmlu_professional": {"question": "2 + 2?", "choices": ["1", "2", "3", "4"]},
    "sentiment_analysis": {"text": "Sales rose."},
    "sms_spam": {"text": "Win a prize"},
    "yes_no_question": {"text": "question: is it so\npassage: It is."},
}


@pytest.mark.parametrize("name", builtin_names())
def test_every_prompt_is_a_question_that_shows_its_fields_and_names_its_labels(name):
    task = load_task(name)
    assert set(fields_of(task.template)) == set(EXAMPLES[name])
    prompt = render(task.template, EXAMPLES[name])
    assert prompt.endswith(
        "?"
    )  # as a user asks it, and without white space that would spoil the first token of the answer
    assert (task.choose, task.chat, task.system, task.examples, task.notes) == ("labels", None, None, 0, ())
    assert all(label in prompt for label in task.labels)
    assert not any(variant.endswith(" ") for variants in task.variants for variant in variants)


def test_options_are_lettered():
    prompt = render(load_task("mmlu_professional").template, EXAMPLES["mmlu_professional"])
    assert "2 + 2?\nA. 1\nB. 2\nC. 3\nD. 4\n" in prompt
