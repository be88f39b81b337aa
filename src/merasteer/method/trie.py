"""Spellings of labels as a trie of tokens: where a choice among them branches (docs/method.md, choosing a label)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from merasteer.types import Tokens

__all__ = ["begins_another", "branches"]


def begins_another(spellings: Iterable[Tokens]) -> bool:
    """Whether one of the sequences is a proper beginning of another.

    >>> begins_another([(1, 2), (1,), (3,)])
    True
    """
    ordered = sorted(set(spellings))  # a beginning stands directly before the first sequence that it begins
    return any(longer[: len(short)] == short for short, longer in pairwise(ordered))


def branches(spellings: Iterable[Tokens], end: int | None) -> dict[Tokens, tuple[int, ...]]:
    """Where a choice is made: beginning -> the tokens permitted there, two or more; `end` where a sequence ends that others go on from.

    >>> branches([(1, 2), (1,), (3,)], end=9)
    {(): (1, 3), (1,): (2, 9)}
    """
    nodes: dict[Tokens, dict[int, None]] = {}
    complete = set(spellings)
    for tokens in sorted(complete):
        for at, token in enumerate(tokens):
            nodes.setdefault(tokens[:at], {})[token] = None
    if end is not None:
        for beginning, permitted in nodes.items():
            if beginning in complete:
                permitted[end] = None
    return {beginning: tuple(permitted) for beginning, permitted in nodes.items() if len(permitted) > 1}
