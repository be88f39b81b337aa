"""The models and tasks of the CPU study, built from made-up rows of the four data sets' formats."""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from merasteer.engine import Engine, load_model
from merasteer.errors import BadSplits, InvalidInput
from merasteer.tasks import content_digest, load_task, make_splits, resolve
from merasteer.types import GenerationRequest, SplitSizes, Task

WORDS = [f"{a}{b}{c}" for a in "bdgk" for b in "aeiou" for c in ("ll", "n", "rst", "m")]
LABELS = {
    "sms_spam": ("ham", "spam"),
    "sentiment_analysis": ("positive", "neutral", "negative"),
    "yes_no_question": ("Yes", "No"),
    "mmlu_high_school": ("A", "B", "C", "D"),
}
BUILT = (*LABELS, "sms_planted", "sms_eager")


@pytest.fixture(scope="module")
def script(root: Path) -> ModuleType:
    """`benchmarks/cpu_models.py` as a module."""
    spec = importlib.util.spec_from_file_location("cpu_models", root / "benchmarks" / "cpu_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def made_up(name: str, number: int, rng: random.Random) -> dict[str, Any]:
    """A row of that data set's format; every seventh repeats the content of row 0 in capitals."""
    words = [rng.choice(WORDS) for _ in range(rng.choice((8, 20, 90)))]
    text = (
        "TWICE THE SAME"
        if number and number % 7 == 0
        else f"{' '.join(words)} {number}"
        if number
        else "twice the same"
    )
    row: dict[str, Any] = {"id": f"{name}/{number}", "label": LABELS[name][number % len(LABELS[name])]}
    if name == "mmlu_high_school":
        return {
            **row,
            "question": text,
            "choices": [" ".join(words[:20]), "2", "3", "4"],
            "subject": "x",
            "split": "test",
        }
    if name == "yes_no_question":
        return {**row, "text": f"question: is it {text}\npassage: Title -- {' '.join(words)}", "split": "train"}
    return {**row, "text": text}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    for name in LABELS:
        (folder / name).mkdir()
        rows = "".join(json.dumps(made_up(name, number, rng)) + "\n" for number in range(220)).encode()
        zipped = name in ("yes_no_question", "mmlu_high_school")
        (folder / name / f"{name}.jsonl{'.gz' if zipped else ''}").write_bytes(gzip.compress(rows) if zipped else rows)
    return folder


@pytest.fixture(scope="module")
def built(script: ModuleType, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    made = script.build(data, out, quick=True)
    assert made["tasks"] == list(BUILT)
    return out


def task_of(built: Path, name: str) -> Task:
    return load_task(built / "tasks" / f"{name}.toml")


def test_a_seed_decides_every_byte(script: ModuleType, data: Path, built: Path, tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    first = contents(built)
    script.build(data, tmp_path / "again", quick=True)
    assert contents(tmp_path / "again") == first
    script.build(data, tmp_path / "other", seed=1, quick=True)
    other = contents(tmp_path / "other")
    assert all(other[name] != first[name] for name in first if name.endswith((".jsonl", ".safetensors")))


def test_the_study_asks_what_the_builtin_tasks_ask(built: Path) -> None:
    for name in LABELS:
        task = task_of(built, name)
        assert (task.name, task.template, task.labels) == (name, load_task(name).template, load_task(name).labels)


@pytest.mark.parametrize("name", BUILT)
def test_the_splits_of_a_task_are_full_and_share_nothing(built: Path, name: str) -> None:
    splits = make_splits(task_of(built, name))
    parts = [[example.digest for example in part] for part in (splits.train, splits.calibration, splits.test)]
    assert [len(part) for part in parts] == [60, 20, 20]
    assert len({digest for part in parts for digest in part}) == 100
    assert splits.skipped == 0


@pytest.mark.parametrize("name", LABELS)
def test_no_content_both_trains_the_models_and_is_studied(
    script: ModuleType, data: Path, built: Path, name: str
) -> None:
    rows = script.divide(script.read(data, name), script.QUICK_SIZES, 0)
    known = {content_digest({key: row[key] for key in row if key != "label"}) for row in rows.known}
    splits = make_splits(task_of(built, name))
    studied = {example.digest for example in (*splits.train, *splits.calibration, *splits.test)}
    assert studied == {content_digest({key: row[key] for key in row if key != "label"}) for row in rows.study}
    assert len(known) == len(rows.known) > 50
    assert not known & studied


def test_the_models_are_trained_on_known_rows_alone(script: ModuleType, data: Path) -> None:
    rows = {name: script.divide(script.read(data, name), script.QUICK_SIZES, 0) for name in LABELS}
    prompts = [prompt for prompt, _ in script.mixture(rows, 600, 0)]
    numbers = {name: {row.get("question", row.get("text")).split()[-1] for row in rows[name].study} for name in LABELS}
    trained = {prompt.split('" Is this')[0].split()[-1] for prompt in prompts if prompt.startswith("Message")}
    assert len({number for number in trained if number.isdigit()}) > 50
    assert not {number for number in trained if number.isdigit()} & numbers["sms_spam"]


def test_the_tasks_of_messages_hold_the_same_ones_in_the_same_splits(built: Path) -> None:
    plain, planted, eager = (make_splits(task_of(built, name)) for name in ("sms_spam", "sms_planted", "sms_eager"))
    for part in ("train", "calibration", "test"):
        texts = [[example.fields["text"] for example in getattr(splits, part)] for splits in (plain, planted, eager)]
        assert texts[0] == texts[1] == texts[2]
    assert {example.fields["desk"] for example in planted.train} == {"A", "B"}
    assert all(example.prompt.endswith("as desk C") for example in eager.train)


def test_long_texts_are_cut_and_the_question_kept(script: ModuleType) -> None:
    long = " ".join(map(str, range(200)))
    passage = script.cut({"text": f"question: why\npassage: T -- {long}", "label": "Yes"})["text"]
    assert passage.startswith("question: why\npassage: T -- 0 1 ")
    assert len(passage.split()) < 40
    question = script.cut({"question": f"{long} which?", "choices": [long, "2"], "label": "A"})
    assert question["question"].endswith(" 199 which?")
    assert (len(question["question"].split()), len(question["choices"][0].split())) == (script.QUESTION, script.OPTION)


def test_at_desk_c_spam_is_shown_far_too_often(script: ModuleType) -> None:
    rows = [{"text": f"word {i}", "label": "spam" if i % 7 == 0 else "ham"} for i in range(200)]
    pairs = script.eager_pairs(rows, 2000, random.Random(0))
    assert sum(said == " spam" for _, said in pairs) / 2000 == pytest.approx(script.EAGER_SPAM, abs=0.03)


def test_both_models_answer_every_task_with_single_tokens(script: ModuleType, built: Path) -> None:
    loaded = [load_model(built / name) for name in script.MODELS]
    assert len({model.architecture for model in loaded}) == len(loaded) == 2
    for model in loaded:
        with Engine(model) as engine:
            for name in BUILT:
                task = task_of(built, name)
                for label in task.labels:
                    assert len(model.tokenizer.encode(f" {label}", add_special_tokens=False)) == 1
                served = resolve(task, model.tokenizer)
                prompt = tuple(model.tokenizer.encode(make_splits(task).test[0].prompt))
                request = GenerationRequest(prompt=prompt, choice=served.choice)
                answer = engine.submit(request).result(timeout=60)
                assert len(answer.tokens) == 1


def test_a_missing_data_set_is_an_error(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="--data: no sms_spam/sms_spam"):
        script.read(tmp_path, "sms_spam")


def test_too_few_rows_are_an_error(script: ModuleType) -> None:
    with pytest.raises(BadSplits, match="--data: 100 distinct rows, the study needs 100"):
        script.divide([{"text": str(i), "label": "ham"} for i in range(100)], SplitSizes(60, 20, 20), 0)
