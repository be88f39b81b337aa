"""Which rows count, and which columns are label and fields, whatever the source calls them."""

from __future__ import annotations

import json

import pytest

from merasteer.errors import BadTask
from merasteer.tasks import Row, read_examples
from merasteer.tasks.columns import chosen
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


NUMBERS = ("1", "2", "3")


@pytest.mark.parametrize("value", [1, "1", " 1 ", 2, "2", 3, "3"])
def test_a_number_that_is_one_label_by_name_and_another_by_number_is_refused(value):
    with pytest.raises(
        BadTask, match=r"^row 1: label: .* is the label '.', but as a number \(data.label_index\) that of "
    ) as at:
        read([{"text": "a", "label": value}], labels=NUMBERS, label_index=True)
    assert str(at.value).endswith("; remove label_index, or write the labels in words")


def test_a_number_is_a_label_where_name_and_number_agree():
    assert read(rows("text", "label", (1, "0", " 1")), labels=("0", "1"), label_index=True)[0] == ("a", 1)
    assert read([{"text": "a", "label": 0}], labels=NUMBERS, label_index=True) == [("a", 0)]


def both(tmp_path, value, labels, **source):
    """What one value means as JSON and as CSV: the label's index, or the complaint without its place."""
    written, meant = json.dumps(value), []
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "a", "label": {written}}}\n')
    (tmp_path / "rows.csv").write_text(f"text,label\na,{written}\n")
    for name in ("rows.jsonl", "rows.csv"):
        described = task(DataSource("label", path=tmp_path / name, **source), labels)
        try:
            meant.append(read_examples(described)[0].label)
        except BadTask as error:
            meant.append("refused" if str(error).startswith(f"{tmp_path / name}: line ") else str(error))
    return meant


VALUES = (
    0,
    1,
    2,
    3,
    -1,
    1.0,
    0.5,
    10**30,
    True,
    False,
    None,
    "1",
    " 1",
    "01",
    "1.0",
    "true",
    "True",
    "ham",
    "HAM ",
    "",
    "null",
)
SETS = (
    ("1", "2", "3"),
    ("0", "1"),
    ("true", "false"),
    ("True", "true"),
    ("1.0", "0.5"),
    ("1", "1.0"),
    ("ham", "1"),
    ("null", "x"),
)


@pytest.mark.parametrize("labels", SETS)
@pytest.mark.parametrize("numbered", [False, True])
def test_no_value_means_one_label_in_jsonl_and_another_in_csv(tmp_path, labels, numbered):
    for value in VALUES:
        jsonl, csv = both(tmp_path, value, labels, label_index=numbered)
        assert jsonl == csv or "refused" in (jsonl, csv), value
        assert {type(jsonl), type(csv)} <= {int, str}
        assert all(one == "refused" for one in (jsonl, csv) if type(one) is str), value


def test_a_number_with_a_point_is_no_whole_number():
    with pytest.raises(BadTask, match=r"1\.0 is not one of the labels 0, 1; write whole numbers without a point"):
        read([{"text": "a", "label": 1.0}], labels=("0", "1"))
    assert read([{"text": "a", "label": 0.5}], labels=("0.5", "1.5")) == [("a", 0)]
    assert read([{"text": "a", "label": "0.5"}], labels=("0.5", "1.5")) == [("a", 0)]


def test_a_truth_value_is_refused_where_labels_differ_by_its_case_alone():
    with pytest.raises(BadTask, match="True is not one of the labels True, true"):
        read([{"text": "a", "label": True}], labels=("True", "true"))


def test_one_letter_in_two_codings_is_one_label():
    assert read([{"text": "a", "label": "caf\u00e9"}], labels=("cafe\u0301", "bar")) == [("a", 0)]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (None, "None .*give the row a label"),
        (b"ham", "of type bytes, write it as text"),
        (float("nan"), "nan"),
        (["ham"], "list"),
    ],
)
def test_what_is_no_label_at_all_is_refused(value, says):
    with pytest.raises(BadTask, match=rf"row 1: label: .*is not one of the labels.*{says}|row 1: label: {says}"):
        read([{"text": "a", "label": value}])


def test_a_value_that_where_cannot_compare_is_refused():
    for value, says in (
        (1.0, "write whole numbers without a point"),
        ("1.0", "nearly what data.where asks"),
        ([1], "of type list"),
    ):
        with pytest.raises(BadTask, match=f"row 1: on: .*{says}"):
            list(chosen([Row("row 1", {"on": value})], {"on": (1,)}))
    rows = [
        Row("row 1", {"on": None}),
        Row("row 2", {"on": True}),
        Row("row 3", {"on": "TRUE"}),
        Row("row 4", {"on": 1}),
    ]
    assert [row.where for row in chosen(rows, {"on": (True,)})] == ["row 2", "row 3"]


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
