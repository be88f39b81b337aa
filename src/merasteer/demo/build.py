"""Making the built-in demo from nothing: corpus, tokenizer, model and task files.

Artifacts are not made here: run the pipeline on `<out>/mera-demo` with each task in `<out>/tasks` and publish to `<out>/store`.
"""

from __future__ import annotations

from pathlib import Path

from merasteer.demo.corpus import CLEAR, DESK_A_TEMPLATE, LABELS, TEMPLATE, deploy_rows, training_pairs
from merasteer.demo.paths import MODEL
from merasteer.demo.taskfile import write_task
from merasteer.demo.tokenizer import train_tokenizer
from merasteer.demo.training import Recipe, train
from merasteer.types import SplitSizes

__all__ = ["ANSWER_WORDS", "TASKS", "build_model", "write_tasks"]

TASKS = ("demo_spam", "demo_desk_a")
ANSWER_WORDS = (*(f" {label}" for label in LABELS), " it")


def build_model(out: Path, seed: int = 0, recipe: Recipe | None = None, progress: bool = True) -> Path:
    """`out`, filled with `mera-demo/` and `tasks/`. About two minutes on two cores; `seed` decides every byte."""
    recipe = recipe or Recipe()
    pairs = training_pairs(recipe.examples, seed)
    tokenizer = train_tokenizer(
        (prompt + answer for prompt, answer in pairs), recipe.vocabulary, ANSWER_WORDS, recipe.context
    )
    train(pairs, tokenizer, out / MODEL, recipe, seed, progress)
    write_tasks(out / "tasks", seed)
    return out


def write_tasks(folder: Path, seed: int = 0) -> None:
    """Writes both demo tasks: one where steering repairs a planted failure, one where there is nothing to repair."""
    sizes = SplitSizes(train=2000, calibration=250, test=1000)
    write_task(
        folder,
        "demo_spam",
        "Two desks. The model knows spam, and says the opposite of it at desk B: a failure that steering can repair.",
        TEMPLATE,
        deploy_rows(_total(sizes), seed),
        sizes,
    )
    rows = [{"text": row["text"], "label": row["label"]} for row in deploy_rows(_total(sizes), seed + 1, 0.0, CLEAR)]
    write_task(
        folder,
        "demo_desk_a",
        "Desk A alone, clear messages. The model is as good as its messages allow: the honest outcome is to abstain.",
        DESK_A_TEMPLATE,
        rows,
        sizes,
    )


def _total(sizes: SplitSizes) -> int:
    return sizes.train + sizes.calibration + sizes.test
