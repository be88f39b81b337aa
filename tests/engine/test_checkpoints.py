"""Checkpoints that are not what they seem: each is told in one line what it is, and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merasteer.engine import load_model
from merasteer.engine.checkpoints import BENIGN, check_loaded
from merasteer.errors import InvalidInput, UnsupportedModel

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 538090408\n"


@pytest.fixture
def folder(llama, tmp_path) -> Path:
    path = tmp_path / "tiny"
    llama.model.save_pretrained(path)
    llama.tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def sharded(llama, tmp_path) -> Path:
    path = tmp_path / "parts"
    llama.model.save_pretrained(path, max_shard_size="100KB")
    llama.tokenizer.save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 2
    return path


def refused(path: Path, **how: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        load_model(path, **{"device": "cpu", **how})
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith("model: ")
    return told


# --------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_in_the_place_of_a_file(folder, name):
    (folder / name).write_text(POINTER, encoding="utf-8")
    assert f"{name}' is a git-LFS pointer, not the file itself; run git lfs pull" in refused(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_empty_file(folder, name):
    (folder / name).write_bytes(b"")
    assert f"{name}' is empty; download it again" in refused(folder)


@pytest.mark.parametrize("start", [POINTER.encode(), b""])
def test_a_gguf_file_that_is_a_pointer_or_empty(tmp_path, start):
    pytest.importorskip("gguf", reason="needs the extra mera-server[gguf]")
    (tmp_path / "x.gguf").write_bytes(start)
    assert ("run git lfs pull" if start else "is empty; download it again") in refused(tmp_path / "x.gguf")


def test_a_file_that_is_cut_off_or_foreign(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert f"is cut off ({len(whole) - 1} of {len(whole)} bytes); download it again" in refused(folder)
    for content in (whole[:100], b"<html>not found</html>", b"12345678[]", (2).to_bytes(8, "little") + b"[]"):
        weights.write_bytes(content)
        assert "is no safetensors file, or damaged; download it again" in refused(folder), content


def test_a_shard_that_is_missing(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    count = len(list(sharded.glob("*.safetensors")))
    shard.unlink()
    assert f"lacks {shard.name} of its {count} files; download it again, whole" in refused(sharded)


def test_shards_without_their_index(sharded):
    index = sharded / "model.safetensors.index.json"
    index.write_text("{}", encoding="utf-8")
    assert "is damaged: it holds no weight_map; download it again" in refused(sharded)
    index.unlink()
    assert "but neither model.safetensors nor model.safetensors.index.json" in refused(sharded)


def test_shards_that_are_all_there_are_loaded(sharded, llama):
    loaded = load_model(sharded, device="cpu")
    assert torch.equal(loaded.model.lm_head.weight, llama.model.lm_head.weight)


def test_pickles(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    told = refused(folder)
    assert "holds its weights as pickles (pytorch_model.bin)" in told
    assert "convert it to safetensors" in told
    (folder / "pytorch_model.bin").unlink()
    assert "holds no weights; give a folder with model.safetensors" in refused(folder)


def test_an_adapter_without_its_model(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}), encoding="utf-8")
    told = "holds an adapter to 'owner/base'; merge it into its model (merge_and_unload) and save that"
    assert told in refused(folder)  # beside a model it would change it, or be passed over
    (folder / "config.json").unlink()
    assert told in refused(folder)
    (folder / "adapter_config.json").write_text("{", encoding="utf-8")
    assert "holds an adapter; merge it" in refused(folder)


def test_a_folder_that_is_no_model(tmp_path):
    assert "holds no config.json; give a folder as save_pretrained writes it" in refused(tmp_path)
    (tmp_path / "x.txt").write_text("x", encoding="utf-8")
    assert "x.txt' is a file; give a model folder, a .gguf file or a hub id" in refused(tmp_path / "x.txt")


def test_a_folder_without_a_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "holds no tokenizer; save it beside the weights" in refused(folder)


# ------------------------------------------------------------------------------------------------------- tensors

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def changed(folder: Path, change: Change) -> Path:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without(*names: str) -> Change:
    return lambda weights: {name: value for name, value in weights.items() if name not in names}


def test_missing_tensors_are_refused_by_name(folder, capfd):
    lost = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(4)]
    told = refused(changed(folder, without(*lost[1:2])))
    assert f"lacks {lost[1]}; it would be another model: give the checkpoint whole" in told
    told = refused(changed(folder, without(*lost)))
    assert f"lacks {', '.join(lost[:3])}, … (4 in all)" in told
    assert capfd.readouterr() == ("", "")  # the library's table of what it filled with random numbers


def test_tensors_that_have_no_place_are_refused_by_name(folder):
    more = {f"model.layers.{i}.self_attn.q_proj.bias": torch.zeros(48) for i in range(4)}
    told = refused(changed(folder, lambda weights: {**weights, **more}))
    assert f"holds {', '.join(list(more)[:3])}, … (4 in all), for which this architecture has no place" in told


def test_layers_beyond_those_of_the_configuration_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    assert "holds model.layers.3." in refused(folder)


def test_other_shapes_are_refused_by_name(folder):
    def narrow(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {**weights, "model.norm.weight": torch.ones(40)}

    assert "in another shape (model.norm.weight: 40 where the configuration says 48)" in refused(
        changed(folder, narrow)
    )


def test_tied_weights_are_not_missing_and_untied_ones_are(make_tiny, tmp_path, llama):
    tied = make_tiny("llama", tie_word_embeddings=True)
    tied.model.save_pretrained(tmp_path / "tied")
    tied.tokenizer.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    loaded = load_model(tmp_path / "tied", device="cpu")
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    config = json.loads((tmp_path / "tied" / "config.json").read_text())
    (tmp_path / "tied" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    assert "lacks lm_head.weight" in refused(tmp_path / "tied")


@pytest.mark.parametrize(
    ("prefix", "remedy"),
    [
        ("module.", "save model.module"),
        ("_orig_mod.", "save model._orig_mod"),
        ("base_model.model.", "save what merge_and_unload() returns"),
    ],
)
def test_wrappers_are_recognised(folder, prefix, remedy):
    told = refused(changed(folder, lambda weights: {prefix + name: value for name, value in weights.items()}))
    assert f"begin with {prefix!r}" in told
    assert remedy in told


def test_an_adapter_inside_is_recognised(folder):
    def adapt(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        name = "model.layers.0.mlp.up_proj"
        kept = {key: value for key, value in weights.items() if key != f"{name}.weight"}
        return {
            **kept,
            f"{name}.base_layer.weight": weights[f"{name}.weight"],
            f"{name}.lora_A.weight": torch.ones(2, 48),
        }

    assert "holds an adapter that is not merged (model.layers.0.mlp.up_proj.base_layer.weight" in refused(
        changed(folder, adapt)
    )


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("llama", "model.rotary_emb.cos_cached"),
        ("gpt2", "transformer.h.0.attn.bias"),
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias"),
        ("gpt_neox", "gpt_neox.layers.1.attention.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.1.attention.rotary_emb.inv_freq"),
    ],
)
def test_what_older_versions_stored_beside_the_model_is_let_pass(make_tiny, tmp_path, family, name):
    made = make_tiny(family)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    assert any(re.search(pattern, name) for pattern in BENIGN)
    loaded = load_model(changed(tmp_path, lambda weights: {**weights, name: torch.ones(4)}), device="cpu")
    tokens = torch.arange(9)[None]
    assert torch.equal(loaded.model(tokens).logits, made.model(tokens).logits)


def test_no_weight_of_a_served_family_counts_as_benign(make_tiny, family):
    _, loaded = family
    assert not [key for key in loaded.model.state_dict() if any(re.search(known, key) for known in BENIGN)]


@pytest.mark.parametrize("how", [{"device_map": "cpu", "device": "auto"}, {"device_map": "auto", "device": "auto"}])
def test_a_map_is_no_way_around(folder, how, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "lacks model.norm.weight" in refused(changed(folder, without("model.norm.weight")), **how)


def test_errors_of_the_library_itself_are_told():
    info = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": ["cannot\nconvert"]}
    with pytest.raises(UnsupportedModel, match=r"^model: 'x' cannot; it would be another model"):
        check_loaded("x", info)
    check_loaded("x", {**info, "error_msgs": []})
