"""Kill a publish at every durable operation: the store is as before or complete, never broken; and publishers do not meet."""

import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch

from merasteer.store import ModelIdentity, latest, scan

from ..forking import Forker


def _save(root: Path, i: int, parts: Any) -> None:
    (root / f"parts-{i}.json").write_text(json.dumps({"manifest": parts.manifest, "calibration": parts.calibration}))
    safetensors.torch.save_file(parts.tensors, root / f"parts-{i}.safetensors")


def _run(forker: Forker, root: Path, mode: str) -> Any:
    process = forker.start(Path(__file__).with_name("publisher.py"), [mode, str(root)], os.environ)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return json.loads(said)


def test_killed_at_any_point_the_store_is_as_before_or_complete(
    make: Any, tmp_path: Path, identity: ModelIdentity, forker: Forker
) -> None:
    before = make(0).publish(tmp_path / "before").name
    after = make(1).publish(tmp_path / "elsewhere").name
    _save(tmp_path, 1, make(1))
    found = _run(forker, tmp_path, "crash")
    assert found["exit"] == 0
    assert found["killed"] >= 11  # 4 fsyncs, rename, 3 fsyncs; fsync, replace, fsync of `latest`; and the mkdirs
    outcomes = []
    for call in range(found["killed"]):
        store = tmp_path / f"store-{call}"
        entries = scan([store], identity)
        assert {entry.status for entry in entries} == {"loaded"}, call
        outcome = ({entry.path.name for entry in entries} - {before} == {after}, latest(store, identity.slug, "spam"))
        assert outcome in ((False, before), (True, before), (True, after)), call
        outcomes.append(outcome)
        make(1).publish(store)
        assert {entry.path.name for entry in scan([store], identity)} == {before, after}
        assert latest(store, identity.slug, "spam") == after
        assert [path.name for path in store.iterdir()] == ["owner--name"], "leftovers"
    assert set(outcomes) == {(False, before), (True, before), (True, after)}  # all three were reached, in this order
    assert outcomes == sorted(outcomes, key=lambda outcome: (outcome[0], outcome[1] == after))


def test_processes_that_publish_at_once_lose_nothing(
    make: Any, tmp_path: Path, identity: ModelIdentity, forker: Forker
) -> None:
    names = {make(i).publish(tmp_path / "elsewhere").name for i in range(5)}
    for i in range(5):
        _save(tmp_path, i, make(i))
    assert _run(forker, tmp_path, "race") == [0, 0, 0, 0]
    entries = scan([tmp_path / "store"], identity)
    assert {entry.path.name for entry in entries if entry.status == "loaded"} == names
    assert len(entries) == 5
    assert latest(tmp_path / "store", identity.slug, "spam") in names
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["owner--name"]
