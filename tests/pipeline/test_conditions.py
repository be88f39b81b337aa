"""A certificate and what it is bound to: another model, another place to run, several servers over one store, artifacts of before."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mera_server.catalog import Probe, probe_of
from mera_server.cli import main
from mera_server.loading import load as serve
from mera_server.resolve import Limits, plan
from mera_server.schemas import GenerateBody
from mera_server.settings import Settings
from mera_server.shelf import identity_of
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from merasteer import store as artifacts
from merasteer.engine import LoadedModel, conditions_of, load_model
from merasteer.errors import NonFinite, UnsupportedModel
from merasteer.pipeline import Options, prepare, run
from merasteer.store.identity import file_hashes
from merasteer.store.manifest import digest_of
from merasteer.store.scanning import under
from merasteer.types import Artifact


@pytest.fixture
def store(finished: Any, tmp_path: Path) -> Path:
    """A copy of the store of a finished run, its work folders included: one certified artifact."""
    return Path(shutil.copytree(finished.store, tmp_path / "store"))


@pytest.fixture
def copied(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model, of the same name, to be changed."""
    return Path(shutil.copytree(model_folder, tmp_path / "changed" / model_folder.name))


def here(model: Path, store: Path, **settings: Any) -> Probe | None:
    """What a server of this model makes of the artifact of the store; None where it is rejected."""
    serving = serve(Settings(model=str(model), store=store, **settings))
    serving.engine.stop()
    return serving.catalog.latest.get("desks")


def configured(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def another_end(folder: Path) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 3}))


def another_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["quay"])
    tokenizer.save_pretrained(folder)


def untied(folder: Path) -> None:
    """The same values, stored twice."""
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    configured(tie_word_embeddings=False)(folder)


