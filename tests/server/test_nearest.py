"""What was probably meant, by the number of typing mistakes."""

from __future__ import annotations

import pytest
from mera_server.nearest import _mistakes, meant, nearest


@pytest.mark.parametrize(
    ("one", "other", "mistakes"),
    [("", "", 0), ("a", "", 1), ("port", "port", 0), ("prot", "port", 1), ("kitten", "sitting", 3), ("ab", "ba", 1), ("abc", "ca", 3)],
)  # fmt: skip
def test_mistakes_are_counted_both_ways(one: str, other: str, mistakes: int) -> None:
    assert _mistakes(one, other) == _mistakes(other, one) == mistakes


def test_short_names_bear_one_mistake_and_long_ones_two() -> None:
    known = ["port", "host", "keys_file", "max_waiting"]
    assert [nearest(name, known) for name in ("prt", "prrt", "poort", "kyes_fil", "max_witting", "nothing")] == [
        "port", "port", "port", "keys_file", "max_waiting", None,
    ]  # fmt: skip
    assert nearest("x", []) is None
    assert (meant("prt", known), meant("nothing", known)) == (" (did you mean port?)", "")
