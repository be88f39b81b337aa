import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merasteer.errors import BadArtifact, InvalidInput
from merasteer.store import latest, load, publish
from merasteer.store.durable import NAME, temporary


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_input_gives_equal_bytes_wherever_it_is_written(make: Any, tmp_path: Path) -> None:
    first, second = make().publish(tmp_path / "a"), make().publish(tmp_path / "b")
    assert first.name == second.name
    assert _content(first) == _content(second)


@pytest.mark.parametrize("part", ["manifest", "calibration", "tensors"])
def test_any_change_gives_another_digest(make: Any, tmp_path: Path, part: str) -> None:
    changed = make()
    if part == "manifest":
        changed.manifest["seeds"]["fit"] = 8
    elif part == "calibration":
        changed.calibration["note"] = "x"
    else:
        changed.tensors["bias"][0] += 1e-6
    assert changed.publish(tmp_path).name != make().publish(tmp_path).name


def test_publishing_twice_is_publishing_once(make: Any, tmp_path: Path) -> None:
    folder = make().publish(tmp_path)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert make().publish(tmp_path) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["owner--name"]


def test_a_loaded_artifact_can_be_published_again_elsewhere(make: Any, tmp_path: Path) -> None:
    found = load(make().publish(tmp_path / "a"))
    tensors = {"weight": found.weight, "bias": found.bias, "step": found.step}
    tensors |= {"contrastive": found.contrastive, "label_bias": found.label_bias}  # type: ignore[dict-item]
    folder = publish(tmp_path / "b", manifest=found.manifest, calibration=found.calibration, tensors=tensors)
    assert folder.name == found.digest[:12]


def test_latest_names_the_last_one_published(make: Any, tmp_path: Path) -> None:
    first, second = make(1).publish(tmp_path), make(2).publish(tmp_path)
    assert latest(tmp_path, "owner--name", "spam") == second.name
    make(1).publish(tmp_path)
    assert latest(tmp_path, "owner--name", "spam") == first.name
    make(3).publish(tmp_path, default=False)
    assert latest(tmp_path, "owner--name", "spam") == first.name


def test_a_damaged_artifact_is_replaced(make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make().publish(tmp_path)
    good = _content(folder)
    (folder / "probe.safetensors").write_bytes(b"")
    make().publish(tmp_path)
    assert _content(folder) == good
    assert "replacing a damaged artifact" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["owner--name"]


def test_what_load_would_refuse_is_never_written(make: Any, tmp_path: Path) -> None:
    parts = make()
    parts.tensors["weight"][0, 0] = torch.nan
    with pytest.raises(BadArtifact, match=r"probe\.safetensors: weight"):
        parts.publish(tmp_path)
    parts = make()
    parts.manifest["seeds"]["fit"] = np.int64(3)
    with pytest.raises(BadArtifact, match="not plain JSON"):
        parts.publish(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_written_is_told_in_one_line(make: Any, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(InvalidInput, match=r"^store: .* cannot be written .*; give a folder that can$"):
        make().publish(tmp_path / "store")


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_stay(make: Any, tmp_path: Path) -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(child, 0)
    with_host = _temporary_name(make, tmp_path)
    host = with_host[1]
    mine, dead = f".publish-{host}-{os.getpid()}-00000000", f".publish-{host}-{child}-00000000"
    away, old, foreign = ".publish-ffffffff-1-00000000", ".publish-ffffffff-2-00000000", ".publish-notes"
    ancient = f".publish-{host}-{os.getpid()}-11111111"  # of another process of this number
    for name in (mine, dead, away, old, foreign, ancient):
        (tmp_path / name / "artifact").mkdir(parents=True)
    for name in (old, ancient):
        os.utime(tmp_path / name, (0, 0))
    with temporary(tmp_path) as held:
        os.utime(held, (0, 0))  # the clock was set forward meanwhile
        make().publish(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {mine, away, foreign, held.name, "owner--name"}


def _temporary_name(make: Any, store: Path) -> Any:
    """The match of a temporary folder's name while a publish is under way."""
    seen: list[Any] = []
    original = os.replace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda *a: (seen.append(NAME.fullmatch(Path(a[0]).parent.name)), original(*a)))
        make().publish(store)
    return seen[0]


def test_everything_is_durable_before_it_is_visible(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync of the three files and their folder, then the rename, then fsync of its parents; then the same for `latest`."""
    calls: list[str] = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def synced(handle: int) -> None:
        calls.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", lambda a, b: (calls.append("> " + Path(b).name), rename(a, b)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("> " + Path(b).name), replace(a, b)))
    name = make().publish(tmp_path).name
    files = ["calibration.json", "probe.safetensors", "manifest.json"]
    parents = ["spam", "owner--name", tmp_path.name]
    assert calls == [*files, "artifact", f"> {name}", *parents, "latest", "> latest", "spam"]
