"""Words and characters alone: what they tell, and what they cannot."""

from __future__ import annotations

import random

import numpy as np

from merasteer.pipeline import text_classifier
from merasteer.pipeline.text_classifier import text_classifier_answers

WORDS = {0: ["fine", "good", "lovely"], 1: ["bad", "poor", "dull"], 2: ["round", "square", "flat"]}


def rows(n: int, classes: int, seed: int) -> tuple[list[str], list[int]]:
    rng = random.Random(seed)
    labels = [rng.randrange(classes) for _ in range(n)]
    filler = ["the", "film", "was", "it", "so", "and"]
    return [" ".join([*rng.choices(filler, k=6), rng.choice(WORDS[label])]) for label in labels], labels


def test_words_that_tell_the_class_are_found() -> None:
    for classes in (2, 3):
        (train, y), (test, wanted) = rows(120, classes, 0), rows(60, classes, 1)
        assert (text_classifier_answers(train, y, test) == wanted).mean() == 1.0


def test_parts_of_words_tell_what_whole_ones_do_not() -> None:
    train = [f"{word}{i}" for i in range(40) for word in ("unhappy", "content")]
    test = [f"{word}{i}" for i in range(900, 920) for word in ("unhappy", "content")]
    answers = text_classifier_answers(train, [0, 1] * 40, test)
    assert answers.tolist() == [0, 1] * 20


def test_noise_is_not_told_and_one_class_alone_is_always_answered() -> None:
    (train, _), (test, _) = rows(200, 2, 0), rows(200, 2, 1)
    rng = np.random.default_rng(0)
    answers = text_classifier_answers(train, rng.integers(0, 2, 200).tolist(), test)
    assert 0.35 < (answers == rng.integers(0, 2, 200)).mean() < 0.65
    assert text_classifier_answers(train[:9], [1] * 9, test).tolist() == [1] * 200


def test_equal_seeds_give_equal_answers_and_rows_are_bounded(monkeypatch) -> None:
    (train, y), (test, _) = rows(200, 3, 0), rows(50, 3, 1)
    monkeypatch.setattr(text_classifier, "MOST", 30)
    first = [text_classifier_answers(train, y, test, seed=seed).tolist() for seed in (1, 1, 2)]
    assert first[0] == first[1]
    junk = [text if kept else "the film" for text, kept in zip(train, used(200, 1), strict=True)]
    assert text_classifier_answers(junk, y, test, seed=1).tolist() == first[0]


def used(n: int, seed: int) -> list[bool]:
    kept = set(np.random.default_rng(seed).permutation(n)[:30].tolist())
    return [i in kept for i in range(n)]
