"""docs/models.md: its families are the hook table's, its figures follow from the configurations, its commands are accepted."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers
import typer
from mera_server.cli import app
from transformers import Gemma2Config, LlamaConfig, Qwen2Config

from merasteer.engine import EngineConfig
from merasteer.engine.gguf_config import ARCHITECTURES as GGUF
from merasteer.engine.layers import ARCHITECTURES
from merasteer.tasks import load_task

PAPER = {  # as the repositories' config.json have them
    "meta-llama/Llama-3.2-1B": LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    ),
    "google/gemma-2-2b": Gemma2Config(
        vocab_size=256_000, hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, num_attention_heads=8,
        num_key_value_heads=4, head_dim=256,
    ),
    "Qwen/Qwen2.5-3B": Qwen2Config(
        vocab_size=151_936, hidden_size=2048, intermediate_size=11_008, num_hidden_layers=36, num_attention_heads=16,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
}  # fmt: skip
TUNED = {f"{name}{'-it' if 'gemma' in name else '-Instruct'}": config for name, config in PAPER.items()}


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_family_is_listed_with_its_hook_points(page: str) -> None:
    rows = re.findall(r"^\| [^|`]+ \| `(\w+)` \| (.*?) \|$", page, re.MULTILINE)
    assert {name for name, _ in rows} == set(ARCHITECTURES)
    everywhere = re.findall(r"`(\w+)`", rows[0][1])
    for name, points in rows[1:]:
        listed = everywhere if points.startswith("the same") else re.findall(r"`(\w+)`", points)
        assert set(listed) == set(ARCHITECTURES[name].sites), name


def test_the_architectures_that_are_read_from_gguf_are_listed(page: str) -> None:
    listed = re.search(r"Read are the architectures (.*?), in every quantisation", page, re.DOTALL)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(GGUF)


@pytest.mark.parametrize("name", [*PAPER, *TUNED])
def test_memory_follows_from_the_configuration(page: str, name: str) -> None:
    config = (PAPER | TUNED)[name]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    count = sum(parameter.numel() for parameter in model.parameters())  # a tied embedding counts once
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 2
    cache = per_token * EngineConfig().cache_tokens
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    gated, *figures = [cell.strip() for cell in row.split("|")[2:-1]]
    assert gated == ("no" if name.startswith("Qwen") else "yes")
    assert figures == [f"{count / 1e9:.2f} B", *(f"{size / 1e9:.1f} GB" for size in (2 * count, 4 * count, cache))]
    assert f"{EngineConfig().cache_tokens:,} tokens" in page


def test_every_model_of_the_paper_has_its_commands_and_they_are_accepted(page: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [
        line
        for block in re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        for line in block.splitlines()
        if "mera " in line
    ]
    asked: dict[str, list[str]] = {"run": [], "serve": []}
    for line in lines:
        verb, *arguments = shlex.split(line)[1:]
        parsed = commands[verb].make_context(verb, arguments, resilient_parsing=False).params
        asked[verb].append(parsed["model"])
        assert parsed["dtype"] in (("auto", None) if parsed["model"].endswith(".gguf") else ("bfloat16",))
        assert str(parsed["out" if verb == "run" else "store"]) == "my_store"
        if verb == "run":
            load_task(parsed["task"])
    assert asked["run"] == asked["serve"]
    assert sorted(asked["run"]) == sorted([*PAPER, *TUNED, "SmolLM2-135M-Instruct-Q4_1.gguf"])
    for verb in asked:
        assert {"dtype", "device", "device_map"} <= {parameter.name for parameter in commands[verb].params}
