"""`recall`: the recall of every label, unsteered (hollow) and steered (filled); a panel per task, a line per method.

A gain in accuracy that one label pays for shows here: moving answers to the commonest label is a true gain, and repairs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from merasteer.bench.layout import Column, Layout
from merasteer.bench.plots.style import COLOURS, GREY, assign, handle, legend, panels, slugs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

ROOM = 0.5  # of a method's line, shared by its labels


def figures(layout: Layout) -> Iterator[tuple[str, Figure]]:
    """The figures, each with its file name: one per model."""
    for model, slug in slugs(layout).items():
        columns = [column for column in layout.columns[model] if layout.done(model, column)]
        if not columns:
            continue
        labels = dict.fromkeys(
            label for column in columns for cell in layout.done(model, column).values() for label in cell["classes"]
        )
        colours = assign(labels, {}, COLOURS)
        height = 0.3 * len(layout.methods) + 0.9
        title = f"{model}: recall of each label on the test items"
        figure, all_axes = panels(len(columns), title, (4.3, height))
        for axes, column in zip(all_axes, columns, strict=True):
            _panel(axes, layout, model, column, colours)
        handles = [handle(label, color=colour, marker="o", linestyle="") for label, colour in colours.items()]
        hollow = handle("hollow: unsteered", marker="o", linestyle="", markerfacecolor="white")
        legend(figure, [*handles, hollow])
        yield f"recall-{slug}", figure


def _panel(axes: Axes, layout: Layout, model: str, column: Column, colours: dict[str, str]) -> None:
    """One line per method, its labels a little below one another."""
    axes.set(title=column.title, xlabel="recall", xlim=(-0.02, 1.02), ylim=(len(layout.methods) - 0.4, -0.6))
    axes.set_yticks(range(len(layout.methods)), layout.methods)
    axes.tick_params(axis="y", length=0)
    for y, method in enumerate(layout.methods):
        cell = layout.cell(model, column, method)
        if cell is None or cell["status"] != "done":
            axes.text(0.01, y, "not run" if cell is None else "failed", va="center", color=GREY, fontstyle="italic",
                      fontsize=7)  # fmt: skip
            continue
        for i, (label, part) in enumerate(cell["classes"].items()):
            before, after = part["recall"]
            if before is None or after is None:
                continue
            at = y + ROOM * ((i + 0.5) / len(cell["classes"]) - 0.5)
            axes.plot([before, after], [at, at], color=colours[label], linewidth=1)
            axes.plot(before, at, marker="o", color=colours[label], markerfacecolor="white")
            axes.plot(after, at, marker="o", color=colours[label])
