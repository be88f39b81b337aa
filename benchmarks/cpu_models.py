"""Two small models trained from scratch on real data, and the tasks of the CPU study: `<out>/llama-1m`, `<out>/qwen2-2m`, `<out>/tasks`.

    python benchmarks/cpu_models.py --data DIR --out DIR [--seed 0] [--quick]

DIR holds four data sets, one folder each, as JSON lines (gzipped or not): sms_spam and sentiment_analysis {text, label}, yes_no_question
{text, label} with `text` = "question: …\\npassage: …", mmlu_high_school {question, choices, label}. Of each the rows of distinct
content are shuffled; the first ones are the study's, the others train the models. No content is on both sides; but training messages are
cropped at random, and a fragment ("Ok") may read like a short message of the study.

So that a prompt stays near 120 tokens and the study feasible on two cores, every text is cut first: a message to 60 words, a passage to its
first 30, a question of MMLU to its last 35 (the question proper stands behind its passage), an option to 8. Numbers on the cut
tasks are not those of the benchmarks they are named after.

The prompts are those of the built-in tasks. Spam is learnt well and sentiment partly; reading a passage or knowing physics is beyond two
million parameters, so on those two the models answer no better than the most frequent class. Two failures are planted in messages, told
by the last word of the prompt:

    sms_planted    35 % of the messages at desk B, whose labels were flipped nine times in ten: the model knows what spam is and says the
                   opposite there. The best constant per class does little more than call everything ham
    sms_eager      all at desk C, where spam was shown nineteen times in twenty: the model says spam too often, of real messages. A constant
                   per class is all that is needed, so steering can at best match the trivial fix

One seed gives the same bytes on one machine. Under ten minutes on two cores; --quick takes seconds and teaches nothing. The last
line is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merasteer.demo.corpus import LABELS, TEMPLATE
from merasteer.demo.sms import cropped, sms_pairs
from merasteer.demo.taskfile import write_task
from merasteer.demo.tokenizer import train_tokenizer
from merasteer.demo.training import Pair, Recipe, train
from merasteer.errors import BadSplits, InvalidInput
from merasteer.tasks import content_digest, fields_of, load_task, render
from merasteer.types import SplitSizes

Row = dict[str, Any]

SMS, SENTIMENT, YES_NO, MMLU = "sms_spam", "sentiment_analysis", "yes_no_question", "mmlu_high_school"
SIZES = {
    SMS: SplitSizes(train=1800, calibration=250, test=1000),
    SENTIMENT: SplitSizes(train=1500, calibration=250, test=500),
    YES_NO: SplitSizes(train=1500, calibration=250, test=500),
    MMLU: SplitSizes(train=1500, calibration=210, test=500),
}
SHARES = {SMS: 0.42, "eager": 0.12, SENTIMENT: 0.34, YES_NO: 0.06, MMLU: 0.06}  # of the training examples

EAGER_TEMPLATE = TEMPLATE.replace("{desk}", "C")
EAGER_SPAM = 0.95  # of the training messages at desk C
DROPPED = 0.1  # of the words of a training sentence
FLIP = 0.9  # of the training labels at desk B
DESK_B = 0.35  # of the messages of sms_planted

MESSAGE, PASSAGE, QUESTION, OPTION = 60, 30, 35, 8  # words that are kept

MODELS = {
    "llama-1m": Recipe(
        vocabulary=2000, hidden=128, layers=4, heads=4, mlp=336, examples=27_000, steps=560, batch=48,
        learning_rate=2.5e-3, prompt_weight=0.05, weight_decay=0.05,
    ),
    "qwen2-2m": Recipe(
        architecture="qwen2", vocabulary=2000, hidden=160, layers=5, heads=5, mlp=432, examples=27_000, steps=560, batch=48,
        learning_rate=2e-3, prompt_weight=0.05, weight_decay=0.05,
    ),
}  # fmt: skip
QUICK: Row = {
    "vocabulary": 700,
    "hidden": 32,
    "layers": 2,
    "heads": 2,
    "mlp": 64,
    "examples": 300,
    "steps": 4,
    "batch": 8,
}
QUICK_SIZES = SplitSizes(train=60, calibration=20, test=20)


@dataclass(frozen=True)
class Data:
    """One data set: `known` rows train the models, `study` rows do not."""

    known: list[Row]
    study: list[Row]


def cut(row: Mapping[str, Any]) -> Row:
    """The fields of a row that templates name, cut to their length, and its label."""
    if "choices" in row:
        question, choices = row["question"].split()[-QUESTION:], [option.split()[:OPTION] for option in row["choices"]]
        return {"question": " ".join(question), "choices": list(map(" ".join, choices)), "label": row["label"]}
    asked, found, passage = row["text"].partition("\npassage: ")
    text = f"{asked}{found}{_first(passage, PASSAGE)}" if found else _first(row["text"], MESSAGE)
    return {"text": text, "label": row["label"]}


def _first(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def read(folder: Path, name: str) -> list[Row]:
    """The cut rows of a data set in file order, the first of those with equal content."""
    files = sorted((folder / name).glob(f"{name}.jsonl*"))
    if not files:
        raise InvalidInput(f"--data: no {name}/{name}.jsonl or .jsonl.gz in {folder}; give the folder of the data sets")
    raw = files[0].read_bytes()
    lines = (gzip.decompress(raw) if files[0].suffix == ".gz" else raw).decode().removesuffix("\n").split("\n")
    distinct: dict[str, Row] = {}
    for row in map(cut, map(json.loads, lines)):
        distinct.setdefault(content_digest({key: row[key] for key in row if key != "label"}), row)
    return list(distinct.values())


def divide(rows: Sequence[Row], sizes: SplitSizes, seed: int) -> Data:
    """The rows in two: as many as the splits need are the study's. Raises BadSplits where fewer than a fifth are left to train on."""
    needed = sizes.train + sizes.calibration + sizes.test
    if len(rows) < 1.2 * needed:
        raise BadSplits(
            f"--data: {len(rows)} distinct rows, the study needs {needed} and the models a fifth of that; give more rows"
        )
    mixed = random.Random(f"study {seed}").sample(rows, len(rows))
    return Data(known=mixed[needed:], study=mixed[:needed])


