import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merasteer.errors import UnknownProbe
from merasteer.store import Entry, ModelIdentity, default_entry, latest, resolve_prefix, scan, snapshot


def test_no_store_no_entries(tmp_path: Path, identity: ModelIdentity) -> None:
    assert scan([tmp_path / "none"], identity) == []


def test_only_the_models_own_folder_is_looked_at(make: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    make().publish(tmp_path)
    assert scan([tmp_path], replace(identity, id="someone/else")) == []
    assert [entry.task for entry in scan([tmp_path])] == ["spam"]


def test_temporary_and_stray_things_are_passed_over(
    make: Any, tmp_path: Path, identity: ModelIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make().publish(tmp_path)
    (tmp_path / ".publish-00000000-1-00000000").mkdir()
    (folder.parent / ".tmp").mkdir()
    (folder.parent / "notes.txt").write_text("x")
    (tmp_path / "owner--name" / "README").write_text("x")
    with caplog.at_level(logging.WARNING):
        assert [entry.path for entry in scan([tmp_path], identity)] == [folder]
    assert not caplog.records


def test_names_that_no_terminal_can_print_are_listed_all_the_same(
    make: Any, tmp_path: Path, identity: ModelIdentity
) -> None:
    folder = make().publish(tmp_path)
    shutil.copytree(folder, folder.parents[1] / "bad\udcff\nname" / folder.name)
    reasons = [entry.reason for entry in scan([tmp_path], identity) if entry.reason]
    assert len(reasons) == 1
    assert reasons[0].encode()
    assert reasons[0].isprintable()


def test_a_store_that_is_a_file_is_logged_not_raised(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "store").write_text("x")
    assert scan([tmp_path / "store"]) == []
    assert "cannot be listed" in caplog.text


def test_a_second_copy_is_listed_once(make: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    first = make().publish(tmp_path / "a")
    make().publish(tmp_path / "b")
    assert [entry.path for entry in scan([tmp_path / "a", tmp_path / "b"], identity)] == [first]


@pytest.mark.parametrize("text", ["", "zz", "../../etc/passwd", "0123456789ab\n0123456789ab", "\xff"])
def test_a_bad_latest_names_nothing(make: Any, tmp_path: Path, text: str) -> None:
    folder = make().publish(tmp_path)
    assert latest(tmp_path, "owner--name", "spam") == folder.name
    (folder.parent / "latest").write_text(text, "latin-1")
    assert latest(tmp_path, "owner--name", "spam") is None
    assert latest(tmp_path, "owner--name", "../spam") is None
    assert latest(tmp_path, "owner--name", "ham") is None


def _default(stores: list[Path], identity: ModelIdentity) -> Entry | None:
    return default_entry(scan(stores, identity), stores, identity.slug, "spam")


def test_the_default_is_the_writable_stores_then_the_others(make: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    stores = [tmp_path / "writable", tmp_path / "demo"]
    assert _default(stores, identity) is None
    for store, seed in ((stores[1], 1), (stores[1], 2), (stores[0], 3)):
        folder = make(seed).publish(store)
        found = _default(stores, identity)
        assert found is not None
        assert found.path == folder
    (folder / "probe.safetensors").write_bytes(b"")
    found = _default(stores, identity)
    assert found is not None
    assert found.path.parents[2] == stores[1]


def test_without_any_latest_only_a_single_artifact_is_the_default(
    make: Any, tmp_path: Path, identity: ModelIdentity
) -> None:
    folder = make(1).publish(tmp_path, default=False)
    found = _default([tmp_path], identity)
    assert found is not None
    assert found.path == folder
    make(2).publish(tmp_path, default=False)
    assert _default([tmp_path], identity) is None


def test_a_rejected_latest_is_not_replaced_by_an_older_artifact(
    make: Any, tmp_path: Path, identity: ModelIdentity
) -> None:
    make(1).publish(tmp_path)
    (make(2).publish(tmp_path) / "manifest.json").unlink()
    assert _default([tmp_path], identity) is None


def test_prefixes(make: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    folders = [make(seed).publish(tmp_path) for seed in range(20)]  # more than 16: some first digit is shared
    entries = scan([tmp_path], identity)
    digest = entries[0].digest
    assert digest
    for prefix in (digest, digest[:12], digest[:10].upper()):
        assert resolve_prefix(entries, prefix) is entries[0]
    firsts = [folder.name[0] for folder in folders]
    shared = next(digit for digit in firsts if firsts.count(digit) > 1)
    with pytest.raises(UnknownProbe, match="more digits"):
        resolve_prefix(entries, shared)
    for prefix in ("", "zzzz", digest + "0"):
        with pytest.raises(UnknownProbe, match="no loaded artifact") as caught:
            resolve_prefix(entries, prefix)
        assert not prefix or prefix not in str(caught.value)


def test_the_prefix_of_a_rejected_artifact_gives_the_reason(make: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    folder = make().publish(tmp_path)
    (folder / "probe.safetensors").unlink()
    with pytest.raises(UnknownProbe, match=r"rejected: .*probe\.safetensors: is missing"):
        resolve_prefix(scan([tmp_path], identity), folder.name)


def test_what_is_removed_while_it_is_read_is_not_rejected(
    make: Any,
    tmp_path: Path,
    identity: ModelIdentity,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept, gone = make(1).publish(tmp_path), make(2).publish(tmp_path)
    read = Path.read_bytes

    def late(path: Path) -> bytes:
        if path == gone / "probe.safetensors":
            shutil.rmtree(gone)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", late)
    assert [entry.path for entry in scan([tmp_path], identity)] == [kept]
    assert not caplog.records


def test_a_snapshot_picks_what_the_default_rule_picks(make: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    stores = [tmp_path / "a", tmp_path / "b"]
    assert snapshot(stores, identity) == ([], {})
    make(1).publish(stores[1])
    other = make(2)
    other.manifest["task"]["name"] = "other"
    other.publish(stores[0], default=False)
    newest = make(3).publish(stores[0])
    entries, defaults = snapshot(stores, identity)
    assert len(entries) == 3
    assert set(defaults) == {"spam", "other"}
    for task, entry in defaults.items():
        wanted = default_entry(scan(stores, identity), stores, identity.slug, task)
        assert wanted is not None
        assert entry.path == wanted.path
    assert defaults["spam"].path == newest
