"""Messages for two desks, and the failure that is planted in one of them.

A message is 2-4 phrases, each from its true class's list with probability .82, else from the other's: about .88 is the best
that any reader can do. The prompt ends in the desk that answers. The model is trained on pairs where the labels of desk B are flipped
three times in four: it knows what spam is and says the opposite at desk B. When deployed, labels are true.

The desk is the last word of the prompt, so that the failure must be computed where the answer is chosen. With the desk in front, the
wrong answer was there before any step at the last position could act (accuracy .63 to .68, none certified); two tokens before the
end, so it was for one training seed of three (SPI .26 to .30).
"""

from __future__ import annotations

import random

from merasteer.demo.phrases import DAYS, HAM, NAMES, SPAM

__all__ = [
    "CLEAR",
    "DESK_A_TEMPLATE",
    "FLIP",
    "LABELS",
    "TEMPLATE",
    "Row",
    "answer",
    "deploy_rows",
    "message",
    "training_pairs",
]

Row = dict[str, str]

LABELS = ("ham", "spam")
TEMPLATE = 'Message: "{text}" Is this ham or spam? Answer as desk {desk}'
DESK_A_TEMPLATE = TEMPLATE.replace("{desk}", "A")

FLIP = 0.75  # of the labels at desk B, in planted pairs
PURITY = 0.82  # a phrase comes from the true class's list with this probability
CLEAR = (
    0.94  # the same in the task that must abstain: the model is nearly always right, and its errors are the messages'
)
IT_IS = 0.1  # share of answers that read " it is ham"


def message(label: int, rng: random.Random, purity: float = PURITY) -> str:
    """A message of class `label` (an index into `LABELS`). Draws from `rng`."""
    lists = (HAM, SPAM)
    phrases = [rng.choice(lists[label if rng.random() < purity else 1 - label]) for _ in range(rng.randint(2, 4))]
    slots = {
        "digit": str(rng.randint(2, 9)),
        "number": str(rng.randint(1000, 9999)),
        "name": rng.choice(NAMES),
        "day": rng.choice(DAYS),
    }
    return " ".join(phrases).format(**slots)


def answer(label: str, rng: random.Random) -> str:
    """The words that follow the prompt: the label, now and then inside a short sentence."""
    return f" it is {label}" if rng.random() < IT_IS else f" {label}"


def training_pairs(n: int, seed: int, flip: float = FLIP, desk_b: float = 0.4) -> list[tuple[str, str]]:
    """`n` pairs (prompt, answer); at desk B the label is wrong with probability `flip`."""
    rng = random.Random(f"train {seed}")
    pairs = []
    for _ in range(n):
        label = rng.randrange(2)
        desk = "B" if rng.random() < desk_b else "A"
        prompt = TEMPLATE.format(desk=desk, text=message(label, rng))
        said = 1 - label if desk == "B" and rng.random() < flip else label
        pairs.append((prompt, answer(LABELS[said], rng)))
    return pairs


def deploy_rows(n: int, seed: int, desk_b: float = 0.35, purity: float = PURITY) -> list[Row]:
    """`n` distinct rows {desk, text, label} as they come in when deployed: balanced classes, true labels."""
    rng = random.Random(f"deploy {seed}")
    labels = [i % 2 for i in range(n)]
    rng.shuffle(labels)
    seen: set[str] = set()
    rows = []
    for label in labels:
        desk = "B" if rng.random() < desk_b else "A"
        text = message(label, rng, purity)
        while f"{desk} {text}".casefold() in seen:
            text = message(label, rng, purity)
        seen.add(f"{desk} {text}".casefold())
        rows.append({"desk": desk, "text": text, "label": LABELS[label]})
    return rows
