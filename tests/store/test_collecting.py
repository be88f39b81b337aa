"""What a collection takes and what it leaves: when in doubt an artifact stays."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mera_server.cli import main

from merasteer.errors import InvalidInput
from merasteer.store import collect, latest, ledger, scan, verdicts
from merasteer.store.durable import lock

HOUR = 3600.0


@pytest.fixture
def store(make: Any, tmp_path: Path) -> tuple[Path, list[str]]:
    """Five artifacts of one task, a day apart, the last published first of all; `latest` names the second newest."""
    folders = [make(seed).publish(tmp_path) for seed in range(5)]
    now = time.time()
    for days, folder in enumerate(reversed(folders)):
        moment = now - 24 * HOUR * (days + 0.5)
        for path in (folder / "manifest.json", folder):
            os.utime(path, (moment, moment))
    make(3).publish(tmp_path)
    return tmp_path, [folder.name for folder in folders]


def removed(found: Any) -> set[str]:
    return {verdict.path.name for verdict in found if verdict.removed}


@pytest.mark.parametrize(
    ("keep", "age", "gone"),
    [(3, 24.0, [0]), (2, 0.0, [0, 1]), (0, 0.0, [0, 1, 2, 4]), (0, 24.0, [0, 1, 2]), (0, 40.0, [0, 1, 2]), (0, 24.0 * 9, []), (9, 0.0, [])],
)  # fmt: skip
def test_the_default_the_newest_and_the_young_stay(
    store: tuple[Path, list[str]], keep: int, age: float, gone: list[int]
) -> None:
    folder, names = store
    expected = {names[i] for i in gone}
    assert removed(verdicts(folder, keep=keep, age=age)) == expected
    assert len(scan([folder])) == 5  # nothing happened yet
    assert removed(collect(folder, keep=keep, age=age)) == expected
    assert {entry.path.name for entry in scan([folder])} == set(names) - expected
    assert latest(folder, "owner--name", "spam") == names[3]
    assert [path.name for path in folder.iterdir()] == ["owner--name"]


def test_the_ledger_is_no_artifact_and_stays(store: tuple[Path, list[str]]) -> None:
    folder, names = store
    told = ledger.Test("ab" * 6, "gain", "cd" * 32, ("ef" * 8,), "run", "spam")
    entry = ledger.allot(folder, "owner--name", told, delta=0.05)
    assert removed(collect(folder, keep=0, age=0.0)) == set(names) - {names[3]}
    assert ledger.entries(folder) == [entry]
    assert [found.status for found in scan([folder])] == ["loaded"]


def test_what_cannot_be_judged_stays(store: tuple[Path, list[str]]) -> None:
    folder, names = store
    task = folder / "owner--name" / "spam"
    (task / names[0] / "probe.safetensors").unlink()  # a newer release might read what this one rejects
    found = verdicts(folder, keep=0, age=0.0)
    assert removed(found) == {names[1], names[2], names[4]}
    assert next(one.reason for one in found if one.path.name == names[0]).startswith("rejected: spam/")
    for text in ("0" * 12, "nonsense"):
        (task / "latest").write_text(text)
        assert removed(verdicts(folder, keep=0, age=0.0)) == set()
    (task / "latest").unlink()
    assert removed(verdicts(folder, keep=0, age=0.0)) == set()


def test_a_clock_that_jumped_back_takes_nothing(store: tuple[Path, list[str]]) -> None:
    folder, names = store
    for name in names:
        os.utime(folder / "owner--name" / "spam" / name, (time.time() + 99 * HOUR,) * 2)
    assert removed(verdicts(folder, keep=0, age=0.0)) == set()


def test_what_crashes_left_goes_and_what_lives_stays(store: tuple[Path, list[str]]) -> None:
    folder, _ = store
    old, living = ".publish-ffffffff-1-00000000", ".publish-ffffffff-2-00000000"
    for name in (old, living, ".work"):
        (folder / name).mkdir()
    os.utime(folder / old, (0, 0))
    assert removed(verdicts(folder)) >= {old}
    collect(folder)
    assert {path.name for path in folder.iterdir()} == {living, ".work", "owner--name"}


def test_a_publisher_and_a_collection_wait_for_each_other(
    store: tuple[Path, list[str]], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publishing an artifact that is there already, as the default, while a collection would take it: it is still there."""
    folder, names = store
    threads = [
        threading.Thread(target=lambda: collect(folder, keep=0, age=0.0)),
        threading.Thread(target=lambda: make(0).publish(folder)),
    ]
    with lock(folder, alone=True):
        for thread in threads:
            thread.start()
            thread.join(0.2)
            assert thread.is_alive()
    for thread in threads:
        thread.join(20)
    assert latest(folder, "owner--name", "spam") == names[0]
    assert names[0] in {entry.path.name for entry in scan([folder]) if entry.digest}


def test_a_file_system_without_locks_publishes_and_does_not_collect(
    store: tuple[Path, list[str]], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlocked(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unlocked)
    make(9).publish(store[0])
    with pytest.raises(InvalidInput, match=r"cannot be written .Operation not supported"):
        collect(store[0])
    assert len(scan([store[0]])) == 6


def test_on_the_command_line_nothing_goes_without_yes(
    store: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, names = store
    command = ["probes", "gc", "--store", str(folder), "--keep", "0", "--age", "0"]
    assert main(command) == 0
    found = capsys.readouterr()
    assert found.err == "nothing was removed: add --yes\n"
    assert found.out.count("would go") == 4
    assert len(scan([folder])) == 5
    assert main([*command, "--yes"]) == 0
    assert capsys.readouterr().out.count("removed") == 4
    assert [entry.path.name for entry in scan([folder])] == [names[3]]
    for wrong in (["--keep", "-1"], ["--age", "nan"], ["--store", "/absent"]):
        assert main(["probes", "gc", *wrong, *([] if "--store" in wrong else ["--store", str(folder)])]) == 2
        assert capsys.readouterr().err.count("\n") == 1
