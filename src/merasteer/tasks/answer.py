"""The [answer] table of a task file: whether the answer is one of the labels or free, and where a free one is looked for."""

from __future__ import annotations

from dataclasses import dataclass

from merasteer.tasks.table import Table
from merasteer.types import ANSWER_POSITIONS, CHOOSE, AnswerPosition, Choose

__all__ = ["ANSWER_KEYS", "Answering", "answer"]

ANSWER_KEYS = ("choose", "position", "max_new_tokens")
_OF_A_FREE_ANSWER = {
    "position": "remove it: the answer is chosen where the prompt ends",
    "max_new_tokens": "remove it: generation ends with the label, and a request may ask for more",
}
_DEFAULT_MAX_NEW_TOKENS: dict[AnswerPosition, int] = {"last": 1, "exact": 8}


@dataclass(frozen=True)
class Answering:
    """How a task is answered; see `Task`."""

    choose: Choose
    position: AnswerPosition = "last"
    max_new_tokens: int = 1
    notes: tuple[str, ...] = ()


def answer(table: Table) -> Answering:
    """What [answer] says. A file that was written before labels could be chosen keeps its free answer. Raises BadTask."""
    choose = table.choice("choose", CHOOSE)
    given = [key for key in _OF_A_FREE_ANSWER if key in table.values]
    if choose == "labels" or (choose is None and not given):
        for key in given:
            table.fail(key, f'belongs to choose = "free"; {_OF_A_FREE_ANSWER[key]}')
        return Answering("labels")
    position = table.choice("position", ANSWER_POSITIONS) or "last"
    tokens = table.integer("max_new_tokens", _DEFAULT_MAX_NEW_TOKENS[position], 1)
    return Answering("free", position, tokens, () if choose else (_note(given),))


def _note(given: list[str]) -> str:
    return (
        f"answer: free, because {' and '.join(given)} {'is' if len(given) == 1 else 'are'} set and choose is not; "
        f'say choose = "free", or remove {"it" if len(given) == 1 else "them"} for an answer that is one of the labels'
    )
