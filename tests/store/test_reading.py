"""Every way we know in which an artifact can be bad: each is one BadArtifact with its reason, and its good sibling still loads."""

import json
import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merasteer.errors import BadArtifact
from merasteer.store import ModelIdentity, load, scan
from merasteer.store.documents import dump
from merasteer.store.tensors import encode

Reseal = Callable[..., Path]


def test_what_was_published_is_what_is_loaded(parts: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    folder = parts.publish(tmp_path)
    artifact = load(folder, identity)
    assert folder == tmp_path / "owner--name" / "spam" / artifact.digest[:12]
    assert (artifact.alpha, artifact.certified, artifact.task.variants) == (0.3, True, (((3,), (4,)), ((5, 6),)))
    assert artifact.vectors.active_layers == (0, 2)
    assert artifact.calibration == parts.calibration
    for name, tensor in parts.tensors.items():
        assert torch.equal(getattr(artifact, name), tensor)


def test_optional_tensors_may_be_absent(parts: Any, tmp_path: Path) -> None:
    del parts.tensors["contrastive"], parts.tensors["label_bias"]
    artifact = load(parts.publish(tmp_path))
    assert artifact.contrastive is None
    assert artifact.label_bias is None


def test_a_relative_path_and_files_beside_do_not_matter(
    parts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = parts.publish(tmp_path)
    (folder / "README.md").write_text("notes")
    monkeypatch.chdir(folder)
    assert load(Path()).digest.startswith(folder.name)


def _cut(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])


def _text(folder: Path, name: str, change: Callable[[str], str]) -> None:
    (folder / name).write_text(change((folder / name).read_text("utf-8")), "utf-8")


def _probe(folder: Path, reseal: Reseal, **changed: torch.Tensor) -> None:
    """Other tensors, every hash made right again."""
    artifact = load(folder)
    tensors = {"weight": artifact.weight, "bias": artifact.bias, "step": artifact.step, **changed}
    (folder / "probe.safetensors").write_bytes(encode(tensors))
    reseal(folder, lambda m: None)


def _calibrate(folder: Path, reseal: Reseal, **changed: object) -> None:
    found = json.loads((folder / "calibration.json").read_text("utf-8"))
    (folder / "calibration.json").write_bytes(dump({**found, **changed}))
    reseal(folder, lambda m: None)


def _link(folder: Path, name: str) -> None:
    outside = folder.parents[3] / f"outside-{name}"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)


