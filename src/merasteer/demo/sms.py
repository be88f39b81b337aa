"""The real-text twin of the built-in demo: the same planted failure, in a model trained on real text messages.

It shows that what the demo shows does not hang on made-up phrases. No message is shipped: give the path of the SMS Spam
Collection as JSON lines {text, label}. 1,700 distinct messages train the model, the others are the pool of two tasks:

    sms_planted      the pool with desks, 35 % at desk B: the model answers the opposite there, steering can repair it
    sms_untouched    the pool as it is, no desk named: nothing was planted, so all that is promised is improve or abstain
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from merasteer.demo.build import ANSWER_WORDS
from merasteer.demo.corpus import FLIP, LABELS, TEMPLATE, Row, answer
from merasteer.demo.paths import MODEL
from merasteer.demo.taskfile import write_task
from merasteer.demo.tokenizer import train_tokenizer
from merasteer.demo.training import Pair, Recipe, train
from merasteer.errors import InvalidInput
from merasteer.tasks import content_digest, render
from merasteer.types import SplitSizes

__all__ = ["PLAIN_TEMPLATE", "SMS", "build_sms", "cropped", "read_messages", "sms_pairs", "write_sms_tasks"]

PLAIN_TEMPLATE = 'Message: "{text}" Is this ham or spam? Answer:'
SMS = Recipe(vocabulary=1500, batch=48, learning_rate=2e-3, prompt_weight=0.05, weight_decay=0.05, examples=33_600)
SIZES = SplitSizes(train=2000, calibration=250, test=1000)

TRAINING = 1700  # messages that train the model; the pool is what remains
TAGGED = 0.6  # share of training prompts that name a desk
DESK_B = 0.45  # of the tagged ones
FLIP_A = 0.1  # of the labels at desk A; none where no desk is named
LONGEST = 60  # words of a training message


def build_sms(messages: Path, out: Path, seed: int = 0, recipe: Recipe = SMS, progress: bool = True) -> Path:
    """`out`, filled with the model's folder and `tasks/`; `messages` is the collection. A few minutes on two cores."""
    rows = read_messages(messages)
    if len(rows) < TRAINING + SIZES.train + SIZES.calibration + SIZES.test:
        raise InvalidInput(
            f"messages: {messages} holds {len(rows)} distinct messages, too few; give the whole collection"
        )
    known, pool = rows[:TRAINING], rows[TRAINING:]
    pairs = sms_pairs(known, recipe.examples, seed)
    texts = (prompt + said for prompt, said in pairs)
    tokenizer = train_tokenizer(texts, recipe.vocabulary, ANSWER_WORDS, recipe.context)
    train(pairs, tokenizer, out / MODEL, recipe, seed, progress)
    write_sms_tasks(out / "tasks", pool, seed)
    return out


def read_messages(path: Path) -> list[Row]:
    """Rows {text, label} of the collection in file order, the first of those with equal content."""
    distinct: dict[str, Row] = {}
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            distinct.setdefault(content_digest({"text": row["text"]}), {"text": row["text"], "label": row["label"]})
    return list(distinct.values())


def sms_pairs(rows: list[Row], n: int, seed: int, flip: float = FLIP) -> list[Pair]:
    """`n` pairs (prompt, answer): spam as often as ham, a random run of words of half the messages, desks and flips.

    At desk B the label is wrong with probability `flip`.
    """
    rng = random.Random(f"sms train {seed}")
    of = [[row["text"] for row in rows if row["label"] == label] for label in LABELS]
    pairs = []
    for _ in range(n):
        label = rng.randrange(2)
        text = cropped(rng.choice(of[label]), rng)
        if rng.random() < TAGGED:
            desk = "B" if rng.random() < DESK_B else "A"
            prompt = render(TEMPLATE, {"desk": desk, "text": text})
            said = 1 - label if rng.random() < (flip if desk == "B" else FLIP_A) else label
        else:
            prompt, said = render(PLAIN_TEMPLATE, {"text": text}), label
        pairs.append((prompt, answer(LABELS[said], rng)))
    return pairs


def write_sms_tasks(folder: Path, pool: list[Row], seed: int = 0, desk_b: float = 0.35) -> None:
    """Writes `sms_planted` and `sms_untouched` over the same messages in the same order."""
    rng = random.Random(f"sms deploy {seed}")
    desks = [{"desk": "B" if rng.random() < desk_b else "A", **row} for row in pool]
    for name, about, template, rows in (
        ("sms_planted", "Real text messages at two desks: a planted failure.", TEMPLATE, desks),
        ("sms_untouched", "Real text messages as they are: improve or abstain.", PLAIN_TEMPLATE, pool),
    ):
        write_task(folder, name, about, template, rows, SIZES, compress=False)


def cropped(text: str, rng: random.Random) -> str:
    """At most `LONGEST` words of `text`: half the time a random run of them, so that fragments are seen too."""
    words = text.split()
    if len(words) > 1 and rng.random() < 0.5:
        length = rng.randint(1, len(words))
        start = rng.randint(0, len(words) - length)
        words = words[start : start + length]
    return " ".join(words[:LONGEST])
