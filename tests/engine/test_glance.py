"""A glance at a model says what loading it says, without its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from merasteer.engine import LoadedModel, glance, load_model
from merasteer.engine.layers import family_of
from merasteer.errors import InvalidInput, MeraError


def test_it_sees_what_is_loaded(loaded: LoadedModel, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: pytest.fail("weights were loaded"))
    seen = glance(model_folder)
    assert (seen.architecture, seen.layers, seen.context) == (loaded.architecture, loaded.layers, loaded.context)
    assert seen.hook_points == tuple(family_of(loaded.model).sites)
    assert seen.tokenizer.encode("A g1 b2 ?") == loaded.tokenizer.encode("A g1 b2 ?")


@pytest.mark.parametrize("broken", ["weights", "tokenizer", "config", "architecture", "json"])
def test_it_refuses_what_loading_refuses(model_folder: Path, tmp_path: Path, broken: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    config = folder / "config.json"
    if broken == "weights":
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    elif broken == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif broken == "config":
        config.unlink()
    elif broken == "json":
        config.write_text("{")
    else:
        config.write_text(
            json.dumps(json.loads(config.read_text()) | {"model_type": "bert", "architectures": ["BertModel"]})
        )
    said = []
    for read in (glance, load_model):
        with pytest.raises(MeraError) as caught:
            read(folder)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_folder_that_is_not_there_is_no_hub_id() -> None:
    with pytest.raises(InvalidInput, match="no such folder"):
        glance("./no-such-folder")


def test_a_gguf_file_is_read_by_its_header(real_model: Callable[[str], Path]) -> None:
    seen = glance(real_model("SmolLM2"))
    assert (seen.architecture, seen.layers, seen.context) == ("LlamaForCausalLM", 30, 8192)
    assert len(seen.tokenizer) == 49152
