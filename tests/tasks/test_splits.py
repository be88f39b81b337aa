"""Splits share no content, are filled in order, and say how many rows are missing."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from merasteer.errors import BadSplits, BadTask
from merasteer.tasks import check_disjoint, content_digest, load_task, make_splits
from merasteer.types import DataSource, SplitSizes, Task

TASK = Task("spam", ("ham", "spam"), (("ham",), ("spam",)), "Is {text} spam?", splits=SplitSizes(4, 2, 2))


def rows(*texts: str) -> list[dict[str, object]]:
    return [{"id": number, "text": text, "label": "ham"} for number, text in enumerate(texts)]


def texts(examples) -> list[str]:
    return [example.fields["text"] for example in examples]


def test_splits_are_filled_in_order_past_repeats():
    splits = make_splits(TASK, rows("a", "b", "A", "c", "d", "e", "b ", "f", "g", "h", "i", "a"))
    assert texts(splits.train) == ["a", "b", "c", "d"]
    assert texts(splits.calibration) == ["e", "f"]
    assert texts(splits.test) == ["g", "h"]
    assert splits.skipped == 3
    check_disjoint(splits.digests)


def test_an_example_holds_prompt_label_and_the_template_fields_only():
    example = make_splits(TASK, [*rows(*"abcdefg"), {"text": "h", "label": "spam", "id": 1}]).test[-1]
    assert (example.prompt, example.label, example.fields) == ("Is h spam?", 1, {"text": "h"})
    assert example.digest == content_digest({"text": "h"})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("Straße", "STRASSE"),
        ("win  CASH\n now", " win cash\tnow "),
        ("a\u00a0b\u2003c", "a b c"),
        ("\u01f0", "J\u030c"),  # folding decomposes the first, NFC before folding leaves the second apart
        ("Σίσυφος", "ΣΊΣΥΦΟΣ"),
    ],
)
def test_contents_equal_but_for_form_case_and_space_are_one(one, other):
    assert content_digest({"text": one}) == content_digest({"text": other})
    splits = make_splits(TASK, rows(*"bcdefgh", one, other))
    assert splits.skipped == 1
    assert texts(splits.test)[-1] == one


def test_digests_tell_fields_and_options_apart():
    contents = [{"a": "x y", "b": ""}, {"a": "x", "b": "y"}, {"a": ["x", "y"], "b": ""}, {"a": ["xy"], "b": ""}]
    digests = {content_digest(fields) for fields in contents}
    assert len(digests) == 4
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)
    assert content_digest({"b": "1", "a": "2"}) == content_digest({"a": "2", "b": "1"})


def test_a_repeat_with_another_label_is_skipped_too():
    splits = make_splits(TASK, [{"text": "a", "label": "spam"}, *rows(*"Abcdefgh")])
    assert (splits.train[0].label, splits.skipped) == (1, 1)


def test_shuffling_is_seeded_and_comes_before_filling():
    numbers = [str(number) for number in range(20)]
    task = replace(TASK, splits=SplitSizes(4, 2, 2, shuffle=True, seed=5))
    expected = numbers.copy()
    random.Random(5).shuffle(expected)
    splits = make_splits(task, rows(*numbers))
    assert texts(splits.train + splits.calibration + splits.test) == expected[:8]
    assert splits == make_splits(task, rows(*numbers))


def test_too_few_distinct_rows_says_needed_and_available():
    with pytest.raises(
        BadSplits, match=r"8 rows needed \(4 train \+ 2 calibration \+ 2 test\), 7 available \(2 repeats"
    ):
        make_splits(TASK, rows(*"abcdefgAB"))


@pytest.mark.parametrize("name", ["train", "calibration", "test"])
@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_split_is_refused(name, size):
    with pytest.raises(BadSplits, match=f"splits.{name}: {size} rows is an empty split"):
        make_splits(replace(TASK, splits=replace(TASK.splits, **{name: size})), rows(*"abcdefgh"))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a", "label": "eggs"}, "row 9: label: 'eggs' is not one of the labels ham, spam"),
        ({"text": "a", "label": 1}, "row 9: label: 1 is not one of the labels"),
        ({"text": "a", "label": ["ham"]}, "row 9: label: ['ham'] is not one of the labels"),
        ({"text": "a", "label": None}, "row 9: label: None is not one of the labels"),
        ({"text": "a"}, "row 9: no label column 'label', but ['text']; set data.label"),
        ({"sms": "a", "label": "ham"}, "row 9: no field 'text' for the template, but ['label', 'sms']"),
        ({"text": 3, "label": "ham"}, "row 9: field 'text': is of type int"),
        ({"text": "\ud800", "label": "ham"}, "row 9: field 'text': holds half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_even_beyond_the_last_one_needed(row, says):
    with pytest.raises(BadTask) as caught:
        make_splits(TASK, [*rows(*"abcdefgh"), row])
    assert says in str(caught.value)


def test_a_bad_row_of_a_file_is_named_by_its_line(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,class\na,ham\nb,eggs\n")
    with pytest.raises(BadTask, match="line 3: class: 'eggs' is not one of the labels"):
        make_splits(replace(TASK, data=DataSource("class", path=file)))


def test_a_task_without_data_says_what_to_add():
    with pytest.raises(BadTask, match=r"data: missing; add \[data\]"):
        make_splits(TASK)


def test_options_are_content():
    task = replace(TASK, template="{question} {choices}", splits=SplitSizes(1, 1, 1))
    many = [{"question": "?", "choices": list(options), "label": "ham"} for options in ("ab", "ba", "AB", "ac")]
    splits = make_splits(task, many)
    assert splits.skipped == 1
    assert [split[0].prompt for split in (splits.train, splits.test)] == ["? A. a\nB. b", "? A. a\nB. c"]


def test_a_shared_digest_is_refused():
    check_disjoint({"train": ["a", "a"], "calibration": ["b"], "test": []})
    with pytest.raises(BadSplits, match="train and test share the content b"):
        check_disjoint({"train": ["a", "b"], "calibration": ["c"], "test": ["d", "b"]})


def test_the_real_messages_split_without_overlap(real_data):
    task = load_task("sms_spam", data=real_data / "sms_spam" / "sms_spam.jsonl")
    splits = make_splits(task)
    assert (len(splits.train), len(splits.calibration), len(splits.test)) == (3000, 250, 250)
    assert 5574 - splits.skipped == 5159
    check_disjoint(splits.digests)
    assert len({digest for split in splits.digests.values() for digest in split}) == 3500
    assert Counter(example.label for example in splits.train)[0] > 2500
