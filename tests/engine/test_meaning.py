"""A model by meaning: equal however it is stored, different where an answer may be, and told in words."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import normalizers, pre_tokenizers, processors
from tokenizers.normalizers import Lowercase

from merasteer.engine import LoadedModel, load_model, meaning, weights, wrap_model
from merasteer.engine.meaning import IRRELEVANT, configuration, of, tokenizer_digest
from merasteer.engine.packing import packed
from merasteer.errors import MeraError
from merasteer.meaning import ModelMeaning, differences

from .conftest import FAMILIES, word_tokenizer


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("MERA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "_known", {})
    return tmp_path / "cache"


def saved(loaded: LoadedModel, path: Path, **how: Any) -> Path:
    loaded.model.save_pretrained(path, **how)
    loaded.tokenizer.save_pretrained(path)
    return path


def changed(path: Path, **fields: Any) -> Path:
    """The folder, fields of its configuration changed."""
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))
    return path


# ----------------------------------------------------------------------------------------- one model, stored in many ways


def test_one_model_however_it_is_stored(llama, tmp_path):
    whole = of(load_model(saved(llama, tmp_path / "whole"), device="cpu"))
    parts = of(load_model(saved(llama, tmp_path / "parts", max_shard_size="100KB"), device="cpu"))
    cast = load_model(tmp_path / "whole", device="cpu", dtype="bfloat16")
    assert parts == whole == of(llama) == of(cast)
    assert differences(whole, parts) == ()
    assert cast.model.norm.weight.dtype == torch.bfloat16 if hasattr(cast.model, "norm") else cast.dtype == "bfloat16"


@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
def test_a_wider_store_of_the_same_values_is_the_same_model(make_tiny, tmp_path, short):
    made = make_tiny("llama")
    made.model.to(short)
    narrow = of(load_model(saved(made, tmp_path / "narrow"), device="cpu"))
    made.model.float()
    wide = of(load_model(saved(made, tmp_path / "wide"), device="cpu"))
    assert load_file(tmp_path / "narrow" / "model.safetensors")["lm_head.weight"].dtype == short
    assert narrow == wide


def test_a_gguf_file_and_the_folder_saved_out_of_it_are_one_model(llama, tmp_path):
    from .gguf_writer import write_gguf

    write_gguf(tmp_path / "tiny.gguf", llama.model, "llama")
    loaded = load_model(tmp_path / "tiny.gguf", device="cpu")
    again = load_model(saved(loaded, tmp_path / "saved"), device="cpu")
    assert differences(of(loaded), of(again)) == ()
    assert of(loaded).weights == of(llama).weights  # and those that it was written of


def test_what_is_stored_twice_or_follows_from_the_configuration_does_not_count(make_tiny, tmp_path):
    tied = make_tiny("llama", tie_word_embeddings=True)
    first = of(load_model(saved(tied, tmp_path / "a"), device="cpu"))
    tensors = load_file(saved(tied, tmp_path / "b") / "model.safetensors")
    more = {
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6),
    }
    save_file({**tensors, **more}, tmp_path / "b" / "model.safetensors", metadata={"format": "pt"})
    assert of(load_model(tmp_path / "b", device="cpu")) == first


def test_a_trunk_alone_has_the_names_of_the_whole(make_tiny, tmp_path):
    made = make_tiny("gpt2", tie_word_embeddings=True)
    whole = of(load_model(saved(made, tmp_path / "whole"), device="cpu"))
    shutil.copytree(tmp_path / "whole", tmp_path / "trunk")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    short = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    assert short.keys() != tensors.keys()
    save_file(short, tmp_path / "trunk" / "model.safetensors", metadata={"format": "pt"})
    assert of(load_model(tmp_path / "trunk", device="cpu")) == whole


def test_packing_does_not_change_what_a_model_is(llama, tmp_path):
    loaded = load_model(saved(llama, tmp_path / "x"), device="cpu")
    with packed(loaded.model):
        inside = of(loaded)
    assert inside == of(llama)


# ------------------------------------------------------------------------------------------------------- other models


@pytest.mark.parametrize("change", ["a value", "two values swapped", "a sign", "two tensors swapped", "a shape"])
def test_other_values_are_another_model(llama, tmp_path, change):
    path = saved(llama, tmp_path / "x")
    before = of(load_model(path, device="cpu"))
    tensors = load_file(path / "model.safetensors")
    one, two = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    if change == "a value":
        tensors[one][3, 4] = torch.nextafter(tensors[one][3, 4], torch.tensor(9.0))
    elif change == "two values swapped":
        tensors[one][0, [0, 1]] = tensors[one][0, [1, 0]]
    elif change == "a sign":
        tensors[one][0, 0] = -tensors[one][0, 0]
    elif change == "two tensors swapped":
        tensors[one], tensors[two] = tensors[two], tensors[one]
    else:
        changed(path, intermediate_size=95)
        for name in tensors:
            if ".mlp." in name:
                cut = tensors[name][:, :95] if "down_proj" in name else tensors[name][:95]
                tensors[name] = cut.contiguous()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    after = of(load_model(path, device="cpu"))
    assert after.weights != before.weights
    assert differences(before, after)[0] == "other weights"


def test_shapes_count_where_the_bytes_are_the_same():
    values = torch.arange(12.0)
    assert len({weights._line(values.reshape(shape)) for shape in ((12,), (3, 4), (4, 3))}) == 3
    assert weights._line(values) == weights._line(values.to(torch.bfloat16)) == weights._line(values.double())
    assert weights._line(values) != weights._line(values.to(torch.int32))
    third = torch.tensor([1 / 3], dtype=torch.float64)
    assert weights._line(third) != weights._line(third.float())
    large = torch.randn(weights.BLOCK + 5)
    other = large.clone()
    other[-1] += 1
    assert weights._line(large) != weights._line(other)


def test_configurations_differ_by_name(llama, tmp_path):
    path = saved(llama, tmp_path / "x")
    before = of(load_model(path, device="cpu"))
    after = of(load_model(changed(path, rms_norm_eps=1e-5, somebodys_own=3), device="cpu"))
    assert after.weights == before.weights
    assert differences(before, after) == (
        "rms_norm_eps: 1e-06 then, 1e-05 here",
        "somebodys_own: 'absent' then, 3 here",
    )
    assert differences(replace(before, configuration={}), after) == ("another configuration",)
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    last = of(load_model(changed(path, rope_parameters=rope), device="cpu"))
    assert "rope_parameters.rope_type: 'default' then, 'linear' here" in differences(after, last)
    assert "rope_parameters.factor: 'absent' then, 2 here" in differences(after, last)


def test_equal_numbers_are_equal(llama, tmp_path):
    path = saved(llama, tmp_path / "x")
    whole = of(load_model(changed(path, somebodys_own=[1, {"a": 2}]), device="cpu"))
    assert of(load_model(changed(path, somebodys_own=[1.0, {"a": 2.0}]), device="cpu")) == whole
    assert of(load_model(changed(path, somebodys_own=[True, {"a": 2}]), device="cpu")) != whole


def test_all_parts_are_told_in_words():
    one = ModelMeaning("a", "b", "c", "d", "e")
    for part, words in {
        "weights": "other weights", "config": "another configuration", "tokenizer": "another tokenizer",
        "chat_template": "another chat template", "end_tokens": "other end tokens",
    }.items():  # fmt: skip
        assert differences(one, replace(one, **{part: "x"})) == (words,)
    assert differences(one, replace(one, configuration={"a": 1})) == ()


# ------------------------------------------------------------------------------------------- tokenizer, template, ends


def test_a_tokenizer_is_what_decides_token_ids(tmp_path):
    plain = tokenizer_digest(word_tokenizer())
    word_tokenizer().save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path)) == plain
    set_by_a_caller = word_tokenizer()
    set_by_a_caller.backend_tokenizer.enable_truncation(5)
    set_by_a_caller.backend_tokenizer.enable_padding()
    assert tokenizer_digest(set_by_a_caller) == plain
    found = {plain}
    for change in ("normalizer", "pre_tokenizer", "post_processor", "added", "special", "vocabulary"):
        tokenizer = word_tokenizer()
        backend = tokenizer.backend_tokenizer
        if change == "normalizer":
            backend.normalizer = normalizers.Sequence([Lowercase()])
        elif change == "pre_tokenizer":
            backend.pre_tokenizer = pre_tokenizers.Whitespace()
        elif change == "post_processor":
            backend.post_processor = processors.TemplateProcessing("w1 $A", special_tokens=[("w1", 1)])
        elif change == "added":
            tokenizer.add_tokens(["<new>"])
        elif change == "special":
            tokenizer.add_tokens(["<new>"], special_tokens=True)
        else:
            model = json.loads(backend.to_str())
            model["model"]["vocab"] |= {"w1": 2, "w2": 1}
            backend = type(backend).from_str(json.dumps(model))
            tokenizer = type(tokenizer)(tokenizer_object=backend)
        found.add(tokenizer_digest(tokenizer))
    assert len(found) == 7


def test_chat_template_and_end_tokens_have_digests_of_their_own(llama):
    other = word_tokenizer()
    other.chat_template = "{{ messages }}"
    found = of(replace(llama, tokenizer=other))
    assert differences(of(llama), found) == ("another chat template",)
    model = copy.deepcopy(llama.model)
    model.generation_config.eos_token_id = [7, 5]
    ended = of(replace(llama, model=model))
    assert differences(of(llama), ended) == ("other end tokens",)
    model.generation_config.eos_token_id = [5, 7]
    assert of(replace(llama, model=model)) == ended
    model.config.eos_token_id = 99  # the engine does not read it
    assert of(replace(llama, model=model)) == ended


# ---------------------------------------------------------------------------------------- every field of every family

LENGTHS = (3, 40, 128)  # within the window of 16, beyond it, and the whole context


def others(name: str, value: Any) -> Iterator[Any]:
    """Other values of the kind that a field has."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value * 2, max(1, value // 2))
    elif isinstance(value, float):
        yield from (value * 2 + 0.25, value / 2)
    elif isinstance(value, str):
        yield {"silu": "gelu", "gelu": "relu", "gelu_new": "relu", "gelu_pytorch_tanh": "relu"}.get(value, value + "x")
    elif isinstance(value, list) and value:
        yield value[::-1]
        yield [{"full_attention": "sliding_attention"}.get(str(one), "full_attention") for one in value]
    elif isinstance(value, dict) and value:
        for key, inner in value.items():
            for other in others(key, inner):
                yield {**value, key: other}
    elif value is None:
        yield from (1, 0.5, True, "tanh")