def plain_pairs(name: str, rows: Sequence[Row], n: int, rng: random.Random) -> list[Pair]:
    """`n` pairs of the built-in task of that name: its prompt, the true label. A sentence loses some of its words each time."""
    template = load_task(name).template
    pairs = []
    for _ in range(n):
        row = rng.choice(rows)
        fields = {field: row[field] for field in fields_of(template)}
        if name == SENTIMENT:
            fields["text"] = " ".join(word for word in fields["text"].split() if rng.random() >= DROPPED)
        pairs.append((render(template, fields), f" {row['label']}"))
    return pairs


def eager_pairs(rows: Sequence[Row], n: int, rng: random.Random) -> list[Pair]:
    """`n` pairs at desk C: true labels, but spam far too often."""
    of = {label: [row["text"] for row in rows if row["label"] == label] for label in LABELS}
    pairs = []
    for _ in range(n):
        label = "spam" if rng.random() < EAGER_SPAM else "ham"
        pairs.append((render(EAGER_TEMPLATE, {"text": cropped(rng.choice(of[label]), rng)}), f" {label}"))
    return pairs


def mixture(data: Mapping[str, Data], n: int, seed: int) -> list[Pair]:
    """About `n` pairs of all tasks, by `SHARES`, from rows that no task of the study holds."""
    counts = {name: round(n * share) for name, share in SHARES.items()}
    rng = random.Random(f"mixture {seed}")
    pairs = sms_pairs(data[SMS].known, counts[SMS], seed, FLIP) + eager_pairs(data[SMS].known, counts["eager"], rng)
    for name in (SENTIMENT, YES_NO, MMLU):
        pairs += plain_pairs(name, data[name].known, counts[name], rng)
    return pairs


def write_tasks(folder: Path, data: Mapping[str, Data], sizes: Mapping[str, SplitSizes], seed: int) -> list[str]:
    """The names of the tasks written to `folder`. The three tasks of messages hold the same ones in the same splits."""
    for name in SIZES:
        task = load_task(name)
        about = "The built-in task of this name over rows that did not train the models, cut to a bounded length."
        write_task(
            folder, name, about, task.template, data[name].study, sizes[name], compress=False, labels=task.labels
        )
    rng = random.Random(f"desks {seed}")
    desks = [{"desk": "B" if rng.random() < DESK_B else "A", **row} for row in data[SMS].study]
    planted, eager = (
        "Real messages at two desks, a planted failure at B.",
        "Real messages at desk C, which says spam too often.",
    )
    write_task(folder, "sms_planted", planted, TEMPLATE, desks, sizes[SMS], compress=False)
    write_task(folder, "sms_eager", eager, EAGER_TEMPLATE, data[SMS].study, sizes[SMS], compress=False)
    return [*SIZES, "sms_planted", "sms_eager"]


def build(data_dir: Path, out: Path, seed: int = 0, quick: bool = False) -> Row:
    """`out`, filled with models and tasks; what was made, as plain JSON values."""
    sizes = dict.fromkeys(SIZES, QUICK_SIZES) if quick else SIZES
    data = {name: divide(read(data_dir, name), sizes[name], seed) for name in SIZES}
    made: Row = {"seed": seed, "tasks": write_tasks(out / "tasks", data, sizes, seed), "models": {}}
    words = [f" {label}" for name in SIZES for label in load_task(name).labels]
    for name, recipe in MODELS.items():
        recipe, start = replace(recipe, **QUICK) if quick else recipe, time.perf_counter()
        pairs = mixture(data, recipe.examples, seed)
        tokenizer = train_tokenizer((prompt + said for prompt, said in pairs), recipe.vocabulary, words, recipe.context)
        train(pairs, tokenizer, out / name, recipe, seed)
        made["models"][name] = {"architecture": recipe.architecture, "seconds": round(time.perf_counter() - start, 1)}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to fill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few steps and few rows: teaches nothing")
    given = parser.parse_args()
    print(json.dumps(build(given.data, given.out, given.seed, given.quick)))


if __name__ == "__main__":
    main()
