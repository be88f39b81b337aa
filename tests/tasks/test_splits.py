"""Splits share no content, are filled in order, and say how many rows are missing."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from merasteer.errors import BadSplits, BadTask
from merasteer.tasks import (
    check_disjoint,
    content_digest,
    draw_examples,
    load_task,
    make_splits,
    read_examples,
    unevenness,
)
from merasteer.tasks.drawing import apportion
from merasteer.types import DataSource, SplitSizes, Task

LABELS = ("ham", "spam")
TASK = Task(
    "spam", ("ham", "spam"), (("ham",), ("spam",)), "Is {text} spam?", splits=SplitSizes(4, 2, 2, shuffle=False)
)


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
    example = read_examples(TASK, [*rows(*"abcdefg"), {"text": "h", "label": "spam", "id": 1}])[-1]
    assert (example.prompt, example.label, example.fields) == ("Is h spam?", 1, {"text": "h"})
    assert example.where == "row 8"
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
    both = [{"text": "a", "label": "spam"}, *rows("A"), *mixed(10)]
    splits = make_splits(TASK, both)
    assert (splits.train[0].label, splits.skipped) == (1, 1)


def mixed(*counts: int, blocks: bool = False, labels: tuple[str, ...] = LABELS) -> list[dict[str, object]]:
    """So many distinct rows of each class (one number: of both), in turns or class after class."""
    each = counts if len(counts) > 1 else counts * 2
    found = [(n, c) for c, count in enumerate(each) for n in range(count)]
    return [{"text": f"{labels[c]} {n}", "label": labels[c]} for n, c in (found if blocks else sorted(found))]


def shares(splits, classes: int = 2) -> list[list[int]]:
    """Rows per class of each split."""
    parts = (splits.train, splits.calibration, splits.test)
    return [[Counter(one.label for one in part)[c] for c in range(classes)] for part in parts]


SHUFFLED = replace(TASK, splits=SplitSizes(40, 20, 20))


def test_shuffling_is_seeded():
    first = make_splits(SHUFFLED, mixed(60))
    assert first == make_splits(SHUFFLED, mixed(60))
    other = make_splits(replace(SHUFFLED, splits=replace(SHUFFLED.splits, seed=1)), mixed(60))
    assert {one.digest for one in first.test} != {one.digest for one in other.test}
    assert texts(first.train) != sorted(texts(first.train), key=lambda text: int(text.split()[1]))


@pytest.mark.parametrize("seed", range(5))
def test_each_shuffled_split_has_the_classes_in_the_files_proportions(seed):
    labels = ("ham", "spam", "not sure")
    task = replace(SHUFFLED, labels=labels, splits=SplitSizes(50, 20, 10, seed=seed))
    splits = make_splits(task, mixed(70, 30, 10, blocks=True, labels=labels))
    assert shares(splits, 3) == [[32, 14, 4], [13, 5, 2], [6, 3, 1]]
    check_disjoint(splits.digests)


def test_a_shuffled_order_is_random_within_a_split_too():
    splits = make_splits(replace(SHUFFLED, splits=SplitSizes(200, 20, 20)), mixed(200, blocks=True))
    first_half = sum(one.label for one in splits.train[:100])
    assert 30 < first_half < 70


@pytest.mark.parametrize("rare", [3, 4, 5, 9])
def test_a_class_of_three_rows_is_in_every_shuffled_split(rare):
    for seed in range(5):
        sizes = SplitSizes(40, 20, 20, seed=seed)
        found = shares(make_splits(replace(SHUFFLED, splits=sizes), mixed(100, rare)))
        assert all(part[1] >= 1 for part in found), found
        assert [sum(part) for part in found] == [40, 20, 20]


@pytest.mark.parametrize("counts", [(40, 40), (77, 3), (3, 77)])
def test_a_file_that_is_used_up_to_its_last_row_is_split(counts):
    splits = make_splits(SHUFFLED, mixed(*counts))
    assert [sum(column) for column in zip(*shares(splits), strict=True)] == list(counts)


def test_shares_agree_with_a_plain_largest_remainder_where_no_bound_acts():
    rng = random.Random(0)
    for _ in range(300):
        counts = {key: rng.randint(50, 500) for key in range(rng.randint(2, 6))}
        total = sum(counts.values())
        size = rng.randint(20, total // 2)
        exact = {key: size * count / total for key, count in counts.items()}
        plain = {key: int(value) for key, value in exact.items()}
        for key in sorted(exact, key=lambda key: plain[key] - exact[key])[: size - sum(plain.values())]:
            plain[key] += 1
        assert apportion(counts, size, dict.fromkeys(counts, 1), counts) == plain


@pytest.mark.parametrize(
    ("rows_", "changes", "says"),
    [
        (mixed(60, blocks=True), {"shuffle": False},
         "splits.train: no row of 'spam' among 40 (rows here of those in the file: ham 40 of 60, spam 0 of 60); set shuffle = true"),
        (mixed(100, 2), {}, "splits.calibration: no row of 'spam' among 20 (rows here of those in the file: ham 20 of 100, spam 0 of 2); "
         "add rows of it (3 at least, one for each split), or remove the label"),
        (mixed(100, 20), {"test": 1}, "splits.test: no row of 'spam' among 1 "),
        (mixed(100, 20), {"test": 1}, "; enlarge this split"),
    ],
    ids=["blocks", "two rows", "a split too small", "its remedy"],
)  # fmt: skip
def test_a_split_without_a_class_is_refused_with_counts_and_a_remedy(rows_, changes, says):
    task = replace(SHUFFLED, splits=replace(SHUFFLED.splits, **changes))
    with pytest.raises(BadSplits) as caught:
        make_splits(task, rows_)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_label_without_rows_is_refused_unless_all_rows_are_of_one_class():
    three = replace(SHUFFLED, labels=(*LABELS, "eggs"))
    with pytest.raises(BadSplits, match=r"no row of 'eggs' among 40 .*; remove the label, or add rows of it"):
        make_splits(three, mixed(60))
    assert shares(make_splits(SHUFFLED, mixed(90, 0))) == [[40, 0], [20, 0], [20, 0]]


# ---------------------------------------------------------------------------------------- uneven classes


def test_uneven_classes_are_told_and_chance_is_not():
    ordered = replace(SHUFFLED, splits=SplitSizes(200, 100, 100, shuffle=False))
    drifting = [{"text": str(n), "label": LABELS[n % 10 == 0 or (n > 200 and n % 2 == 0)]} for n in range(400)]
    told = unevenness(make_splits(ordered, drifting), LABELS)
    assert told is not None
    assert "ham is 90% of train, 50% of calibration, 50% of test; set shuffle = true under [splits]" in told
    assert unevenness(make_splits(SHUFFLED, drifting), LABELS) is None
    rng = random.Random(0)
    for trial in range(200):
        chance = [{"text": f"{trial} {n}", "label": LABELS[rng.random() < 0.1 or n % 100 == 0]} for n in range(400)]
        assert unevenness(make_splits(ordered, chance), LABELS) is None


def test_rare_classes_count_together():
    labels = (*LABELS, "a", "b", "c")
    task = replace(SHUFFLED, labels=labels, splits=SplitSizes(300, 100, 100, shuffle=False))
    where = {0: "a", 1: "b", 2: "c", 300: "a", 301: "b", 302: "c", 400: "a", 401: "b", 402: "c"}
    even = [{"text": str(n), "label": where.get(n, LABELS[n % 2])} for n in range(500)]
    assert unevenness(make_splits(task, even), labels) is None
    crowded = [{**row, "label": labels[2 + n % 3]} if n >= 450 else row for n, row in enumerate(even)]
    assert unevenness(make_splits(task, crowded), labels) is not None


def test_one_class_is_not_uneven():
    assert unevenness(make_splits(SHUFFLED, mixed(90, 0)), LABELS) is None


# ------------------------------------------------------------------------------------- shown and too long


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("wanted", [1, 4, 5])
def test_examples_are_balanced_and_in_no_split(wanted, shuffle):
    task = replace(SHUFFLED, examples=wanted, splits=replace(SHUFFLED.splits, shuffle=shuffle))
    splits = make_splits(task, mixed(90, 60))
    per_class = Counter(one.label for one in splits.examples)
    assert sum(per_class.values()) == wanted
    assert max(per_class[0], per_class[1]) - min(per_class[0], per_class[1]) == wanted % 2
    check_disjoint({**splits.digests, "examples": [one.digest for one in splits.examples]})
    assert splits.examples == draw_examples(task, read_examples(task, mixed(90, 60)))
    other = replace(task, splits=replace(task.splits, seed=1))
    assert draw_examples(other, read_examples(task, mixed(90, 60))) != splits.examples


def test_examples_leave_every_split_a_row_of_a_rare_class():
    splits = make_splits(replace(SHUFFLED, examples=6), mixed(90, 4))
    assert Counter(one.label for one in splits.examples) == {0: 5, 1: 1}
    assert [part[1] for part in shares(splits)] == [1, 1, 1]


def test_long_rows_are_shown_last():
    rows_ = [{"text": f"{n} " + "word " * (n % 2) * 50, "label": LABELS[n // 100]} for n in range(200)]
    shown = draw_examples(replace(SHUFFLED, examples=10), read_examples(SHUFFLED, rows_))
    assert all(len(one.prompt) < 50 for one in shown)


def test_too_few_rows_for_examples_say_so():
    with pytest.raises(
        BadSplits,
        match=r"prompt.examples: 4 rows are wanted outside the splits, which take 40 \+ 20 \+ 20 of 82; lower",
    ):
        make_splits(replace(SHUFFLED, examples=4), mixed(41))
    with pytest.raises(BadSplits, match=r"prompt.examples: 200 rows are wanted outside"):
        make_splits(replace(SHUFFLED, examples=200), mixed(60))


def short(example) -> bool:
    return len(example.fields["text"]) < 20


def test_a_row_that_is_too_long_is_an_error_with_its_file_and_line(tmp_path):
    file = tmp_path / "rows.csv"
    lines = [f"{row['text']},{row['label']}" for row in mixed(60)]
    lines[100] = "x" * 20 + ",ham"
    lines[110] = "y" * 20 + ",ham"
    file.write_text("text,label\n" + "\n".join(lines))
    task = replace(SHUFFLED, data=DataSource("label", path=file))
    with pytest.raises(BadTask) as caught:
        make_splits(task, fits=short)
    assert str(caught.value).startswith(
        f"{file}: line 102: prompt and answer exceed the model's context (and 1 more rows); "
    )
    assert 'set too_long = "skip" under [splits]' in str(caught.value)
    splits = make_splits(replace(task, splits=replace(task.splits, too_long="skip")), fits=short)
    assert splits.too_long == (f"{file}: line 102", f"{file}: line 112")
    assert [sum(part) for part in shares(splits)] == [40, 20, 20]
    assert make_splits(task).too_long == ()


def test_what_is_left_of_the_long_rows_must_fill_the_splits():
    task = replace(SHUFFLED, splits=replace(SHUFFLED.splits, too_long="skip"))
    rows_ = mixed(41)
    for row in rows_[:5]:
        row["text"] = "x" * 20 + str(row["text"])
    with pytest.raises(BadSplits, match=r"80 rows needed .*, 77 available \(0 repeats skipped, 5 too long\); lower"):
        make_splits(task, rows_, fits=short)


def test_a_sorted_csv_with_a_mark_and_two_word_labels_is_split(tmp_path):
    labels = ("very good", "so so", "very bad")
    file = tmp_path / "rows.csv"
    lines = [f"review {label} {n},{label}" for label in labels for n in range(40)]
    file.write_text("\ufefftext,label\n" + "\n".join(lines), encoding="utf-8")
    task = replace(SHUFFLED, labels=labels, data=DataSource("label", path=file))
    assert shares(make_splits(task), 3) == [[14, 13, 13], [7, 7, 6], [7, 7, 6]]
    with pytest.raises(BadSplits, match=r"splits.train: no row of 'so so'.*set shuffle = true"):
        make_splits(replace(task, splits=replace(task.splits, shuffle=False)))


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
    task = replace(TASK, template="{question} {choices}", splits=SplitSizes(1, 1, 1, shuffle=False))
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
