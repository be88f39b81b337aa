"""The canaries of an artifact: prompts of its own template filled with fixed neutral words, measured on the engine that is certified."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from merasteer.engine import Engine
from merasteer.engine.canaries import Canaries, asked, read
from merasteer.pipeline.progress import Bar
from merasteer.tasks import Prompter, fields_of
from merasteer.tasks.prompts import CHOICES
from merasteer.types import Correction, Tokens

__all__ = ["WORDS", "measured", "prompts_of"]

# Nobody's data: no row enters an artifact for them.
WORDS = (
    "The table is made of wood.",
    "A letter came in the morning, and nobody opened it before noon.",
    "Seven boats lie in the harbour.",
    "It may rain later; take a coat.",
    "Please call back tomorrow about the order of last week.",
    "2 + 2 = 4",
    "The meeting was moved from Monday to Thursday at ten.",
    "Good news: the bridge is open again!",
)
OPTIONS = ("the first of them", "another one", "neither", "all that were named")


def prompts_of(prompter: Prompter) -> list[Tokens]:
    """The eight prompts as token ids."""
    names = fields_of(prompter.task.template)
    return [prompter.encode(prompter.text(_fields(names, turn))) for turn in range(len(WORDS))]


def measured(engine: Engine, prompter: Prompter, correction: Correction, dtype: str, bar: Bar) -> Canaries:
    """What this engine, which holds the correction's vectors, gives for each prompt alone, and in the others' company."""
    prompts = prompts_of(prompter)
    alone = []
    with engine.held(afresh=True):
        pass  # whatever was asked before, what these prompts share is computed here
    for tokens in prompts:
        answers = [engine.submit(request).result() for request in asked(prompter.task, correction, [tokens])]
        alone += read(correction, [tokens], answers)
        bar.advance()
    with engine.held():
        futures = engine.submit_all(asked(prompter.task, correction, prompts))
    return Canaries.of(alone, read(correction, prompts, [future.result() for future in futures]), dtype)


def _fields(names: tuple[str, ...], turn: int) -> Mapping[str, Any]:
    """Each field gets words of its own; every other time a short one."""
    words = {name: WORDS[(turn + 3 * place) % len(WORDS)] for place, name in enumerate(names)}
    return {name: list(OPTIONS) if name == CHOICES else text for name, text in words.items()}
