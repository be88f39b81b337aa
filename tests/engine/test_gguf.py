"""GGUF: the values, the configuration and the tokenizer that a file states, and what is refused."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from merasteer.conditions import differences
from merasteer.engine import Engine, conditions_of, identity_facts, load_model, model_name
from merasteer.engine.gguf import open_gguf
from merasteer.engine.gguf_config import configuration
from merasteer.errors import InvalidInput
from merasteer.store import identify, plant, snapshot
from merasteer.store.scanning import under
from merasteer.types import GenerationRequest, ServedTask

from .gguf_writer import CONTROL, LETTERS, MERGES, gguf, write_gguf

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path) -> Write:
    """Writes a tiny model as llama.cpp's conversion would. `more`: metadata to add or (None) to leave out; `tensors`: to add."""

    def make(loaded: Any, family: str = "llama", name: str = "tiny", **how: Any) -> Path:
        path = tmp_path / f"{name}.gguf"
        write_gguf(path, loaded.model, family, **how)
        return path

    return make


# --------------------------------------------------------------------------------------------- what comes over


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3", "gpt2"])
def test_a_file_gives_the_model_that_was_written(write, make_tiny, family, tied):
    if family == "gemma2" and not tied:
        pytest.skip("llama.cpp has no name for a Gemma-2's own output matrix")
    scale = (
        {"query_pre_attn_scalar": 12} if "gemma" in family else {}
    )  # as all of them but the 27 B: by the head's width
    made = make_tiny(family, tie_word_embeddings=tied, **scale)
    if not tied:
        torch.nn.init.normal_(made.model.lm_head.weight, std=0.1)
    loaded = load_model(write(made, family), device="cpu")
    assert (loaded.id, loaded.architecture, loaded.dtype) == ("tiny", made.architecture, "float32")
    assert loaded.model.config.tie_word_embeddings is tied
    for name in ("layers", "width", "vocab", "context"):
        assert getattr(loaded, name) == getattr(made, name)
    for length in (3, 60):  # beyond the window
        tokens = torch.arange(length)[None] * 7 % 300
        torch.testing.assert_close(loaded.model(tokens).logits, made.model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_the_model_can_be_saved_and_counts_as_any_other(write, llama, tmp_path):
    loaded = load_model(write(llama), device="cpu")
    assert not hasattr(loaded.model.config, "quantization_config")
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    again = load_model(tmp_path / "saved", device="cpu")
    for name, value in loaded.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    text = "the  7 and in 2024 <|im_end|>"
    assert again.tokenizer(text).input_ids == loaded.tokenizer(text).input_ids


def test_numbers_are_those_that_the_file_was_made_of(write, llama):
    config = load_model(write(llama, more={"llama.rope.freq_base": 123456.7}), device="cpu").model.config
    assert config.rms_norm_eps == llama.model.config.rms_norm_eps  # 1e-06, not 9.999999974752427e-07
    assert config.rope_parameters["rope_theta"] == 123456.7


def test_values_are_dequantised(write, llama):
    """Q8_0 keeps a value within half a step of its block of 32, the largest magnitude / 127, itself rounded to float16."""
    wide = torch.randn(300, 64, generator=torch.Generator().manual_seed(0)).numpy()
    made = gguf.quants.quantize(wide, gguf.GGMLQuantizationType.Q8_0)
    path = write(llama, name="blocks")
    file = open_gguf(path)
    kept = dict(file.tensors)
    path.write_bytes(path.read_bytes() + made.tobytes())
    kept["x"] = next(iter(kept.values()))._replace(
        name="x", shape=wide.shape, kind=8, start=path.stat().st_size - made.nbytes, size=made.nbytes
    )
    values = file._values(kept["x"])
    steps = np.abs(wide.reshape(300, 2, 32)).max(-1, keepdims=True) / 127
    assert (np.abs(values.reshape(300, 2, 32) - wide.reshape(300, 2, 32)) <= 0.57 * steps).all()


@pytest.mark.parametrize(
    ("pre", "normalizer", "split"),
    [
        ("smollm", None, [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]),
        ("gpt-2", None, [pre_tokenizers.ByteLevel(False)]),
        ("qwen2", normalizers.NFC(), None),
    ],
)
def test_text_is_cut_as_the_file_says(write, llama, pre, normalizer, split):
    loaded = load_model(write(llama, more={"tokenizer.ggml.pre": pre}), device="cpu")
    vocabulary = {token: number for number, token in enumerate([*LETTERS, *(m.replace(" ", "") for m in MERGES)])}
    plain = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in MERGES]))
    if normalizer is not None:
        plain.normalizer = normalizer
    plain.pre_tokenizer = pre_tokenizers.Sequence(split) if split else loaded.tokenizer.backend_tokenizer.pre_tokenizer
    for text in ("the  7 and 12  in", "cafe\u0301 there", "  5"):
        assert loaded.tokenizer(text).input_ids == plain.encode(text, add_special_tokens=False).ids, text


