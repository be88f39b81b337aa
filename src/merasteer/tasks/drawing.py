"""Which rows go where: shares of the classes in a split, and the rows that are shown in front of every prompt."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from merasteer.errors import BadSplits
from merasteer.tasks.reading import distinct
from merasteer.types import Example, Task

__all__ = ["EVERYWHERE", "apportion", "draw_examples", "stratified"]

EVERYWHERE = 3  # rows of a class that put one into each split


def stratified(examples: Sequence[Example], sizes: Sequence[int], seed: int) -> list[list[Example]]:
    """One list per size, drawn without replacement: each has the classes in the proportions of the whole, in a random order.

    A class of `EVERYWHERE` rows or more is in every list that is as long as there are such classes.
    """
    order = list(examples)
    random.Random(seed).shuffle(order)
    left, shares = Counter(example.label for example in order), Counter(example.label for example in order)
    classes = {label: count for label, count in left.items() if count >= EVERYWHERE}
    drawn: list[list[Example]] = []
    for index, size in enumerate(sizes):
        later = sum(one >= len(classes) for one in sizes[index + 1 :])
        room = {label: left[label] - (later if label in classes else 0) for label in sorted(left)}
        least = {label: int(label in classes and size >= len(classes)) for label in room}
        due = apportion({label: shares[label] for label in room}, size, least, room)
        taken = []
        for example in order:
            if due[example.label] > 0:
                due[example.label] -= 1
                taken.append(example)
        chosen = {example.digest for example in taken}
        order = [example for example in order if example.digest not in chosen]
        left.subtract(example.label for example in taken)
        drawn.append(taken)
    return drawn


def apportion(
    shares: Mapping[int, int], size: int, least: Mapping[int, int], most: Mapping[int, int]
) -> dict[int, int]:
    """`size` seats in the proportion of `shares` by the largest remainder, each within its bounds where they leave room for it.

    >>> apportion({0: 90, 1: 10}, 5, {0: 1, 1: 1}, {0: 90, 1: 10})
    {0: 4, 1: 1}
    """
    total = sum(shares.values())
    quota = {key: size * share / total for key, share in shares.items()}
    seats = {key: max(least[key], min(most[key], int(quota[key]))) for key in shares}
    while sum(seats.values()) < size:
        free = [key for key in seats if seats[key] < most[key]]
        seats[max(free, key=lambda key: quota[key] - seats[key])] += 1
    while sum(seats.values()) > size:
        spare = [key for key in seats if seats[key] > least[key]]
        seats[min(spare, key=lambda key: quota[key] - seats[key])] -= 1
    return seats


def draw_examples(task: Task, examples: Sequence[Example]) -> tuple[Example, ...]:
    """The rows shown in front: `task.examples` of them, as even over the labels as can be, drawn and ordered by the seed.

    They stand in every prompt, so the longer half of each label's rows is drawn last. Each class keeps a row for each split.
    Raises BadSplits where there are too few.
    """
    if not task.examples:
        return ()
    rng = random.Random(f"examples {task.splits.seed}")
    pools = _pools(task, distinct(examples), rng)
    drawn: list[Example] = []
    while len(drawn) < task.examples and pools:
        for label in rng.sample(sorted(pools), len(pools)):
            if len(drawn) < task.examples:
                drawn.append(pools[label].pop(0))
            if not pools[label]:
                del pools[label]
    sizes = task.splits
    if len(drawn) < task.examples or len(drawn) + sizes.train + sizes.calibration + sizes.test > len(
        distinct(examples)
    ):
        raise BadSplits(
            f"task {task.name!r}: prompt.examples: {task.examples} rows are wanted outside the splits, which take "
            f"{sizes.train} + {sizes.calibration} + {sizes.test} of {len(distinct(examples))}; "
            f"lower examples or the sizes under [splits], or add rows"
        )
    rng.shuffle(drawn)
    return tuple(drawn)


def _pools(task: Task, examples: Sequence[Example], rng: random.Random) -> dict[int, list[Example]]:
    """Per class what may be shown, in the order in which it is drawn."""
    pools = {}
    for label in range(len(task.labels)):
        rows = [example for example in examples if example.label == label]
        rng.shuffle(rows)
        if len(rows) > EVERYWHERE:
            middle = median(len(example.prompt) for example in rows)
            pools[label] = sorted(rows, key=lambda example: len(example.prompt) > middle)[:-EVERYWHERE]
    return pools
