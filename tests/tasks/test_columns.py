"""Which rows count, and which columns are label and fields, whatever the source calls them."""

from __future__ import annotations

import pytest

from merasteer.errors import BadTask
from merasteer.tasks import read_examples
from merasteer.types import DataSource, Task

LABELS = ("ham", "spam")


def task(source: DataSource, labels=LABELS, template="Is {text} spam?") -> Task:
    return Task("mine", labels, tuple((label,) for label in labels), template, data=source)


def read(rows, labels=LABELS, template="Is {text} spam?", **source):
    """(text, label's index) of all rows."""
    described = task(DataSource(source.pop("label", "label"), **source), labels, template)
    return [(one.fields["text"], one.label) for one in read_examples(described, rows)]


def rows(column: str, label: str, values=("ham", "spam", "ham")):
    return [{column: text, label: value} for text, value in zip("abc", values, strict=True)]


@pytest.mark.parametrize(
    ("column", "label"), [("sms", "class"), ("text", "class"), ("sms", "label"), ("text", "label")]
)
def test_a_mapped_column_is_used_and_else_the_one_with_the_plain_name(column, label):
    found = read(rows(column, label), label="class", fields={"text": "sms"})
    assert found == [("a", 0), ("b", 1), ("c", 0)]


def test_where_both_names_are_there_the_mapped_one_counts():
    both = [{"sms": s, "text": "no", "class": "spam", "label": "ham"} for s in "abc"]
    assert read(both, label="class", fields={"text": "sms"}) == [("a", 1), ("b", 1), ("c", 1)]


def test_an_absent_column_is_named_with_both_its_names():
    with pytest.raises(
        BadTask, match=r"row 1: no field 'text' for the template and no column 'sms', but \['body', 'lab"
    ):
        read(rows("body", "label"), fields={"text": "sms"})
    with pytest.raises(BadTask, match=r"row 1: no label column 'class', but \['kind', 'text'\]; set data.label"):
        read(rows("text", "kind"), label="class")


def test_no_prompt_shows_the_label():
    with pytest.raises(BadTask, match="field 'text' is read from the label column 'text'"):
        read(rows("body", "text"), label="text", fields={"text": "sms"})
    named = task(DataSource("answer", fields={"label": "sms"}), template="Is {label} spam?")
    with pytest.raises(BadTask, match="no label column 'answer'"):
        read_examples(named, rows("sms", "label"))


@pytest.mark.parametrize("values", [(0, 1, 0), ("0", "1", "0"), ("ham", 1, "HAM ")])
def test_numbers_are_labels_by_index_when_that_is_said(values):
    assert read(rows("text", "label", values), label_index=True) == [("a", 0), ("b", 1), ("c", 0)]
    with pytest.raises(BadTask, match="is not one of the labels ham, spam"):
        read(rows("text", "label", values))


@pytest.mark.parametrize("value", [2, -1, True, 1.0, None, "2", "-1", "\u00b2", "9" * 5000])
def test_what_is_no_index_is_refused(value):
    with pytest.raises(BadTask, match=r"row 2: label: .* is not one of the labels ham, spam") as caught:
        read(rows("text", "label", ("ham", value, "ham")), label_index=True)
    assert len(str(caught.value)) < 200


def test_a_label_that_is_a_number_itself_comes_before_the_index():
    assert read(rows("text", "label", ("1", "0", "1")), labels=("1", "0"), label_index=True)[0] == ("a", 0)


@pytest.mark.parametrize("values", [(0, 1, 0), ("0", "1", "0"), (" 0", "1 ", 0)])
def test_labels_that_are_numbers_may_be_written_as_numbers(values):
    assert read(rows("text", "label", values), labels=("0", "1")) == [("a", 0), ("b", 1), ("c", 0)]


def test_truth_values_are_labels_of_that_name():
    assert [label for _, label in read(rows("text", "label", (True, False, "TRUE")), labels=("true", "false"))] == [
        0,
        1,
        0,
    ]


def test_case_and_outer_space_of_a_label_count_only_where_labels_differ_by_them():
    assert [label for _, label in read(rows("text", "label", ("Ham", " SPAM\n", "ham")))] == [0, 1, 0]
    assert [label for _, label in read(rows("text", "label", ("us", "US", "us")), labels=("US", "us"))] == [1, 0, 1]
    with pytest.raises(BadTask, match="'Us' is not one of the labels US, us"):
        read(rows("text", "label", ("us", "Us", "us")), labels=("US", "us"))


def test_where_keeps_the_rows_with_a_wanted_value(tmp_path):
    file = tmp_path / "rows.csv"
    lines = ["a,ham,x,1", "b,eggs,y,1", "c,spam,X ,1", "d,spam,z,1", "e,ham,x,0", "f,ham,z,1"]
    file.write_text("text,label,kind,on\n" + "\n".join(lines))

    def texts(**where):
        found = read_examples(task(DataSource("label", path=file, where=where)))
        return [one.fields["text"] for one in found]

    assert texts(kind=("x", "z"), on=(1,)) == ["a", "c", "d", "f"]
    assert texts(kind=("z", "x")) == ["a", "c", "d", "e", "f"]
    with pytest.raises(BadTask, match=r"line 2: no column 'sort', but .*correct data.where"):
        texts(sort=("x",))
    with pytest.raises(BadTask, match=r"data.where: none of 6 rows has \{'kind': \('w',\)\}"):
        texts(kind=("w",))