def test_digits_matter_and_so_does_the_normal_form(write, llama):
    """Without the corrections these would be other prompts."""
    cut = {
        pre: load_model(write(llama, name=pre, more={"tokenizer.ggml.pre": pre}), device="cpu").tokenizer
        for pre in ("smollm", "gpt-2", "qwen2")
    }
    assert cut["smollm"]("  5").input_ids != cut["gpt-2"]("  5").input_ids
    assert cut["qwen2"]("e\u0301").input_ids == cut["qwen2"]("\u00e9").input_ids
    assert cut["gpt-2"]("e\u0301").input_ids != cut["gpt-2"]("\u00e9").input_ids


@pytest.mark.parametrize(
    ("more", "begins"),
    [
        ({}, False),
        ({"tokenizer.ggml.add_bos_token": True}, True),
        ({"tokenizer.ggml.add_bos_token": False}, False),
        ({"tokenizer.ggml.pre": "llama-bpe"}, True),  # llama.cpp's default for Llama 3
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, False),
    ],
)
def test_a_text_begins_as_the_file_says(write, llama, more, begins):
    tokenizer = load_model(write(llama, more=more), device="cpu").tokenizer
    assert (tokenizer("the").input_ids[0] == tokenizer.bos_token_id) is begins
    assert tokenizer.convert_ids_to_tokens(tokenizer.bos_token_id) == "<|im_start|>"


def test_chat_template_and_end_tokens_come_from_the_file(write, llama):
    loaded = load_model(write(llama), device="cpu")
    said = loaded.tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False)
    assert said == "<|im_start|>the<|im_end|>"
    assert loaded.tokenizer(said).input_ids[0] == 298
    assert loaded.model.generation_config.eos_token_id == [297, 299]  # <|endoftext|> ends an answer, too
    named = load_model(write(llama, more={"tokenizer.ggml.eot_token_id": 5}), device="cpu")
    assert named.model.generation_config.eos_token_id == [5, 297, 299]


def test_an_answer_ends_at_an_end_token_of_the_file(write, llama):
    request = GenerationRequest((1, 2, 3), 12)
    with Engine(load_model(write(llama), device="cpu")) as engine:
        free = engine.submit(request).result(60).tokens
    with Engine(load_model(write(llama, more={"tokenizer.ggml.eot_token_id": free[3]}), device="cpu")) as engine:
        ended = engine.submit(request).result(60)
    assert (ended.tokens, ended.finish_reason) == (free[: free.index(free[3]) + 1], "eos_token")


def test_a_file_is_identified_by_its_content(write, llama, make_tiny, tmp_path):
    """As the pipeline and the server do it, so that an artifact finds the model it was made for again."""

    def identity(path: Path) -> Any:
        loaded = load_model(path, device="cpu")
        return identify(**identity_facts(loaded))

    path = write(llama)
    first = identity(path)
    assert (first.id, first.slug) == ("tiny", "tiny")
    assert str(tmp_path) not in str(first.manifest())
    assert identity(path) == first
    cut = identity(write(llama, more={"tokenizer.ggml.pre": "gpt-2"}))
    assert (cut.meaning.weights == first.meaning.weights, cut.meaning.tokenizer == first.meaning.tokenizer) == (
        True,
        False,
    )
    other = identity(write(make_tiny("llama", seed=1)))
    assert (other.meaning.weights == first.meaning.weights, other.meaning.tokenizer == first.meaning.tokenizer) == (
        False,
        True,
    )


