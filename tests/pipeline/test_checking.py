"""Free answers of a model: how many of them are labels, and how they begin."""

from __future__ import annotations

from dataclasses import replace

import pytest

from merasteer.pipeline.checking import ROWS, begins_with_one, free_answers
from merasteer.tasks import Prompter, load_task, make_splits, resolve


def test_a_model_that_says_labels_is_seen_to(make_task, loaded):
    task = load_task(make_task())
    prompter = Prompter(resolve(task, loaded.tokenizer), loaded.tokenizer)
    share, first = free_answers(loaded, prompter.task, prompter, make_splits(task).train)
    assert share > 0.9  # the model was trained to say yes or no, and nothing else
    assert {text for text, _ in first} <= {"yes", "no"} | {f"{kind}{i}" for kind in "gb" for i in range(8)} | {"A", "B"}
    assert sum(part for _, part in first) == pytest.approx(1, abs=0.05)
    assert [part for _, part in first] == sorted((part for _, part in first), reverse=True)
    other = replace(prompter.task, variants=(((6,),), ((7,),)))
    assert free_answers(loaded, other, prompter, make_splits(task).train)[0] < 0.1


def test_a_prompt_that_leaves_room_for_one_token_is_asked_too(make_task, loaded):
    task = load_task(make_task())
    prompter = Prompter(resolve(task, loaded.tokenizer), loaded.tokenizer)
    long = replace(make_splits(task).train[0], prompt="g1 " * (loaded.context - 1))
    share, first = free_answers(loaded, prompter.task, prompter, [long])
    assert (share in (0, 1), len(first), ROWS) == (True, 1, 50)
    assert free_answers(loaded, prompter.task, prompter, []) == (0.0, [])


@pytest.mark.parametrize(
    ("text", "begins"), [("ham", True), (" ham.", True), ("\nham\n", True), ("hamster", False), ("Ham", False), ("", False),
     ("a ham", False)]
)  # fmt: skip
def test_an_answer_begins_with_a_label_as_a_whole_word(text, begins):
    assert begins_with_one(text, {"ham", "spam"}) is begins
