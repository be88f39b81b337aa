"""Training: a run leaves what `from_pretrained` reads, the same bytes each time, and the process as it was."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from merasteer.demo import training
from merasteer.demo.build import TASKS, build_model
from merasteer.demo.paths import MODEL
from merasteer.demo.taskfile import write_task
from merasteer.demo.training import Recipe
from merasteer.errors import BadSplits
from merasteer.tasks import load_task, make_splits
from merasteer.types import SplitSizes

TINY = Recipe(vocabulary=500, hidden=32, layers=2, heads=2, mlp=64, examples=400, steps=6, batch=8, warmup=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("built"), seed=0, recipe=TINY, progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_one_seed_gives_the_same_bytes_and_leaves_the_process_as_it_was(built: Path, tmp_path: Path) -> None:
    torch.rand(3)  # what was drawn before must not matter
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    again = build_model(tmp_path, seed=0, recipe=TINY, progress=False)
    assert contents(again) == contents(built)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_seed_gives_another_model_and_other_rows(built: Path, tmp_path: Path) -> None:
    other = contents(build_model(tmp_path, seed=1, recipe=TINY, progress=False))
    for name in (f"{MODEL}/model.safetensors", *(f"tasks/{task}.jsonl.gz" for task in TASKS)):
        assert other[name] != contents(built)[name]


def test_the_folder_holds_a_float32_model(built: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(built / MODEL)
    config = json.loads((built / MODEL / "config.json").read_text())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert config["tie_word_embeddings"]
    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (2, 32, 500)
    assert model.generation_config.eos_token_id == config["eos_token_id"]


def test_another_architecture_of_the_same_sizes(tmp_path: Path) -> None:
    other = build_model(tmp_path, recipe=replace(TINY, architecture="qwen2", steps=1), progress=False)
    model = AutoModelForCausalLM.from_pretrained(other / MODEL)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert (model.config.num_hidden_layers, model.config.hidden_size, model.config.vocab_size) == (2, 32, 500)


def test_the_tasks_load_and_fill_their_splits(built: Path) -> None:
    for name in TASKS:
        tomllib.loads((built / "tasks" / f"{name}.toml").read_text())
        splits = make_splits(load_task(name, search=(built / "tasks",)))
        assert (len(splits.train), len(splits.calibration), len(splits.test)) == (2000, 250, 1000)
        assert splits.skipped == 0


def test_loss_counts_answers_whole_prompts_little_and_padding_not() -> None:
    tokens, weights = training._pad([([5, 6, 7], [8, 1]), ([5], [8, 1])], prompt_weight=0.1)
    assert tokens.tolist() == [[5, 6, 7, 8, 1], [5, 8, 1, 0, 0]]
    assert torch.equal(weights, torch.tensor([[0.1, 0.1, 0.1, 1.0, 1.0], [0.1, 1.0, 1.0, 0.0, 0.0]]))


def test_rate_warms_up_then_falls_to_its_end() -> None:
    recipe = Recipe(steps=100, warmup=10, learning_rate=1.0, final_rate=0.1)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert all(after < before for before, after in pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("template", ["{text}\nYes or No?", 'It\'s "{text}"?\tSay so', '"{text}": a \\ b'])
def test_a_template_and_labels_of_any_kind_come_back(tmp_path: Path, template: str) -> None:
    rows = [{"text": str(i), "label": "No"} for i in range(3)]
    path = write_task(tmp_path, "x", "", template, rows, SplitSizes(1, 1, 1), compress=False, labels=("Yes", "No"))
    task = load_task(path)
    assert (task.template, task.labels, task.variants) == (template, ("Yes", "No"), ((" Yes",), (" No",)))


def test_too_few_rows_for_the_splits_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadSplits, match="rows: 1 given, the splits of x need 3"):
        write_task(tmp_path, "x", "", "{text}", [{"text": "a", "label": "ham"}], SplitSizes(1, 1, 1))