def test_a_file_and_the_folder_saved_out_of_it_share_an_artifact(write, llama, tmp_path):
    """Made for the one, it is the other's as well, under the same conditions."""
    file = load_model(write(llama), device="cpu")
    file.model.save_pretrained(tmp_path / "saved" / "tiny")
    file.tokenizer.save_pretrained(tmp_path / "saved" / "tiny")
    folder = load_model(tmp_path / "saved" / "tiny", device="cpu")
    task = ServedTask("spam", ("ham", "spam"), (((7,),), ((8,),)), "{text}", "labels", "last", 1)
    made = plant(tmp_path / "store", identify(**identity_facts(file)), task, "residual", 0)
    for loaded in (file, folder):
        entries, defaults = snapshot([tmp_path / "store"], identify(**identity_facts(loaded)))
        assert [(entry.status, entry.reason) for entry in entries] == [("loaded", None)]
        assert under(entries, defaults, conditions_of(loaded))["spam"].path == made
        assert differences(entries[0].artifact.conditions, conditions_of(loaded)) == ()
    other = load_model(write(llama, more={"llama.rope.freq_base": 500.0}), device="cpu")
    [entry], _ = snapshot([tmp_path / "store"], identify(**identity_facts(other)))
    assert any("rope_theta" in phrase for phrase in differences(entry.artifact.conditions, conditions_of(other)))


def test_a_model_is_named_as_it_will_be_once_it_is_loaded(write, llama, tmp_path):
    path = write(llama)
    assert model_name(path) == model_name(str(path)) == load_model(path, device="cpu").id == "tiny"
    assert (model_name(tmp_path), model_name("owner/name")) == (tmp_path.name, "owner/name")
    (tmp_path / "odd.gguf").mkdir()
    assert model_name(tmp_path / "odd.gguf") == "odd.gguf"
    assert "holds no config.json" in refused(tmp_path / "odd.gguf")


# ------------------------------------------------------------------------------------------------ rotary positions


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_linear_scale_is_read(write, make_tiny, family):
    """Gemma 3 from 4 B on: the layers that see everything are scaled, those with a window are not."""
    linear = {"rope_type": "linear", "rope_theta": 5e5, "factor": 8.0}
    windowed = {"rope_type": "default", "rope_theta": 2e4}
    rope = {"full_attention": linear, "sliding_attention": windowed} if family == "gemma3" else linear
    made = make_tiny(
        family,
        rope_parameters=rope,
        tie_word_embeddings=True,
        **({"query_pre_attn_scalar": 12, "num_hidden_layers": 6} if family == "gemma3" else {}),
    )
    more = {
        f"{family}.rope.freq_base": 5e5,
        f"{family}.rope.scaling.type": "linear",
        f"{family}.rope.scaling.factor": 8.0,
    }
    more |= {"gemma3.rope.freq_base_swa": 2e4} if family == "gemma3" else {}
    loaded = load_model(write(made, family, more=more), device="cpu")
    assert loaded.model.config.rope_parameters == rope
    tokens = torch.arange(100)[None]
    torch.testing.assert_close(loaded.model(tokens).logits, made.model(tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_base_that_is_not_stated_is_llama_cpps(write, make_tiny):
    made = make_tiny("qwen3", tie_word_embeddings=True)
    path = write(made, "qwen3", more={"qwen3.rope.freq_base": None})
    assert load_model(path, device="cpu").model.config.rope_parameters["rope_theta"] == 10000.0


def test_a_phi3_of_one_context_is_read(write, make_tiny):
    """Its conversion always states the original context; only a longer one needs factors, which have no place."""
    made = make_tiny("phi3", tie_word_embeddings=True)
    more = {"phi3.rope.scaling.original_context_length": 512, "phi3.attention.sliding_window": 16}
    config = load_model(write(made, "phi3", more=more), device="cpu").model.config
    assert (config.original_max_position_embeddings, config.sliding_window) == (512, 16)
    factors = {"rope_factors_long.weight": np.ones(6, np.float32)}
    assert "rope_factors_long.weight" in refused(write(made, "phi3", tensors=factors))


def test_the_rope_of_llama_3_is_read_from_its_factors(write, make_tiny):
    scaled = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    made = make_tiny("llama", rope_parameters=scaled)
    plain = transformers.LlamaConfig(hidden_size=48, num_attention_heads=4, rope_parameters={"rope_theta": 500000.0})
    unscaled = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(plain).inv_freq
    factors = (unscaled / made.model.model.rotary_emb.inv_freq).numpy()  # as llama.cpp's conversion writes them
    loaded = load_model(write(made, tensors={"rope_freqs.weight": factors}), device="cpu")
    assert loaded.model.config.rope_parameters == scaled
    tokens = torch.arange(200)[None]
    torch.testing.assert_close(loaded.model(tokens).logits, made.model(tokens).logits)


# ------------------------------------------------------------------------------------------------ what is refused


def refused(path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        load_model(path, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"llama.rope.scaling.type": "yarn"}, "states a rope scaled as 'yarn'"),
        ({"llama.rope.scaling.type": "linear"}, "states a rope scaled as 'linear'"),
        ({"llama.rope.freq_base_swa": 1e4}, "states llama.rope.freq_base_swa"),
        ({"llama.rope.scaling.original_context_length": 64}, "states llama.rope.scaling.original_context_length"),
        ({"llama.context_length": None}, "does not state its sizes; convert"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "does not state its sizes; convert"),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.add_space_prefix": False}, "(llama, no space in front)"),
        ({"llama.expert_count": 8}, "states llama.expert_count"),
        ({"llama.attention.sliding_window": 64}, "states llama.attention.sliding_window"),
        ({"llama.attention.value_length": 24}, "states llama.attention.value_length"),
        ({"llama.logit_scale": 2.0}, "states llama.logit_scale"),
        ({"tokenizer.ggml.pre": "somebody's own"}, "cuts text in a way that is not known here"),
        ({"tokenizer.ggml.model": "bert"}, "cuts text in a way that is not known here"),
        ({"tokenizer.ggml.tokens": None}, "holds no tokenizer; convert"),
        ({"general.type": "adapter"}, "is of type 'adapter'; give the model's own file"),
        ({"split.count": 3}, "is one of 3 parts; join them with llama-gguf-split --merge"),
        ({"llama.attention.head_count": None}, "does not state its sizes; convert"),
    ],
)
def test_what_would_be_another_model_is_refused_by_name(write, llama, more, said):
    assert said in refused(write(llama, more=more))


