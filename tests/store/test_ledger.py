"""The ledger: attempts are counted before they are made, whatever happens to processes and files."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from merasteer.errors import InvalidInput
from merasteer.method.levels import level_of
from merasteer.store.ledger import FILE, Test, allot, entries

ROWS = tuple(f"{i:016x}" for i in range(20))
FIRST = Test("a" * 12, "gain", "m" * 64, ROWS, "run", "spam")


def made(store: Path, test: Test = FIRST, **given) -> tuple[int, float]:
    entry = allot(store, "tiny", test, delta=0.05, **given)
    return entry.attempt, entry.level


def test_attempts_on_the_same_rows_are_counted_and_the_levels_add_up_to_delta(tmp_path: Path) -> None:
    found = [made(tmp_path, replace(FIRST, test=str(i))) for i in range(5)]
    assert found == [(k, level_of(0.05, k)) for k in range(1, 6)]
    assert sum(level_of(0.05, k) for k in range(1, 100_000)) == pytest.approx(0.05, rel=1e-4)
    assert [one.attempt for one in entries(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_test_that_is_resumed_or_repeated_is_the_same(tmp_path: Path) -> None:
    first = made(tmp_path)
    made(tmp_path, replace(FIRST, test="b"))
    assert made(tmp_path) == first
    assert len(entries(tmp_path)) == 2


def test_what_counts_for_itself(tmp_path: Path) -> None:
    """Another kind, another model, fresh rows; a single row in common makes them the same rows, under whatever task."""
    made(tmp_path)
    fresh = tuple(f"{i:016x}" for i in range(100, 120))
    others = [{"kind": "risk:0.05"}, {"model": "n" * 64}, {"rows": fresh}]
    assert [made(tmp_path, replace(FIRST, test="b", **other))[0] for other in others] == [1, 1, 1]
    assert made(tmp_path, replace(FIRST, test="c", task="renamed", rows=(*fresh[1:], ROWS[3])))[0] == 3  # both sets
    assert made(tmp_path, replace(FIRST, test="d"))[0] == 3


def test_tests_that_only_artifacts_speak_of_are_counted(tmp_path: Path) -> None:
    known = [(FIRST.model, ROWS[:5]), (FIRST.model, ("f" * 16,)), ("n" * 64, ROWS)]
    assert made(tmp_path, known=known)[0] == 2


def _race(store: Path, number: int) -> int:
    return made(store, replace(FIRST, test=f"p{number}"))[0]


def test_processes_at_once_get_attempts_of_their_own(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.starmap(_race, [(tmp_path, i) for i in range(24)])
    assert sorted(found) == list(range(1, 25))
    assert len(entries(tmp_path)) == 24


def test_a_line_that_was_cut_short_was_never_an_entry(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / "tiny" / "spam" / FILE
    whole = path.read_bytes()
    made(tmp_path, replace(FIRST, test="b"))
    second = path.read_bytes()[len(whole) :]
    for cut in (1, len(second) // 2, len(second) - 2):
        path.write_bytes(whole + second[:cut])
        assert made(tmp_path, replace(FIRST, test="c"))[0] == 2
        assert [one.test for one in entries(tmp_path)] == [FIRST.test, "c"]


@pytest.mark.parametrize("change", ["level", "attempt", "removed", "swapped", "rows", "text"])
def test_a_ledger_that_was_edited_is_refused_by_line(tmp_path: Path, change: str) -> None:
    for i in range(3):
        made(tmp_path, replace(FIRST, test=str(i)))
    path = tmp_path / "tiny" / "spam" / FILE
    lines = path.read_text().splitlines()
    raw = json.loads(lines[1])
    edits = {"level": {"level": 0.05}, "attempt": {"attempt": 1}, "rows": {"rows": ["x"]}}
    if change in edits:
        lines[1] = json.dumps(raw | edits[change])
    elif change == "removed":
        del lines[0]
    elif change == "swapped":
        lines[0], lines[1] = lines[1], lines[0]
    else:
        lines[0] = "nonsense"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InvalidInput, match=r"ledger: .*line \d: .*fresh rows"):
        made(tmp_path, replace(FIRST, test="new"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_nothing_is_tested_where_no_entry_can_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InvalidInput, match="cannot be written"):
        made(tmp_path)


def test_nothing_is_tested_where_the_ledger_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "tiny" / "spam" / FILE).mkdir(parents=True)
    with pytest.raises(InvalidInput, match="cannot be written"):
        made(tmp_path)


def test_levels_need_a_delta_and_an_attempt() -> None:
    for delta, attempt in ((0.0, 1), (1.0, 1), (float("nan"), 1), (0.05, 0)):
        with pytest.raises(InvalidInput):
            level_of(delta, attempt)
