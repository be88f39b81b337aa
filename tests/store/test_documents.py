import pytest

from merasteer.errors import BadArtifact
from merasteer.store.documents import canonical, dump, parse


def test_canonical_is_sorted_compact_utf8() -> None:
    assert canonical({"b": [1, 2.5], "a": "σ"}) == '{"a":"σ","b":[1,2.5]}'.encode()


def test_what_is_dumped_parses_to_an_equal_value() -> None:
    value = {"b": [1, 2.5, None, True], "a": {"é": 1e-300}}
    assert parse(dump(value)) == value
    assert dump({"a": 1, "b": 2}) == dump({"b": 2, "a": 1})


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"\xff\xfe{}", b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 1}', b'["\\ud800"]',
     b"[" * 100_000, b"9" * 5000],
)  # fmt: skip
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    with pytest.raises(BadArtifact):
        parse(data)


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": object()}, {("a", 1): 1}])
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(BadArtifact, match="not plain JSON"):
        canonical(value)