def logits(model: Any) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        prompts = [torch.randint(1, 300, (1, n), generator=generator) for n in LENGTHS]
        return [model(prompt, return_dict=True).logits for prompt in prompts]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_field_that_changes_an_answer_changes_the_digest(make_tiny, family):
    """Each field alone. And the named fields that do not count change no logit, bit for bit."""
    made = make_tiny(family, max_position_embeddings=128)
    base, own = configuration(made.model.config), made.model.config.to_dict()
    fields = {**dict.fromkeys(IRRELEVANT), **own}
    expected, tried, moved = logits(made.model), set(), set()
    for name, value in fields.items():
        for other in others(name, value):
            model = _with(made, {**fields, name: other})
            if model is None:
                continue
            tried.add(name)
            same = all(torch.equal(a, b) for a, b in zip(expected, logits(model), strict=True))
            if not same:
                moved.add(name)
                assert configuration(model.config) != base, f"{name}={other!r} changes logits and not the digest"
    assert not moved & IRRELEVANT
    assert {"hidden_act", "activation_function", "hidden_activation"} & moved
    assert {"rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps"} & moved
    left = sorted(IRRELEVANT - tried)
    assert left == []


def _with(made: LoadedModel, fields: dict[str, Any]) -> Any:
    """The model with these fields and the same weights; None where class or shapes refuse them, or nothing comes out of it."""
    try:
        config = type(made.model.config).from_dict(fields)
        model = type(made.model)(config)
        model.load_state_dict(made.model.state_dict())
        wrap_model(model, made.tokenizer, "x")
        logits(model)
    except MeraError:
        return None
    except Exception:  # the library's own classes refuse in any way they like
        return None
    return model


