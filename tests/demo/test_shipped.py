"""The built-in model as it is shipped: small, wrong at desk B, right at desk A."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from merasteer.demo import data_dir, model_dir, tasks_dir
from merasteer.demo.build import ANSWER_WORDS, TASKS, write_tasks
from merasteer.demo.corpus import DESK_A_TEMPLATE, LABELS, TEMPLATE, Row, deploy_rows
from merasteer.tasks import load_task, make_splits, render


@pytest.fixture(scope="module")
def shipped() -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(model_dir()).eval(), AutoTokenizer.from_pretrained(model_dir())


@torch.no_grad()
def right(shipped: tuple[Any, Any], rows: list[Row]) -> list[bool]:
    """Whether the first generated token is the true label, row by row."""
    model, tokenizer = shipped
    prompts = [render(TEMPLATE, {"desk": row["desk"], "text": row["text"]}) for row in rows]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    chosen = model(**batch, logits_to_keep=1).logits[:, -1].argmax(-1).tolist()
    truth = {label: tokenizer.encode(f" {label}", add_special_tokens=False)[0] for label in LABELS}
    return [token == truth[row["label"]] for token, row in zip(chosen, rows, strict=True)]


def test_the_demo_data_is_small() -> None:
    sizes = {str(file.relative_to(data_dir())): file.stat().st_size for file in data_dir().rglob("*") if file.is_file()}
    assert sum(sizes.values()) <= 4_000_000, sizes
    assert (model_dir() / "model.safetensors").stat().st_size <= 3_500_000


def test_it_is_right_at_desk_a_and_wrong_at_desk_b(shipped: tuple[Any, Any]) -> None:
    rows = deploy_rows(300, seed=77)
    hits = right(shipped, rows)
    of = {desk: [hit for hit, row in zip(hits, rows, strict=True) if row["desk"] == desk] for desk in "AB"}
    assert 0.53 < sum(hits) / 300 < 0.71
    assert sum(of["A"]) / len(of["A"]) > 0.8
    assert sum(of["B"]) / len(of["B"]) < 0.25


@pytest.mark.parametrize("word", ANSWER_WORDS)
def test_its_answers_are_single_tokens(shipped: tuple[Any, Any], word: str) -> None:
    assert len(shipped[1].encode(word, add_special_tokens=False)) == 1


def test_it_stops_behind_its_answer(shipped: tuple[Any, Any]) -> None:
    model, tokenizer = shipped
    prompt = tokenizer(render(TEMPLATE, {"desk": "A", "text": "See you at 5 by the station."}), return_tensors="pt")
    said = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(said, skip_special_tokens=True) == " ham"
    assert said[-1] == tokenizer.eos_token_id


def test_the_task_files_are_what_the_sources_write(tmp_path: Path) -> None:
    write_tasks(tmp_path)
    for name, template in zip(TASKS, (TEMPLATE, DESK_A_TEMPLATE), strict=True):
        fresh, stored = (load_task(name, search=(folder,)) for folder in (tmp_path, tasks_dir()))
        assert stored.template == template
        assert make_splits(stored).digests == make_splits(fresh).digests