CHANGES: dict[str, tuple[Callable[[Path], None], str | None]] = {
    "norm epsilon": (configured(rms_norm_eps=0.1), "rms_norm_eps: 1e-06 then, 0.1 here"),
    "rope base": (configured(rope_parameters={"rope_theta": 500.0, "rope_type": "default"}), "rope_parameters.rope_theta: "),
    "head count": (configured(num_attention_heads=4, num_key_value_heads=4, head_dim=8), "num_attention_heads: 2 then, 4 here"),
    "activation": (configured(hidden_act="gelu"), "hidden_act: 'silu' then, 'gelu' here"),
    "end token": (another_end, "other end tokens"),
    "added token": (another_token, None),
    "output embeddings of their own": (untied, None),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_is_not_what_was_certified(
    finished: Any, store: Path, copied: Path, loaded: LoadedModel, change: str
) -> None:
    """It abstains and says what differs, or has no artifact at all; and a run on it takes nothing for its own."""
    do, said = CHANGES[change]
    do(copied)
    found = here(copied, store)
    if said is None:
        assert found is None or not found.guaranteed
    else:
        assert found is not None
        assert not found.guaranteed
        assert said in str(found.mismatch)
        planned = plan(
            GenerateBody.model_validate({"inputs": {"desk": "A", "text": "g1 g2 g3 b1 b2"}, "steering": {"task": "desks"}}),
            serve_catalog(copied, store),
            Limits(),
        )  # fmt: skip
        assert (planned.decision, planned.reason, planned.correction.moves) == ("abstained", "conditions", False)
    then, now = (
        prepare(model, finished.task, store, finished.options) for model in (loaded, load_model(copied, device="cpu"))
    )
    for name in ("ground", "readouts", "workspace"):
        assert getattr(then, name).folder.is_dir()
        assert not getattr(now, name).folder.exists()


def serve_catalog(model: Path, store: Path) -> Any:
    serving = serve(Settings(model=str(model), store=store))
    serving.engine.stop()
    return serving.catalog


def test_the_same_model_elsewhere_keeps_it(store: Path, copied: Path) -> None:
    """Stored by another release, in shards, without what changes no answer."""
    configured(transformers_version="4.0", use_cache=False, initializer_range=0.5)(copied)
    found = here(copied, store)
    assert found is not None
    assert (found.guaranteed, found.mismatch) == (True, None)


@pytest.mark.parametrize("change", ["lacks", "holds too much"])
def test_a_run_on_a_checkpoint_that_is_not_whole_ends_before_it_begins(
    finished: Any, tmp_path: Path, copied: Path, change: str
) -> None:
    weights = load_file(copied / "model.safetensors")
    if change == "lacks":
        del weights["model.layers.1.self_attn.v_proj.weight"]
    else:
        weights["model.layers.7.self_attn.v_proj.weight"] = weights["model.layers.1.self_attn.v_proj.weight"].clone()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.[17]\.self_attn\.v_proj\.weight"):
        run(copied, finished.task, tmp_path / "none", Options(ordering=100))
    assert not list(tmp_path.glob("none/**/manifest.json"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_that_meets_what_is_not_finite_names_the_row(
    finished: Any, tmp_path: Path, copied: Path, value: float
) -> None:
    """One word of the vocabulary is spoilt; the first row that holds it stops the run. The answers' words have rows of their own."""
    untied(copied)
    weights = load_file(copied / "model.safetensors")
    weights["model.embed_tokens.weight"][6 + 3] = value  # g3
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFinite) as caught:
        run(copied, finished.task, tmp_path / "none", Options(ordering=100))
    named = re.match(r"(\S+desks\.jsonl):? line (\d+): engine: an activation", str(caught.value))
    assert named is not None, caught.value
    row = json.loads(finished.task.with_suffix(".jsonl").read_text().splitlines()[int(named[2]) - 1])
    assert "g3" in row["text"]
    assert not list(tmp_path.glob("none/**/manifest.json"))


# ------------------------------------------------------------------------------------------------ one store, several servers


def certified_for(old: Artifact, store: Path, *, default: bool = True, **runtime: Any) -> Artifact:
    """The artifact as it would be had its test been passed under another runtime."""
    manifest = {key: value for key, value in old.manifest.items() if key not in ("schema", "digest", "files")}
    held = {name: getattr(old, name) for name in ("weight", "bias", "step", "contrastive", "label_bias")}
    folder = artifacts.publish(
        store,
        manifest={**manifest, "runtime": {**old.manifest["runtime"], **runtime}},
        calibration=old.calibration,
        tensors={name: tensor for name, tensor in held.items() if tensor is not None},
        default=default,
    )
    return artifacts.load(folder)


def served(store: Path, loaded: LoadedModel, **runtime: Any) -> Probe:
    """What a server of this runtime serves, without one."""
    there = replace(conditions_of(loaded), **runtime)
    entries, defaults = artifacts.snapshot([store], identity_of(loaded))
    artifact = under(entries, defaults, there)["desks"].artifact
    assert artifact is not None
    return probe_of(artifact, there, frozenset())


def test_three_servers_share_a_store(finished: Any, store: Path, model_folder: Path, loaded: LoadedModel) -> None:
    first = artifacts.load(next(store.glob("tiny/desks/*/manifest.json")).parent)
    latest = store / "tiny" / "desks" / "latest"
    before = latest.read_text()
    others: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "bfloat16"}, "dtype float32 then, bfloat16 here"),
        ({"ranks": 2}, "tensor-parallel ranks 1 then, 2 here"),
    ]
    for runtime, said in others:
        found = served(store, loaded, **runtime)
        assert (found.digest, found.guaranteed) == (first.digest, False)
        assert said in str(found.mismatch)
    short = certified_for(first, store, dtype="bfloat16")
    ranks = certified_for(first, store, ranks=2)
    assert latest.read_text() == before  # nothing was taken from the first
    assert served(store, loaded).digest == first.digest
    assert served(store, loaded, dtype="bfloat16").digest == short.digest
    assert served(store, loaded, ranks=2).digest == ranks.digest
    assert all(served(store, loaded, **one).guaranteed for one in ({}, {"dtype": "bfloat16"}, {"ranks": 2}))
    assert "device cpu then, cuda here" in str(served(store, loaded, device="cuda").mismatch)
    # On real servers, too.
    for settings, artifact in (({}, first), ({"dtype": "bfloat16"}, short)):
        probe = here(model_folder, store, **settings)
        assert probe is not None
        assert (probe.digest, probe.guaranteed) == (artifact.digest, True)


def test_the_newest_of_its_own_is_served_and_what_a_person_pins_stays(store: Path, loaded: LoadedModel) -> None:
    first = artifacts.load(next(store.glob("tiny/desks/*/manifest.json")).parent)
    latest = store / "tiny" / "desks" / "latest"
    short = certified_for(first, store, dtype="bfloat16")
    latest.write_text(short.digest[:12] + "\n")
    newer = certified_for(artifacts.load(store / "tiny" / "desks" / first.digest[:12]), store, default=False, ranks=2)
    assert latest.read_text().strip() == short.digest[:12]
    assert served(store, loaded).digest == first.digest
    assert served(store, loaded, ranks=2).digest == newer.digest
    assert served(store, loaded, dtype="bfloat16").digest == short.digest
    assert served(store, loaded, dtype="float16").digest == short.digest  # and it abstains
    certified_for(first, store, device="cuda")
    assert latest.read_text().strip() == short.digest[:12]