def test_unknown_fields_count_and_the_list_is_what_it_is(llama):
    config = copy.deepcopy(llama.model.config)
    config.somebodys_own = 1
    assert configuration(config) == {**configuration(llama.model.config), "somebodys_own": 1}
    assert len(IRRELEVANT) == len({*meaning.STORED, *meaning.RUN, *meaning.TRAINED, *meaning.TOKENS})
    for name in ("tie_word_embeddings", "max_position_embeddings", "sliding_window", "rope_parameters", "model_type"):
        assert name not in IRRELEVANT


# ------------------------------------------------------------------------------------------------------------ the cache


def test_a_checkpoint_is_read_once(llama, tmp_path, cache, monkeypatch):
    loaded = load_model(saved(llama, tmp_path / "x"), device="cpu")
    first = of(loaded)
    monkeypatch.setattr(weights, "_known", {})
    monkeypatch.setattr(weights, "_combined", lambda *_: pytest.fail("read again"))
    assert of(loaded) == first
    assert len(json.loads((cache / "weights.json").read_text())) == 1


def test_files_that_were_replaced_are_read_again(llama, make_tiny, tmp_path):
    """Even by others of the same size and time."""
    path = saved(llama, tmp_path / "x")
    before = of(load_model(path, device="cpu"))
    stat = (path / "model.safetensors").stat()
    saved(make_tiny("llama", seed=1), tmp_path / "y")
    shutil.copy(tmp_path / "y" / "model.safetensors", path / "model.safetensors")
    os.utime(path / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = (path / "model.safetensors").stat()
    assert (after.st_size, after.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert of(load_model(path, device="cpu")).weights != before.weights


@pytest.mark.parametrize("fault", ["a file in its place", "damaged", "no mapping"])
def test_a_cache_that_cannot_be_used_costs_time_alone(llama, tmp_path, cache, fault):
    if fault == "a file in its place":
        cache.write_text("x")
    else:
        cache.mkdir()
        (cache / "weights.json").write_text("{" if fault == "damaged" else "[1]")
    assert of(load_model(saved(llama, tmp_path / "x"), device="cpu")) == of(llama)


def test_a_cache_stays_small(monkeypatch, cache):
    weights._remember({str(i): "x" for i in range(1000)})
    kept = json.loads((cache / "weights.json").read_text())
    assert list(kept) == [str(i) for i in range(1000 - weights.REMEMBERED, 1000)]


# ---------------------------------------------------------------------------------------------------------- a real one


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SmolLM2", "gemma-3-270m", "Qwen2.5-Coder"])
def test_real_files_and_the_folders_saved_out_of_them_are_one_model(real_model, tmp_path, name):
    loaded = load_model(real_model(name), device="cpu")
    again = load_model(saved(loaded, tmp_path / "saved"), device="cpu", dtype="bfloat16")
    assert differences(of(loaded), of(again)) == ()
