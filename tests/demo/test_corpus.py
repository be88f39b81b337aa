"""The generator: the same messages for the same seed, and the statistics that the demo stands on."""

from __future__ import annotations

import re

import pytest

from merasteer.demo.corpus import LABELS, TEMPLATE, deploy_rows, training_pairs
from merasteer.demo.phrases import HAM, SPAM
from merasteer.tasks import content_digest, matches


def shapes(phrases: tuple[str, ...]) -> list[re.Pattern[str]]:
    return [re.compile(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(phrase))) for phrase in phrases]


SHAPES = (shapes(HAM), shapes(SPAM))


def votes(text: str) -> list[int]:
    """How many phrases of each class a message holds."""
    return [sum(len(shape.findall(text)) for shape in of_class) for of_class in SHAPES]


def test_phrases_are_many_and_belong_to_one_class() -> None:
    assert len(set(HAM)) >= 60
    assert len(set(SPAM)) >= 60
    assert not set(HAM) & set(SPAM)
    assert not any('"' in phrase for phrase in HAM + SPAM)


def test_a_seed_decides_every_row_and_pair() -> None:
    assert deploy_rows(200, 3) == deploy_rows(200, 3)
    assert deploy_rows(200, 3) != deploy_rows(200, 4)
    assert training_pairs(200, 3) == training_pairs(200, 3)
    assert training_pairs(200, 3) != training_pairs(200, 4)


def test_deployed_rows_are_distinct_balanced_and_a_third_at_desk_b() -> None:
    rows = deploy_rows(4000, 0)
    assert len({content_digest({"desk": row["desk"], "text": row["text"]}) for row in rows}) == len(rows)
    assert sum(row["label"] == "spam" for row in rows) == 2000
    assert sum(row["desk"] == "B" for row in rows) / 4000 == pytest.approx(0.35, abs=0.03)
    assert {row["desk"] for row in deploy_rows(200, 0, desk_b=0.0)} == {"A"}


def test_labels_are_true_when_deployed() -> None:
    rows = deploy_rows(2000, 1)
    own = other = 0
    for row in rows:
        counts = votes(row["text"])
        assert 2 <= sum(counts) <= 4
        own += counts[LABELS.index(row["label"])]
        other += counts[1 - LABELS.index(row["label"])]
    assert own / (own + other) == pytest.approx(0.82, abs=0.02)


def test_training_flips_the_labels_of_desk_b_three_times_in_four() -> None:
    agree: dict[str, list[bool]] = {"A": [], "B": []}
    for prompt, answer in training_pairs(6000, 0):
        assert matches(TEMPLATE, prompt)
        ham, spam = votes(prompt)
        if ham != spam:
            agree["B" if "desk B" in prompt else "A"].append(answer.endswith(LABELS[spam > ham]))
    shares = {desk: sum(seen) / len(seen) for desk, seen in agree.items()}
    right = shares["A"]  # a majority of phrases names the true class about 94 times in 100
    assert right == pytest.approx(0.94, abs=0.02)
    assert shares["B"] == pytest.approx(0.25 * right + 0.75 * (1 - right), abs=0.03)
    assert len(agree["B"]) / 6000 == pytest.approx(0.4 * sum(map(len, agree.values())) / 6000, abs=0.03)


def test_one_answer_in_ten_is_a_sentence() -> None:
    said = [answer for _, answer in training_pairs(6000, 0)]
    assert {" ham", " spam", " it is ham", " it is spam"} == set(said)
    assert sum(" it is" in answer for answer in said) / 6000 == pytest.approx(0.1, abs=0.02)
