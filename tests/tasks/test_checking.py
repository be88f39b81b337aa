"""What `check` finds in a task, with and without a tokenizer, and where a run would fail."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from merasteer.errors import BadSplits, BadTask
from merasteer.method.trie import begins_another, branches
from merasteer.tasks import check, load_task
from merasteer.tasks.checking import shown_text
from merasteer.types import DataSource, SplitSizes, Task

LABELS = ("ham", "spam")
TASK = Task("mine", LABELS, (("ham",), ("spam",)), "Is {text} spam?", chat=None, splits=SplitSizes(40, 20, 20))


@pytest.fixture
def task(tmp_path):
    """A task over rows written to a file; `rows` None gives 50 of each class in turns."""

    def make(rows=None, **changes) -> Task:
        file = tmp_path / "rows.jsonl"
        rows = [(f"row {n}", LABELS[n % 2]) for n in range(100)] if rows is None else rows
        file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        return replace(TASK, data=DataSource("label", path=file), **changes)

    return make


def lines(found, start: str) -> list[str]:
    return [line for line in found.lines if line.startswith(start)]


def test_rows_classes_and_splits_are_counted(task):
    rows = [(f"row {n}", LABELS[n % 4 == 0]) for n in range(100)]
    found = check(task([*rows, ("ROW 0", "spam"), ("row 1 ", "spam"), ("row 2", "ham")]))
    assert found.error is None
    assert found.prompter is None
    assert found.lines == (
        "rows: 103, 3 repeated, 1 of these with another label than the first, which counts",
        "classes: ham 75, spam 25",
        "train: 40 rows in a random order (ham 30, spam 10)",
        "calibration: 20 rows in a random order (ham 15, spam 5)",
        "test: 20 rows in a random order (ham 15, spam 5)",
    )
    assert found.splits is not None
    assert found.splits.skipped == 3


def test_notes_warnings_and_examples_are_told(task):
    drifting = [(f"row {n}", LABELS[n % 2 if n > 200 else n % 8 == 0]) for n in range(500)]
    ordered = SplitSizes(200, 100, 100, shuffle=False)
    found = check(task(drifting, notes=("a note",), template="{text} Spam? ", examples=2, splits=ordered))
    assert found.error is None
    assert found.lines[0] == "note: a note"
    assert found.lines[1].startswith("warning: prompt.template ends in white space; ")
    assert lines(found, "warning: splits: the classes lie unevenly in the file's order: ham is ")
    (shown,) = lines(found, "examples: 2 in front of every prompt, published with the result: ")
    assert shown.count("rows.jsonl: line ") == 2


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"data": None}, BadTask, "data: missing"),
        ({"splits": SplitSizes(90, 20, 20)}, BadSplits, "130 rows needed"),
        ({"labels": (*LABELS, "eggs"), "variants": (("ham",), ("spam",), ("eggs",))}, BadSplits, "no row of 'eggs'"),
        ({"examples": 60}, BadSplits, "prompt.examples: 60 rows are wanted"),
        ({"splits": SplitSizes(10, 10, 10)}, BadSplits, "splits.train: 10 rows are too few for a run; give 40 or more"),
    ],
)
def test_what_a_run_would_fail_with_is_found(task, changes, error, says):
    found = check(replace(task(), **changes), least_train=40)
    assert isinstance(found.error, error)
    assert says in str(found.error)
    assert "\n" not in str(found.error)


def test_what_was_found_before_the_error_is_kept(task):
    found = check(task([("a", "ham"), ("b", "spam")]))
    assert found.lines == ("rows: 2", "classes: ham 1, spam 1")
    assert "80 rows needed" in str(found.error)


def test_a_bad_row_and_an_empty_file_are_told(task, chatty):
    assert "line 2: label: 'eggs' is not one of the labels" in str(check(task([("a", "ham"), ("b", "eggs")])).error)
    found = check(task([("a", "ham"), ("b", "spam")]), chatty("chatml"), 100)
    assert "80 rows needed (40 train + 20 calibration + 20 test), 2 available" in str(found.error)
    assert "rows.jsonl: holds no rows" in str(check(task([])).error)


def test_a_delimiter_that_is_no_comma_is_told(task, tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text;label\n" + "".join(f"row {n}, as it is;{LABELS[n % 2]}\n" for n in range(100)))
    found = check(replace(task(), data=DataSource("label", path=file)))
    assert found.error is None
    assert lines(found, "note: ") == [f"note: {file}: columns are separated by semicolons, as its header shows"]


def test_one_prompt_is_shown_with_its_special_tokens(task, chatty):
    found = check(task(), chatty("chatml"), 1000)
    assert found.error is None
    assert found.prompter is not None
    at = next(i for i, line in enumerate(found.lines) if line.startswith("prompt: chat, "))
    assert found.lines[at].endswith("rows.jsonl: line 1)")
    assert found.lines[at + 1 : at + 4] == (
        "  | <|im_start|>user",
        "  | Is row 0 spam?<|im_end|>",
        "  | <|im_start|>assistant",
    )
    plain = check(task(), chatty(None), 1000)
    assert "  | <s>Is row 0 spam?" in plain.lines
    assert lines(plain, "prompt: plain, ")


@pytest.mark.parametrize(
    ("family", "why"),
    [("gemma", "the model's chat template takes no system turn"), (None, "this is no chat"), ("chatml", None)],
)
def test_a_system_text_that_goes_in_front_is_told(task, chatty, family, why):
    found = check(task(system="Be brief."), chatty(family), 1000)
    assert lines(found, "system:") == ([f"system: in front of the first message, because {why}"] if why else [])


def test_labels_are_shown_with_their_tokens_and_where_they_are_decided(task, chatty):
    variants = (("ham", " ham"), ("not ham", "nope"), ("nope!",))
    labels = ("ham", "no", "never")
    rows = [(f"row {n}", labels[n % 3]) for n in range(100)]
    found = check(task(rows, labels=labels, variants=variants), chatty("chatml", "not", "Ġham", "ham"), 1000)
    assert found.error is None
    at = found.lines.index("answer: one of the labels, chosen where the prompt ends")
    assert found.lines[at + 1 : at + 5] == (
        "  ham: ham | Ġham (decided at token 1)",
        "  no: not Ġham | no p e (decided at token 1, 4)",
        "  never: no p e ! (decided at token 1, 4)",
        "  behind no p e: ! or <|im_end|>",
    )


def test_a_free_answer_says_which_tokens_count(task, chatty):
    free = task(choose="free", position="exact", max_new_tokens=8)
    found = check(free, chatty(None, "ham", "spam"), 1000)
    assert "answer: free; the first of 8 tokens that is one of these is the answer" in found.lines
    assert "  ham: ham" in found.lines
    assert "none of 'spam' is a single token" in str(check(free, chatty(None, "ham"), 1000).error)


def test_rows_that_are_too_long_are_named(task, chatty):
    rows = [("x" * 90 if n in (2, 5) else f"row {n}", LABELS[n % 2]) for n in range(100)]
    rows[2] = ("x" * 91, "ham")
    stop = check(task(rows), chatty(None), 80)
    (told,) = lines(stop, "too long: 2 rows, for a context of 80 tokens: ")
    assert told.endswith("rows.jsonl: line 6")
    assert "line 3: prompt and answer exceed the model's context (and 1 more rows)" in str(stop.error)
    skip = check(task(rows, splits=replace(TASK.splits, too_long="skip")), chatty(None), 80)
    assert skip.error is None
    assert skip.splits is not None
    assert [where.rpartition(": ")[2] for where in skip.splits.too_long] == ["line 3", "line 6"]
    assert lines(check(task(), chatty(None), 80), "too long: no row, for a context of 80 tokens")
    many = check(task([("x" * (90 + n), LABELS[n % 2]) for n in range(100)]), chatty(None), 80)
    (told,) = lines(many, "too long: 100 rows")
    assert told.endswith(" and 95 more")


def test_a_template_that_refuses_is_an_error(task, chatty):
    assert "the model's chat template is broken" in str(check(task(), chatty("broken"), 1000).error)


@pytest.mark.parametrize(
    ("labels", "written"), [(("very good", "so so", "very bad"), str), ((1, 2, 3), str), ((1, 2, 3), "{} ".format)]
)
def test_a_sorted_csv_with_byte_order_marks_is_fit_for_a_run(tmp_path, chatty, labels, written):
    rows = "".join(f'"review {n}, of {label}",{written(label)}\r\n' for label in labels for n in range(40))
    (tmp_path / "rows.csv").write_text(f"\ufefftext,grade\r\n{rows}", encoding="utf-8", newline="")
    file = tmp_path / "mine.toml"
    file.write_text(
        f"\ufeffname = 'mine'\nlabels = {json.dumps(labels)}\n[prompt]\ntemplate = 'How is {{text}}?'\nchat = 'auto'\nexamples = 3\n"
        "[data]\npath = 'rows.csv'\nlabel = 'grade'\n[splits]\ntrain = 60\ncalibration = 24\ntest = 24\n",
        encoding="utf-8",
    )
    found = check(load_task(file), chatty("chatml"), 1000, least_train=40)
    assert found.error is None
    assert not lines(found, "warning")
    assert "train: 60 rows in a random order (" + ", ".join(f"{label} 20" for label in labels) + ")" in found.lines
    if "so so" in labels:  # "very good" and "very bad" part behind their first word
        assert any(
            line.endswith("(decided at token 1, 2, 3, 6, 7)") for line in found.lines if line.startswith("  very bad: ")
        )
    file.write_text(file.read_text() + "shuffle = false\n")
    assert "set shuffle = true under [splits]" in str(check(load_task(file)).error)


def test_no_row_moves_the_cursor():
    assert shown_text("a\x1b[2Jb\u200b\r\nπ") == "a\\x1b[2Jb\\u200b\\r\nπ"


# ------------------------------------------------------------------------------- where spellings branch


def test_branches_are_where_more_than_one_token_is_permitted():
    assert branches([(1,), (2,)], None) == {(): (1, 2)}
    assert branches([(1, 5), (1, 6, 7), (2, 8)], None) == {(): (1, 2), (1,): (5, 6)}
    assert branches([(1, 5), (1, 6)], None) == {(1,): (5, 6)}
    assert branches([(1,), (1, 6), (1, 6, 3)], 9) == {(1,): (6, 9), (1, 6): (3, 9)}


def test_a_beginning_is_found_wherever_it_stands():
    assert begins_another([(5,), (1, 2), (1, 2, 3)])
    assert begins_another([(1, 9), (1, 2), (1,)])
    assert not begins_another([(1, 2), (1, 3), (2,), (1, 2)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SmolLM2", "gemma", "Qwen"])
@pytest.mark.parametrize("built_in", ["sms_spam", "sentiment_analysis", "yes_no_question", "mmlu_high_school"])
def test_built_in_tasks_are_fit_for_real_models(real_data, real_tokenizer, name, built_in):
    (file,) = (real_data / built_in).glob(f"{built_in}.jsonl*")
    found = check(load_task(built_in, data=file), real_tokenizer(name), 8192)
    assert found.error is None
    assert not lines(found, "warning")
    assert found.prompter is not None
    assert found.prompter.task.chat is (name != "gemma")
    assert all("(decided at token 1" in line for line in found.lines if "(decided" in line)
    for example in found.splits.test[:50]:
        assert found.prompter.matches(found.prompter.text(example.fields))
