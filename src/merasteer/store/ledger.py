"""The ledger: which tests were made on which calibration rows, so that the k-th is made at the level of a k-th.

<store>/<slug>/<task>/ledger.jsonl      one JSON object a line, only ever appended, each fsynced before an outcome is computed

    test      what makes a test the same when it is resumed or repeated: a hash of everything that its outcome follows from
    kind      "gain", or "risk:r": each kind counts for itself
    model     the weights by meaning;   rows: content digests of the calibration rows
    attempt   1 + the distinct tests of this kind that any ledger or artifact of the store knows on any of these rows
    delta, level     asked for, and `method.levels.level_of(delta, attempt)`;   parts: tests inside that share the level
    what, task, time     for people;   chain: hash of the line before, so that a line that was changed or removed shows

A line that is cut short was never relied on (its writer died before the fsync): it is passed over. Whoever tunes on these rows needs fresh
ones: the levels hold for attempts that are chosen without their results here.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merasteer.errors import InvalidInput
from merasteer.method.levels import level_of
from merasteer.store.documents import canonical
from merasteer.store.durable import lock, sync

__all__ = ["FILE", "Entry", "Test", "allot", "entries"]

FILE = "ledger.jsonl"
_FIRST = "0" * 64
_RESTORE = "restore the file as it was, or calibrate on fresh rows in another store"


@dataclass(frozen=True)
class Test:
    """A test that is about to be made; see the fields of the ledger."""

    __test__ = False  # not a test class to pytest

    test: str
    kind: str
    model: str
    rows: tuple[str, ...]
    what: str
    task: str


@dataclass(frozen=True)
class Entry:
    """One line."""

    test: str
    kind: str
    model: str
    rows: tuple[str, ...]
    attempt: int
    delta: float
    level: float
    parts: int
    what: str
    task: str
    time: str
    chain: str


def allot(
    store: Path,
    slug: str,
    test: Test,
    *,
    delta: float,
    parts: int = 1,
    known: Iterable[tuple[str, tuple[str, ...]]] = (),
) -> Entry:
    """The entry of a test: the one that it has, or a new line, durable before this returns. Under a lock on the file.

    known: (model, rows) of tests that artifacts speak of and no ledger does, each counted once. Raises InvalidInput where the ledger cannot
    be written, or is not what was written: nothing may be tested then.
    """
    path = store / slug / test.task / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(store, alone=True), path.open("a+b") as file:
            own = list(_read(path))
            others = [one for other in sorted(store.glob(f"*/*/{FILE}")) if other != path for one in _read(other)]
            for one in (*own, *others):
                if (one.test, one.kind, one.model, set(one.rows)) == (test.test, test.kind, test.model, set(test.rows)):
                    return one
            entry = _next(test, [*own, *others], list(known), delta, parts, own[-1] if own else None)
            _append(file, path, entry)
            return entry
    except OSError as error:
        raise InvalidInput(
            f"ledger: {path} cannot be written ({error.strerror}); nothing is tested without its entry: give a store that can"
        ) from error


def entries(store: Path) -> list[Entry]:
    """All lines of all ledgers of a store, in order of file and line."""
    return [one for path in sorted(store.glob(f"*/*/{FILE}")) for one in _read(path)]


def _next(
    test: Test,
    entered: Sequence[Entry],
    known: Sequence[tuple[str, tuple[str, ...]]],
    delta: float,
    parts: int,
    last: Entry | None,
) -> Entry:
    rows = set(test.rows)
    made = {one.test for one in entered if (one.kind, one.model) == (test.kind, test.model) and rows & set(one.rows)}
    unentered = sum(model == test.model and bool(rows & set(tested)) for model, tested in known)
    attempt = 1 + len(made) + unentered
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    chain = _FIRST if last is None else _line_hash(last)
    return Entry(
        **asdict(test) | {"rows": test.rows},
        attempt=attempt,
        delta=delta,
        level=level_of(delta, attempt),
        parts=parts,
        time=now,
        chain=chain,
    )


def _append(file: Any, path: Path, entry: Entry) -> None:
    file.seek(0, os.SEEK_END)
    end = file.tell()
    if end:  # a line that was cut short is left behind, and ends here
        file.seek(end - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")
    file.write(canonical(asdict(entry) | {"rows": list(entry.rows)}) + b"\n")
    file.flush()
    os.fsync(file.fileno())
    sync(path.parent)


def _read(path: Path) -> Iterator[Entry]:
    """The lines, each proved to follow the one before. Raises InvalidInput, naming file and line."""
    before = _FIRST
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidInput(f"ledger: {path} cannot be read ({error.strerror}); {_RESTORE}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = _entry(json.loads(line))
        except (ValueError, TypeError, KeyError):
            if number == len(lines) or _follows(lines[number:], before):
                continue  # cut short: its writer died
            raise InvalidInput(f"ledger: {path}: line {number}: cannot be read; {_RESTORE}") from None
        if entry.chain != before or entry.level != level_of(entry.delta, entry.attempt):
            raise InvalidInput(f"ledger: {path}: line {number}: does not follow the line before; {_RESTORE}")
        before = _line_hash(entry)
        yield entry


def _follows(rest: Sequence[bytes], before: str) -> bool:
    """Whether the next line that can be read follows `before`: then what stands between was never an entry."""
    for line in rest:
        if line.strip():
            try:
                return _entry(json.loads(line)).chain == before
            except (ValueError, TypeError, KeyError):
                continue
    return True


def _entry(raw: Mapping[str, Any]) -> Entry:
    entry = Entry(**{**raw, "rows": tuple(raw["rows"])})
    texts = (entry.test, entry.kind, entry.model, entry.what, entry.task, entry.time, entry.chain, *entry.rows)
    if not all(isinstance(text, str) for text in texts) or not isinstance(entry.attempt, int):
        raise TypeError("an entry of wrong types")
    if not isinstance(entry.delta, float) or not isinstance(entry.parts, int):
        raise TypeError("an entry of wrong types")
    return entry


def _line_hash(entry: Entry) -> str:
    return hashlib.sha256(canonical(asdict(entry) | {"rows": list(entry.rows)})).hexdigest()