def _fifo(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


def _set(section: str, name: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest[section].__setitem__(name, value)


def _loop(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").symlink_to("manifest.json")


BAD: dict[str, tuple[Callable[[Path, Reseal], object], str]] = {
    "no manifest": (lambda f, r: (f / "manifest.json").unlink(), "manifest.json: is missing"),
    "no probe": (lambda f, r: (f / "probe.safetensors").unlink(), "probe.safetensors: is missing"),
    "no calibration": (lambda f, r: (f / "calibration.json").unlink(), "calibration.json: is missing"),
    "empty manifest": (lambda f, r: (f / "manifest.json").write_bytes(b""), "manifest.json: not readable as JSON"),
    "truncated manifest": (lambda f, r: _cut(f, "manifest.json"), "manifest.json: not readable as JSON"),
    "manifest is a list": (lambda f, r: (f / "manifest.json").write_bytes(b"[]"), "the file: .* is not a JSON object"),
    "manifest not utf-8": (lambda f, r: (f / "manifest.json").write_bytes(b'{"a":"\xff"}'), "not readable as JSON"),
    "edited manifest": (lambda f, r: _text(f, "manifest.json", lambda s: s.replace("0.3", "0.4")), "digest: does not match"),
    "renamed folder": (lambda f, r: f.rename(f.with_name("0" * 12)), "rename the folder back"),
    "truncated probe": (lambda f, r: _cut(f, "probe.safetensors"), "probe.safetensors: its sha256"),
    "truncated probe, resealed": (lambda f, r: (_cut(f, "probe.safetensors"), r(f, lambda m: None)), "not a whole safetensors"),
    "edited calibration": (lambda f, r: _text(f, "calibration.json", lambda s: s + " "), "calibration.json: its sha256"),
    "NaN weight": (lambda f, r: _probe(f, r, weight=torch.full((3, 8), torch.nan)), "weight: .* not finite"),
    "wrong width": (lambda f, r: _probe(f, r, weight=torch.ones(3, 9)), r"weight: shape \(3, 9\) is not the \(3, 8\)"),
    "too few layers": (lambda f, r: _probe(f, r, bias=torch.ones(2)), "bias: shape"),
    "unknown tensor": (lambda f, r: _probe(f, r, pickled=torch.ones(2)), "'pickled': is not one of"),
    "step against the readout": (lambda f, r: _probe(f, r, step=-load(f).step), "w·step is -1"),
    "step on an idle layer": (lambda f, r: _probe(f, r, step=load(f).step + 1e-6), "layer that is idle"),
    "another active layer": (lambda f, r: r(f, _set("steering", "active_layers", [0])), "weight: layers"),
    "report layer outside": (lambda f, r: r(f, _set("steering", "report_layer", 3)), r"steering\.report_layer: 3"),
    "alpha of one": (lambda f, r: r(f, _set("steering", "alpha", 1.0)), r"steering\.alpha"),
    "certified without alpha": (lambda f, r: r(f, _set("steering", "alpha", None)), r"steering\.alpha: null"),
    "another alpha certified": (lambda f, r: r(f, _set("steering", "alpha", 0.4)), "not the certified 0.3"),
    "certified by nothing": (lambda f, r: _calibrate(f, r, decision="abstained", reason="uncertified"), "certified: true, yet"),
    "chosen never tested": (lambda f, r: _calibrate(f, r, tested=[]), "calibration.json: chosen"),
    "splits overlap": (lambda f, r: r(f, _set("splits", "test", ["b1"])), "splits.test: shares the row"),
    "task climbs out": (lambda f, r: r(f, _set("task", "name", "../../x")), r"task\.name"),
    "task of another folder": (lambda f, r: r(f, _set("task", "name", "other")), "made for the task other"),
    "future schema": (lambda f, r: r(f, lambda m: m.update(schema=3)), "upgrade mera-server"),
    "unknown key": (lambda f, r: r(f, lambda m: m.update(host="here")), "unknown field 'host'"),
    "other weights": (lambda f, r: r(f, _set("model", "weights", "0" * 64)), "made for other weights"),
    "other tokenizer": (lambda f, r: r(f, _set("model", "tokenizer", "0" * 64)), "made for another tokenizer"),
    "other architecture": (lambda f, r: r(f, _set("model", "architecture", "GPT2LMHeadModel")), "made for GPT2LMHeadModel"),
    "link outside": (lambda f, r: _link(f, "probe.safetensors"), "probe.safetensors: is a link that leads out"),
    "manifest link outside": (lambda f, r: _link(f, "manifest.json"), "manifest.json: is a link that leads out"),
    "link to itself": (lambda f, r: _loop(f), "manifest.json: cannot be read"),
    "a pipe": (lambda f, r: _fifo(f, "probe.safetensors"), "probe.safetensors: is not a regular file"),
    "a folder for a file": (
        lambda f, r: ((f / "calibration.json").unlink(), (f / "calibration.json").mkdir()),
        "calibration.json: is not a regular file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_artifact_is_rejected_with_its_reason_and_its_sibling_loads(
    case: str, make: Any, reseal: Reseal, tmp_path: Path, identity: ModelIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    spoil, reason = BAD[case]
    store = tmp_path / "store"
    good, bad = make(1).publish(store), make(2).publish(store)
    spoil(bad, reseal)
    with caplog.at_level(logging.WARNING, "merasteer.store"):
        loaded, rejected = sorted(scan([store], identity), key=lambda entry: entry.status)
    assert loaded.path == good
    assert loaded.artifact is not None
    assert (rejected.status, rejected.task, rejected.digest, rejected.artifact) == ("rejected", "spam", None, None)
    assert rejected.reason is not None
    assert re.search(reason, rejected.reason)
    assert rejected.reason.startswith(f"spam/{rejected.path.name}: ")
    assert "\n" not in rejected.reason
    assert str(tmp_path) not in rejected.reason
    assert [record.getMessage().count(rejected.reason) for record in caplog.records] == [1]
    if "of another folder" not in case:
        with pytest.raises(BadArtifact, match=reason):
            load(rejected.path, identity)


def test_a_folder_that_is_not_there_is_a_bad_artifact(tmp_path: Path) -> None:
    with pytest.raises(BadArtifact, match="is missing"):
        load(tmp_path / "none")


def test_an_unreadable_file_is_a_bad_artifact(parts: Any, tmp_path: Path) -> None:
    folder = parts.publish(tmp_path)
    (folder / "manifest.json").chmod(0)
    if os.access(folder / "manifest.json", os.R_OK):
        pytest.skip("root reads everything")
    with pytest.raises(BadArtifact, match="cannot be read"):
        load(folder)


def test_every_flipped_byte_is_noticed(parts: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    folder = parts.publish(tmp_path)
    for name in ("manifest.json", "calibration.json", "probe.safetensors"):
        data = (folder / name).read_bytes()
        for position in range(0, len(data), max(1, len(data) // 25)):
            (folder / name).write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
            try:
                load(folder, identity)
            except BadArtifact:
                continue
            assert json.loads((folder / name).read_bytes()) == json.loads(data), position  # white space of the manifest
        (folder / name).write_bytes(data)
    load(folder, identity)


def test_the_same_model_under_another_name_is_served(parts: Any, tmp_path: Path, identity: ModelIdentity) -> None:
    assert load(parts.publish(tmp_path), replace(identity, id="a-local-copy")).certified


def test_a_certified_bias_without_any_readout_is_published_and_loaded(parts: Any, tmp_path: Path) -> None:
    chosen = {**parts.calibration["candidates"][1], "method": "logit_bias"}
    tested = {**parts.calibration["tested"][0], "key": "logit_bias"}
    parts.calibration.update(candidates=[chosen], tested=[tested], chosen="logit_bias")
    parts.manifest["steering"].update(method="logit_bias", alpha=None, active_layers=[])
    parts.manifest["probe"]["scores"] = []
    for name in ("weight", "step", "bias"):
        parts.tensors[name] = torch.zeros_like(parts.tensors[name])
    found = load(parts.publish(tmp_path))
    assert (found.certified, found.alpha, found.vectors.active_layers) == (True, None, ())
    assert found.manifest["steering"]["method"] == "logit_bias"
    assert found.label_bias is not None
