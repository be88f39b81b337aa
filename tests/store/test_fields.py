import pytest

from merasteer.errors import BadArtifact
from merasteer.store.fields import Fields, one_line, shown


def test_values_of_the_right_type_come_back() -> None:
    fields = Fields({"a": 1, "b": "x", "c": [1, 2], "d": 0.5, "e": True}, "root", "abcde")
    assert (fields.integer("a", 0), fields.text("b"), fields.integers("c", 0, 5)) == (1, "x", [1, 2])
    assert (fields.number("d"), fields.probability("d"), fields.flag("e")) == (0.5, 0.5, True)


@pytest.mark.parametrize(
    ("method", "value"),
    [("integer", True), ("integer", 1.0), ("integer", -1), ("number", "1"), ("number", False), ("number", 10**400),
     ("number", float("inf")), ("number", float("nan")), ("flag", 1), ("text", ""), ("text", 3), ("items", {}),
     ("texts", ["a", "a"]), ("probability", 1), ("table", [1]), ("table", {"k": 1})],
)  # fmt: skip
def test_a_wrong_value_names_its_field(method: str, value: object) -> None:
    fields = Fields({"key": value}, "root", ["key"])
    with pytest.raises(BadArtifact, match=r"^root\.key"):
        getattr(fields, method)("key", *([0] if method == "integer" else []))


def test_missing_unknown_and_no_object() -> None:
    with pytest.raises(BadArtifact, match=r"root\.b: is missing"):
        Fields({"a": 1}, "root", "ab")
    with pytest.raises(BadArtifact, match="unknown field 'b'"):
        Fields({"a": 1, "b": 1}, "root", "a")
    with pytest.raises(BadArtifact, match="the file: None is not a JSON object"):
        Fields(None, "", "a")


def test_messages_stay_short_and_printable() -> None:
    assert len(shown("x" * 1000)) == 60
    assert one_line("a\nb\x1b[0m\udcff  c") == "a b [0m c"