def test_recertifying_for_one_leaves_the_other(
    finished: Any, store: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = here(model_folder, store)
    command = [
        "recertify",
        "--model",
        str(model_folder),
        "--store",
        str(store),
        "--device",
        "cpu",
        "--dtype",
        "bfloat16",
    ]
    assert main([*command, "--task", str(finished.task)]) == 0
    [report] = json.loads(capsys.readouterr().out)["recertified"]
    assert report["runtime"] == {"dtype": "bfloat16", "device": "cpu", "attention": "sdpa", "ranks": 1}
    after, short = here(model_folder, store), here(model_folder, store, dtype="bfloat16")
    assert before is not None
    assert after is not None
    assert short is not None
    assert (after.digest, after.guaranteed) == (before.digest, True)
    if report["decision"] == "certified":
        assert (short.digest, short.guaranteed) == (report["artifact"], True)
    else:
        assert not short.guaranteed


# ------------------------------------------------------------------------------------------------ canaries and artifacts of before


def test_a_certified_run_writes_canaries_and_an_abstaining_one_none(
    finished: Any, loaded: LoadedModel, task_writer: Any, tmp_path: Path
) -> None:
    held = artifacts.load(next(finished.store.glob("tiny/desks/*/manifest.json")).parent)
    canaries = held.calibration["canaries"]
    assert len(canaries["prompts"]) == 8
    assert canaries["tolerance"] >= 1e-3
    assert all(len(one["z"]) == loaded.layers and len(one["log_q"]) == 2 for one in canaries["prompts"])
    rows = finished.task.with_suffix(".jsonl").read_text()
    assert not any(word in rows for word in ("harbour", "bridge"))  # nobody's data
    noise = task_writer(tmp_path, "noise", relabel=lambda row: "yes" if hash(row["text"]) % 2 else "no")
    run(loaded, noise, tmp_path / "store", Options(ordering=100, directions=("covariance",), hook_points=("residual",)))
    [weak] = [artifacts.load(path.parent) for path in (tmp_path / "store").glob("tiny/noise/*/manifest.json")]
    assert not weak.certified
    assert "canaries" not in weak.calibration


def as_of_before(folder: Path, model: Path) -> Path:
    """The artifact as schema 1 had it: a model by its files, free answers, no conditions and no canaries."""
    manifest, calibration = (json.loads((folder / f"{name}.json").read_text()) for name in ("manifest", "calibration"))
    weights, tokenizer = file_hashes(model)
    kept = ("id", "architecture", "layers", "width", "vocab")
    manifest["model"] = {name: manifest["model"][name] for name in kept} | {"weights": weights, "tokenizer": tokenizer}
    task = {name: manifest["task"][name] for name in ("name", "template", "labels", "position", "max_new_tokens")}
    manifest["task"] = task | {"variants": [[ids for [ids] in label] for label in manifest["task"]["variants"]]}
    manifest["runtime"] = {name: manifest["runtime"][name] for name in ("dtype", "attention")}
    manifest["schema"] = 1
    del calibration["canaries"]
    (folder / "calibration.json").write_text(json.dumps(calibration))
    manifest["files"]["calibration.json"] = hashlib.sha256((folder / "calibration.json").read_bytes()).hexdigest()
    manifest["digest"] = digest_of(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    name = manifest["digest"][:12]
    (folder.parent / "latest").write_text(f"{name}\n")
    return folder.rename(folder.with_name(name))


def test_an_artifact_of_before_abstains_until_it_is_tested_again(
    loaded: LoadedModel, model_folder: Path, task_writer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_writer(tmp_path)
    task.write_text(task.read_text() + '[answer]\nchoose = "free"\n')
    store = tmp_path / "store"
    options = Options(ordering=100, directions=("covariance",), hook_points=("residual",))
    report = run(loaded, task, store, options)
    assert report is not None
    assert report["decision"] == "certified"
    as_of_before(store / "tiny" / "desks" / report["artifact"][:12], model_folder)
    found = here(model_folder, store)
    assert found is not None
    assert (found.certified, found.guaranteed) == (True, False)
    assert found.mismatch == "made before conditions and canaries were kept; test it again with mera recertify"
    command = ["recertify", "--model", str(model_folder), "--store", str(store), "--task", str(task), "--device", "cpu"]
    assert main(command) == 0
    [again] = json.loads(capsys.readouterr().out)["recertified"]
    assert again["decision"] == "certified"
    new = here(model_folder, store)
    assert new is not None
    assert (new.digest, new.guaranteed, new.mismatch) == (again["artifact"], True, None)
    assert new.canaries is not None
    assert artifacts.load(store / "tiny" / "desks" / new.digest[:12]).manifest["schema"] == 2


def test_files_of_another_model_do_not_pass_for_those_of_before(
    loaded: LoadedModel, finished: Any, store: Path, copied: Path
) -> None:
    held = next(store.glob("tiny/desks/*/manifest.json")).parent
    weights = load_file(copied / "model.safetensors")
    with torch.no_grad():
        weights["model.norm.weight"][0] += 1e-3
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    as_of_before(held, copied)
    [entry] = artifacts.scan([store], identity_of(loaded))
    assert entry.status == "rejected"
    assert "model.weights: made for other weights" in str(entry.reason)
