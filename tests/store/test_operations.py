"""The store while others write to it, after they were killed, and on a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from merasteer.errors import InvalidInput
from merasteer.store import ModelIdentity, latest, scan

from ..forking import Forker

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # forking is safe
FULL = re.compile(
    r"store: \S+ cannot be written \([^)]+\); free some space \(mera probes gc\), or give another folder\n"
)
Torture = Callable[..., Any]


def ended(process: Any) -> Any:
    """What a process that went well has printed."""
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(said)


@pytest.fixture
def torture(make: Any, identity: ModelIdentity, tmp_path: Path, forker: Forker) -> Torture:
    """Runs torture.py in the test's folder, or in one that `before` makes a command for."""

    def run(mode: str, *more: str, root: Path = tmp_path, before: tuple[str, ...] = (), **environment: str) -> Any:
        for folder in {root, tmp_path}:
            folder.mkdir(exist_ok=True)
        parts = make(0)
        facts = {"manifest": parts.manifest, "calibration": parts.calibration}
        (root / "parts-0.json").write_text(json.dumps(facts))
        (root / "identity.json").write_text(json.dumps(asdict(identity)))
        safetensors.torch.save_file(parts.tensors, root / "parts-0.safetensors")
        script, given = Path(__file__).with_name("torture.py"), {**os.environ, **environment}
        if not before:
            return ended(forker.start(script, [mode, str(root), *more], given))
        command = [*before, sys.executable, str(script), mode, str(root), *more]
        return ended(subprocess.Popen(command, env=given | ONE_THREAD, stdout=-1, stderr=-1, text=True))

    return run


def test_readers_see_a_complete_store_while_two_processes_publish(torture: Torture, make: Any, tmp_path: Path) -> None:
    found = torture("crowd")
    assert found["codes"] == [0] * 5
    for looks, flaws, seen in found["readers"]:
        assert flaws == []
        assert looks > 5
        assert seen > 1
    expected = set()
    for seed in range(51):
        parts = make(0)
        parts.manifest["seeds"] = {"fit": seed}
        expected.add(parts.publish(tmp_path / "elsewhere").name)
    assert set(found["names"]) == expected  # nothing was lost, nothing was made up
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["owner--name"]


@pytest.mark.parametrize("times", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_times_the_store_always_loads(torture: Torture, times: int) -> None:
    found = torture("kill", str(times))
    assert found["flaws"] == []
    assert found["inside"] > times / 4  # the kills fell into operations, not between them
    assert found["left"] == []


def test_killed_at_any_point_a_collection_takes_whole_artifacts_only(torture: Torture) -> None:
    found = torture("collect")
    assert found["exit"] == 0
    counts = [count for count, _, _ in found["outcomes"]]
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == {3, 2, 1}
    assert all(default and flaws == [] for _, default, flaws in found["outcomes"])


def test_a_file_that_may_not_grow_is_one_line_and_leaves_nothing(torture: Torture) -> None:
    for limit, code, said, left in torture("full"):
        assert (code, left) == (0, []), limit
        assert FULL.fullmatch(said), said


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(torture: Torture, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=128k none {small}"
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-rm", "sh", "-c", mount], check=False, capture_output=True).returncode:
        pytest.skip("no name space of our own to mount a small disk in")
    copy = f'cp -r {small} {tmp_path}/kept && {mount} && cp -r {tmp_path}/kept/. {small} && exec "$@"'
    before = (unshare, "-rm", "sh", "-c", copy, "sh")
    [[_, code, said, left]] = torture("full", root=small, before=before, FILL="1")
    assert (code, left) == (0, [])
    assert FULL.fullmatch(said), said
    assert "No space left on device" in said


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_wherever_the_disk_fails_the_store_is_as_before_or_complete(
    make: Any, tmp_path: Path, identity: ModelIdentity, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before, after = make(0).publish(tmp_path).name, make(1).publish(tmp_path / "elsewhere").name
    shutil.rmtree(tmp_path / "elsewhere")
    originals = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}
    for call in range(100):
        count = 0

        def failing(original: Callable[..., Any], call: int = call) -> Callable[..., Any]:
            def wrapper(*args: Any) -> Any:
                nonlocal count
                count += 1
                if count > call:  # from here on nothing can be written
                    raise OSError(number, os.strerror(number))
                return original(*args)

            return wrapper

        with monkeypatch.context() as patch:
            for name, original in originals.items():
                patch.setattr(os, name, failing(original))
            said = published(make(1), tmp_path)
        if not said:
            break
        assert "\n" not in said
        assert ("free some space" in said) == (number != errno.EIO)
        assert {entry.status for entry in scan([tmp_path], identity)} == {"loaded"}
        assert latest(tmp_path, identity.slug, "spam") in (before, after)
        assert [path.name for path in tmp_path.iterdir()] == ["owner--name"]
        shutil.rmtree(tmp_path / "owner--name" / "spam" / after, ignore_errors=True)
        (tmp_path / "owner--name" / "spam" / "latest").write_text(before)
    assert call >= 10


def published(parts: Any, store: Path) -> str:
    """What was said against it, if anything."""
    try:
        parts.publish(store)
    except InvalidInput as error:
        return str(error)
    return ""