def test_tensors_without_a_place_are_refused_by_name(write, llama):
    extra = {f"blk.{i}.attn_q.bias": np.zeros(48, np.float32) for i in range(4)}
    told = refused(write(llama, tensors=extra))
    assert "(blk.0.attn_q.bias, blk.1.attn_q.bias, blk.2.attn_q.bias, …; 4 in all); use its safetensors" in told
    assert "states rope_freqs.weight" in refused(write(llama, tensors={"rope_freqs.weight": np.full(6, 3, np.float32)}))


def test_a_tensor_that_the_file_lacks_is_missed(write, llama):
    assert "lacks model.layers.1.self_attn.k_proj.weight" in refused(write(llama, drop="blk.1.attn_k.weight"))


def test_other_architectures_are_refused(write, llama):
    told = refused(write(llama, more={"general.architecture": "mamba"}))
    assert "architecture 'mamba', which is not read from GGUF; use one of gemma2, gemma3" in told


def test_damaged_and_foreign_files_are_told(write, llama, tmp_path, capfd):
    whole = write(llama).read_bytes()
    for name, content in {
        "cut": whole[:-1000], "header": whole[:5000], "magic": whole[:4], "few": whole[:30], "words": whole[:20_000],
    }.items():  # fmt: skip
        (tmp_path / f"{name}.gguf").write_bytes(content)
        assert refused(tmp_path / f"{name}.gguf").endswith("is cut off or damaged; download it again"), name
    (tmp_path / "foreign.gguf").write_text("<html>not found</html>")
    assert "'foreign.gguf' is no GGUF file; download it again" in refused(tmp_path / "foreign.gguf")
    (tmp_path / "old.gguf").write_bytes(b"GGUF" + (1).to_bytes(4, "little") + whole[8:])
    assert "GGUF v1" in refused(tmp_path / "old.gguf")
    assert "no such file" in refused(tmp_path / "absent.gguf")
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_gguf_files_says_to_name_one(write, llama):
    path = write(llama)
    assert f"holds GGUF files; name one, such as {str(path)!r}" in refused(path.parent)


def test_without_the_package_it_says_what_to_install(write, llama, monkeypatch):
    path = write(llama)
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(
        "merasteer.engine.gguf.find_spec", lambda name: None if name == "gguf" else importlib.util.find_spec(name)
    )
    assert refused(path) == "model: 'tiny.gguf' needs the package gguf; pip install 'mera-server[gguf]'"


