"""`percentiles`: the error of unsteered answers by percentile of predicted error: whether a probe knows where mistakes are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from merasteer.bench.cells import Cell
from merasteer.bench.layout import Layout
from merasteer.bench.plots.style import COLOURS, handle, legend, panels, slugs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures"]

STYLES = [(colour, line) for line in ("-", "--", ":") for colour in COLOURS]

Lines = dict[str, list[float]]


def figures(layout: Layout) -> Iterator[tuple[str, Figure]]:
    """The figures, each with its file name: one per model, a panel per task, a line per method or per methods that agree."""
    for model, slug in slugs(layout).items():
        by_task: dict[str, Lines] = {}
        for column in layout.columns[model]:
            lines = {
                method: _errors(cell) for method, cell in layout.done(model, column).items() if cell.get("percentiles")
            }
            if lines:
                by_task[column.title] = lines
        if by_task:
            yield f"percentiles-{slug}", _figure(f"{model}: error by percentile of predicted error", by_task)


def _errors(cell: Cell) -> list[float]:
    return [part["error"] for part in cell["percentiles"]]


def _figure(title: str, by_task: Mapping[str, Lines]) -> Figure:
    figure, all_axes = panels(len(by_task), title, (3.7, 2.8))
    groups = _alike(by_task)
    for axes, (task, lines) in zip(all_axes, by_task.items(), strict=True):
        axes.set(
            title=task,
            xlabel="percentile of predicted error",
            ylabel="mean error, unsteered",
            xlim=(0, 100),
            ylim=(-0.02, 1.02),
        )
        for group, (colour, line) in zip(groups, itertools.cycle(STYLES), strict=False):
            for errors in [lines[method] for method in group if method in lines][:1]:
                x = [100 * (i + 0.5) / len(errors) for i in range(len(errors))]
                axes.plot(x, errors, color=colour, linestyle=line, marker="o")
    styles = zip(groups, itertools.cycle(STYLES), strict=False)
    legend(figure, [handle(", ".join(group), color=colour, linestyle=line) for group, (colour, line) in styles])
    return figure


def _alike(by_task: Mapping[str, Lines]) -> list[list[str]]:
    """The methods, those together that have the same line in every panel."""
    groups: dict[tuple[tuple[float, ...] | None, ...], list[str]] = {}
    for method in dict.fromkeys(itertools.chain.from_iterable(by_task.values())):
        same = tuple(tuple(lines[method]) if method in lines else None for lines in by_task.values())
        groups.setdefault(same, []).append(method)
    return list(groups.values())
