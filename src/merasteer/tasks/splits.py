"""Three splits that share no content, so that choosing, testing and measuring never see the same text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from merasteer.errors import BadSplits, BadTask
from merasteer.tasks.drawing import EVERYWHERE, draw_examples, stratified
from merasteer.tasks.reading import distinct, read_examples
from merasteer.tasks.table import listed
from merasteer.types import Example, Splits, Task

__all__ = ["check_disjoint", "class_counts", "make_splits", "split", "unevenness"]

SPLITS = ("train", "calibration", "test")
_UNLIKELY = 1e-4  # a chance so small that uneven classes are told
_EXPECTED = 5  # rows of a class in a split from which on the χ² approximation is good


def make_splits(
    task: Task,
    rows: Iterable[Mapping[str, Any]] | None = None,
    *,
    fits: Callable[[Example], bool] | None = None,
) -> Splits:
    """`split` of the rows that `read_examples` gives."""
    return split(task, read_examples(task, rows), fits)


def split(task: Task, examples: Sequence[Example], fits: Callable[[Example], bool] | None = None) -> Splits:
    """Train, calibration and test, filled in this order from rows whose content is new, and the rows shown in front.

    Of equal rows the first stays, whatever its label. fits: whether prompt and answer stay within the model's context; every row is
    asked, also beyond the last one needed. What is shown in front follows from task and rows alone (`draw_examples`).
    Raises BadSplits when a size is below 1, too few rows remain or a split lacks a class, BadTask for a row that is too long.
    """
    sizes = {name: getattr(task.splits, name) for name in SPLITS}
    for name, size in sizes.items():
        if size < 1:
            raise BadSplits(f"task {task.name!r}: splits.{name}: {size} rows is an empty split; give 1 or more")
    found = distinct(examples)
    shown = draw_examples(task, examples)
    in_front = {example.digest for example in shown}
    rest, long = _short(task, [example for example in found if example.digest not in in_front], fits)
    skipped = len(examples) - len(found)
    if len(rest) < sum(sizes.values()):
        raise BadSplits(
            f"task {task.name!r}: splits: {sum(sizes.values())} rows needed ("
            f"{' + '.join(f'{size} {name}' for name, size in sizes.items())}), {len(rest)} available "
            f"({skipped} repeats skipped{f', {len(long)} too long' if long else ''}"
            f"{f', {len(shown)} shown in front' if shown else ''}); lower the sizes or add rows"
        )
    if task.splits.shuffle:
        parts = stratified(rest, list(sizes.values()), task.splits.seed)
    else:
        ends = (0, sizes["train"], sizes["train"] + sizes["calibration"], sum(sizes.values()))
        parts = [rest[start:end] for start, end in pairwise(ends)]
    _check_classes(task, rest, dict(zip(SPLITS, parts, strict=True)))
    train, calibration, test = map(tuple, parts)
    return Splits(train, calibration, test, skipped, shown, tuple(long))


def check_disjoint(digests: Mapping[str, Sequence[str]]) -> None:
    """Raises BadSplits if a digest is in two of the splits."""
    owner: dict[str, str] = {}
    for name, members in digests.items():
        for digest in members:
            if owner.setdefault(digest, name) != name:
                raise BadSplits(f"splits: {owner[digest]} and {name} share the content {digest}; split the rows again")


def class_counts(splits: Splits, labels: Sequence[str]) -> dict[str, list[int]]:
    """Rows of each class per split, in the labels' order."""
    counted = {name: Counter(example.label for example in getattr(splits, name)) for name in SPLITS}
    return {name: [counts[label] for label in range(len(labels))] for name, counts in counted.items()}


def unevenness(splits: Splits, labels: Sequence[str]) -> str | None:
    """One line where the classes lie too unevenly over the splits for chance (χ² test), else None.

    Rare classes count as one, for which the test's approximation holds.
    """
    from scipy.stats import chi2_contingency

    counts = class_counts(splits, labels)
    sizes = [sum(row) for row in counts.values()]
    columns, rare = [], [0, 0, 0]
    for column in zip(*counts.values(), strict=True):
        if sum(column) * min(sizes) >= _EXPECTED * sum(sizes):
            columns.append(list(column))
        else:
            rare = [a + b for a, b in zip(rare, column, strict=True)]
    if sum(rare) * min(sizes) >= _EXPECTED * sum(sizes):
        columns.append(rare)
    if len(columns) < 2 or float(chi2_contingency(columns).pvalue) >= _UNLIKELY:
        return None
    label = max(range(len(labels)), key=lambda one: _spread([row[one] for row in counts.values()], sizes))
    shares = ", ".join(
        f"{row[label] / size:.0%} of {name}" for (name, row), size in zip(counts.items(), sizes, strict=True)
    )
    return (
        f"splits: the classes lie unevenly in the file's order: {listed([labels[label]])} is {shares}; set shuffle = true under [splits], "
        f"unless what comes last in the file stands for what will come"
    )


def _spread(counts: Sequence[int], sizes: Sequence[int]) -> float:
    shares = [count / size for count, size in zip(counts, sizes, strict=True)]
    return max(shares) - min(shares)


def _short(
    task: Task, examples: Sequence[Example], fits: Callable[[Example], bool] | None
) -> tuple[list[Example], list[str]]:
    """The rows that fit, and where the others stand. Raises BadTask for the first of them unless they may be left out."""
    if fits is None:
        return list(examples), []
    fitting = [fits(example) for example in examples]
    long = [example.where for example, fit in zip(examples, fitting, strict=True) if not fit]
    if long and task.splits.too_long == "error":
        more = f" (and {len(long) - 1} more rows)" if len(long) > 1 else ""
        raise BadTask(
            f"{long[0]}: prompt and answer exceed the model's context{more}; shorten them, take a model with a longer "
            f'context, or set too_long = "skip" under [splits] to leave such rows out'
        )
    return [example for example, fit in zip(examples, fitting, strict=True) if fit], long


def _check_classes(task: Task, rows: Sequence[Example], parts: Mapping[str, Sequence[Example]]) -> None:
    """Raises BadSplits where a split lacks a class, unless all rows are of one."""
    total = Counter(example.label for example in rows)
    if len(total) == 1:
        return
    for name, part in parts.items():
        counts = Counter(example.label for example in part)
        for index, label in enumerate(task.labels):
            if not counts[index]:
                table = ", ".join(f"{listed([other])} {counts[i]} of {total[i]}" for i, other in enumerate(task.labels))
                raise BadSplits(
                    f"task {task.name!r}: splits.{name}: no row of {label!r} among {len(part)} (rows here of those in the "
                    f"file: {table}); {_remedy(task, total[index], len(part))}"
                )


def _remedy(task: Task, rows: int, size: int) -> str:
    if not rows:
        return "remove the label, or add rows of it"
    if rows < EVERYWHERE:
        return f"add rows of it ({EVERYWHERE} at least, one for each split), or remove the label"
    if size < len(task.labels):
        return "enlarge this split"
    return "set shuffle = true under [splits]" if not task.splits.shuffle else "enlarge this split, or add rows of it"