def test_every_architecture_that_is_read_is_served():
    from merasteer.engine.gguf_config import ARCHITECTURES
    from merasteer.engine.layers import ARCHITECTURES as SERVED

    for architecture, model_type in ARCHITECTURES.items():
        config = transformers.AutoConfig.for_model(model_type)
        assert transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__ in SERVED, architecture


def test_the_largest_gemma_scale_attention_by_their_width():
    """No key says so: llama.cpp knows the 27 B by its number of blocks."""
    facts = {
        "general.architecture": "gemma3", "gemma3.embedding_length": 5376, "gemma3.block_count": 62,
        "gemma3.attention.head_count": 32, "gemma3.attention.key_length": 128, "gemma3.context_length": 99,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6, "tokenizer.ggml.tokens": ["a"],
    }  # fmt: skip
    assert configuration("x", facts, rows=1, tied=True).query_pre_attn_scalar == 168
    assert configuration("x", {**facts, "gemma3.block_count": 18}, rows=1, tied=True).query_pre_attn_scalar == 128


# ------------------------------------------------------------------------------------------------- real models

ENGLISH = (
    "The quick brown fox jumps over the lazy dog. The capital of France is Paris, and the capital of Germany is Berlin. "
    "Water boils at one hundred degrees Celsius."
)


def test_smollm2_answers(real_model):
    loaded = load_model(real_model("SmolLM2"), device="cpu")
    assert (loaded.architecture, loaded.layers, loaded.width, loaded.context) == ("LlamaForCausalLM", 30, 576, 8192)
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.model.generation_config.eos_token_id) == [
        CONTROL[0],
        CONTROL[2],
    ]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.tokenizer.apply_chat_template(question, add_generation_prompt=True)["input_ids"]
    with Engine(loaded) as engine:
        answer = engine.submit(GenerationRequest(tuple(prompt), 24)).result(120)
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "eos_token"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "below", "ends", "facts"),
    [
        ("SmolLM2", 30, CONTROL[::2], {"rope_theta": 100_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}),
        ("gemma-3-270m", 25, ["<eos>", "<end_of_turn>"], {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "head_dim": 256, "sliding_window": 512}),
        ("Qwen2.5-Coder", 15, CONTROL[::2], {"rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}),
    ],
)  # fmt: skip
def test_real_models_read_english(real_model, name, below, ends, facts):
    loaded = load_model(real_model(name), device="cpu")
    tokens = torch.tensor([loaded.tokenizer(ENGLISH).input_ids])
    with torch.no_grad():
        assert float(loaded.model(tokens, labels=tokens).loss.exp()) < below
    assert loaded.tokenizer.convert_ids_to_tokens(loaded.model.generation_config.eos_token_id) == ends
    config = loaded.model.config.to_dict()
    rope = config["rope_parameters"]
    config["rope_theta"] = rope.get("full_attention", rope)["rope_theta"]
    assert {key: config[key] for key in facts} == facts
    assert bool(loaded.tokenizer.chat_template) is (name != "gemma-3-270m")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SmolLM2", "gemma-3-270m", "Qwen2.5-Coder"])
def test_real_models_are_those_of_the_library(real_model, name):
    """Value by value what `from_pretrained(gguf_file=…)` gives; the tokenizers differ only where ours is corrected."""
    path = real_model(name)
    ours = load_model(path, device="cpu")
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    assert set(model.state_dict()) == set(ours.model.state_dict())
    for key, value in model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[key]), key
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in (ENGLISH, "<|im_start|>user\nHi<|im_end|>\n", "Grüße, 12 Ä 世界\n\n  x", "\t\tif x:\n        return 1"):
        assert ours.tokenizer(text).input_ids == tokenizer(text).input_ids, text


@pytest.mark.slow
def test_mera_loads_a_file_quietly(real_model, tmp_path):
    """Nothing of the library reaches the terminal: no bar, no warning."""
    code = "import sys; from merasteer.engine import load_model; load_model(sys.argv[1], device='cpu')"
    ran = subprocess.run(
        [sys.executable, "-c", code, str(real_model("SmolLM2"))], capture_output=True, text=True, check=True
    )
    assert (ran.stdout, ran.stderr) == ("", "")
