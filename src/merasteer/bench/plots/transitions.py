"""`transitions`: what became of the answers that were right and of those that were wrong; a panel per task, a bar per method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from merasteer.bench.layout import Column, Layout
from merasteer.bench.plots.style import COLOURS, GREY, handle, legend, panels, slugs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

PARTS = {  # in this order the border in the middle is the steered accuracy
    "kept_right": ("kept right", "#a6cee3", "black"),
    "repaired": ("repaired", "#0072b2", "white"),
    "broken": ("broken", "#d55e00", "white"),
    "kept_wrong": ("kept wrong", "#e0e0e0", "black"),
}
LINES: dict[str, tuple[str, dict[str, Any]]] = {  # accuracies that are a panel's, whatever the method
    "majority": ("majority", {"color": "#606060", "linestyle": ":", "linewidth": 1.6}),
    "label_probe": ("label probe", {"color": COLOURS[2], "linestyle": "-.", "linewidth": 1.2}),
    "text_classifier": ("text classifier", {"color": COLOURS[3], "linestyle": "-.", "linewidth": 1.2}),
}
ROOM = 0.07  # share of the items from which a part has room for its number


def figures(layout: Layout) -> Iterator[tuple[str, Figure]]:
    """The figures, each with its file name: one per model."""
    for model, slug in slugs(layout).items():
        columns = [column for column in layout.columns[model] if layout.done(model, column)]
        if not columns:
            continue
        height = 0.22 * len(layout.methods) + 0.9
        title = f"{model}: answers to the test items, unsteered → steered"
        figure, all_axes = panels(len(columns), title, (4.3, height))
        for axes, column in zip(all_axes, columns, strict=True):
            _panel(axes, layout, model, column)
        handles = [handle(name, color=colour, linewidth=7) for name, colour, _ in PARTS.values()]
        lines = [handle(name, **style) for name, style in LINES.values()]
        legend(figure, [*handles, handle("unsteered accuracy", linestyle="--", color="black"), *lines])
        yield f"transitions-{slug}", figure


def _panel(axes: Axes, layout: Layout, model: str, column: Column) -> None:
    """One bar per method; where there is no measurement, why."""
    axes.grid(visible=False)
    axes.set(title=column.title, xlabel="share of the test items", xlim=(0, 1), ylim=(len(layout.methods) - 0.4, -0.6))
    axes.set_yticks(range(len(layout.methods)), layout.methods)
    axes.tick_params(axis="y", length=0)
    for y, method in enumerate(layout.methods):
        cell = layout.cell(model, column, method)
        if cell is None or cell["status"] != "done":
            axes.text(0.01, y, "not run" if cell is None else "failed", va="center", color=GREY, fontstyle="italic",
                      fontsize=7)  # fmt: skip
            continue
        counts, left = cell["transitions"], 0.0
        total = sum(counts[part] for part in PARTS)
        for part, (_, colour, text) in PARTS.items():
            share = counts[part] / total
            axes.barh(y, share, left=left, color=colour, height=0.8)
            if share >= ROOM:
                axes.text(left + share / 2, y, str(counts[part]), ha="center", va="center", color=text, fontsize=6.5)
            left += share
        before = cell["accuracy"]["unsteered"]
        axes.plot([before, before], [y - 0.5, y + 0.5], color="black", linestyle="--", linewidth=1)
    done = layout.done(model, column).values()
    for name, (_, style) in LINES.items():
        for share in dict.fromkeys(
            cell["accuracy"].get(name) for cell in done
        ):  # methods with other splits have others
            if share is not None:
                axes.axvline(share, **style)
