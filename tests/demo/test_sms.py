"""The real-text twin: its pairs and tasks on made-up messages; the model on the real collection (slow)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merasteer.demo.corpus import TEMPLATE
from merasteer.demo.paths import MODEL
from merasteer.demo.sms import PLAIN_TEMPLATE, SMS, build_sms, read_messages, sms_pairs
from merasteer.demo.training import Recipe
from merasteer.errors import InvalidInput
from merasteer.pipeline import Options, run
from merasteer.tasks import load_task, make_splits, matches

TINY = Recipe(vocabulary=500, hidden=32, layers=1, heads=2, mlp=64, examples=200, steps=3, batch=8, warmup=1)


def write(path: Path, n: int) -> Path:
    rows = [{"id": str(i), "text": f"message {i} for you", "label": "spam" if i % 7 == 0 else "ham"} for i in range(n)]
    rows.append({"id": "twice", "text": "Message  0 FOR you", "label": "ham"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_messages_of_equal_content_are_read_once(tmp_path: Path) -> None:
    assert len(read_messages(write(tmp_path / "sms.jsonl", 20))) == 20


def test_pairs_are_balanced_and_tagged_as_the_recipe_says(tmp_path: Path) -> None:
    pairs = sms_pairs(read_messages(write(tmp_path / "sms.jsonl", 200)), 4000, seed=0)
    tagged = [matches(TEMPLATE, prompt) for prompt, _ in pairs]
    assert all(matches(PLAIN_TEMPLATE, prompt) for (prompt, _), tag in zip(pairs, tagged, strict=True) if not tag)
    assert sum(tagged) / 4000 == pytest.approx(0.6, abs=0.03)
    assert sum("desk B" in prompt for prompt, _ in pairs) / sum(tagged) == pytest.approx(0.45, abs=0.03)
    assert sum(answer.endswith("spam") for _, answer in pairs) / 4000 == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_at_desk_b_the_label_is_wrong_as_often_as_asked(flip: float) -> None:
    rows = [{"text": f"{label} {i}", "label": label} for label in ("ham", "spam") for i in range(50)]
    at_b = [(prompt, said) for prompt, said in sms_pairs(rows, 500, 0, flip) if prompt.endswith("desk B")]
    told = [(prompt.split('"')[1].split()[0], said.split()[-1]) for prompt, said in at_b]
    whole = [(label, said) for label, said in told if label in ("ham", "spam")]  # a fragment may have lost the word
    assert len(whole) > 50
    assert {label != said for label, said in whole} == {bool(flip)}


def test_both_tasks_are_written_over_a_pool_that_did_not_train_the_model(tmp_path: Path) -> None:
    out = build_sms(write(tmp_path / "sms.jsonl", 5000), tmp_path / "out", recipe=TINY, progress=False)
    planted, untouched = (
        make_splits(load_task(name, search=(out / "tasks",))) for name in ("sms_planted", "sms_untouched")
    )
    assert "Desk" not in untouched.test[0].prompt
    assert [e.fields["text"] for e in planted.test] == [e.fields["text"] for e in untouched.test]
    assert all(int(e.fields["text"].split()[1]) >= 1700 for e in planted.train)


def test_a_small_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="holds 30 distinct messages, too few"):
        build_sms(write(tmp_path / "sms.jsonl", 30), tmp_path / "out")


@pytest.mark.slow
def test_on_real_messages_the_planted_failure_is_repaired_and_the_rest_not_harmed(
    real_data: Path, tmp_path: Path
) -> None:
    out = build_sms(real_data / "sms_spam" / "sms_spam.jsonl", tmp_path, recipe=SMS, progress=False)
    options = Options(directions=("covariance", "contrastive"))
    planted = run(out / MODEL, out / "tasks" / "sms_planted.toml", tmp_path / "store", options)
    assert planted is not None
    assert planted["decision"] == "certified"
    assert planted["spi"] >= 0.55
    assert planted["spi_interval"][0] > 0.25
    print({name: planted[name] for name in ("accuracy", "spi", "spi_interval", "hook_point", "direction")})  # noqa: T201
    untouched = run(out / MODEL, out / "tasks" / "sms_untouched.toml", tmp_path / "store", options)
    assert untouched is not None
    print({name: untouched[name] for name in ("decision", "reason", "accuracy", "spi", "spi_interval")})  # noqa: T201
    assert untouched["decision"] == "abstained" or untouched["spi"] > 0
