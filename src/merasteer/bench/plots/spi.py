"""`spi`: methods × tasks, coloured by SPI; one figure for all models where they fit side by side, else one per model."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from merasteer.bench.layout import Column, Layout
from merasteer.bench.plots.style import GREY, panels, slugs
from merasteer.bench.table import MARKS, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

SIDE_BY_SIDE = 10  # columns at most in one figure
WIDTH, HEIGHT = 1.0, 0.36  # of a cell, inches
CHARACTERS = 13  # of a model's name per column
LEAST = 0.5  # end of the colour scale, so that small effects look small
KEY = "✓ certified at its column's level    (✓) passes at δ alone    – abstained    no mark: always on, without a certificate"
DARK = 0.6  # share of the colour scale from which white text is the readable one


class Place(NamedTuple):
    model: str
    column: Column


def figures(layout: Layout) -> Iterator[tuple[str, Figure]]:
    """The figures, each with its file name. They share one colour scale."""
    places = [Place(model, column) for model in layout.models for column in layout.columns[model]]
    scores = [abs(cell["spi"]) for place in places for cell in layout.done(*place).values()]
    limit = max([LEAST, *scores])
    if len(layout.models) > 1 and len(places) <= SIDE_BY_SIDE:
        yield "spi", _figure(layout, places, limit, "SPI on the test split")
        return
    for model, slug in slugs(layout).items():
        own = [place for place in places if place.model == model]
        yield f"spi-{slug}", _figure(layout, own, limit, f"{model}: SPI on the test split")


def _figure(layout: Layout, places: Sequence[Place], limit: float, title: str) -> Figure:
    size = (WIDTH * len(places) + 2.6, HEIGHT * len(layout.methods) + 1.6)
    figure, (axes,) = panels(1, title, size)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlim(0, len(places))
    axes.set_ylim(len(layout.methods), 0)
    mesh = axes.pcolormesh(
        range(len(places) + 1),
        range(len(layout.methods) + 1),
        [[_score(layout, place, method) for place in places] for method in layout.methods],
        cmap="RdBu", vmin=-limit, vmax=limit, edgecolors="white", linewidth=1.5,
    )  # fmt: skip
    for y, method in enumerate(layout.methods):
        for x, place in enumerate(places):
            _write(axes, layout, place, method, (x, y), limit)
    axes.set_yticks([y + 0.5 for y in range(len(layout.methods))], layout.methods)
    axes.set_xticks([x + 0.5 for x in range(len(places))], [place.column.title for place in places])
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    for label in axes.get_xticklabels():
        label.set(rotation=30, ha="left", rotation_mode="anchor")
    if len(layout.models) > 1 and len({place.model for place in places}) > 1:
        _name_models(axes, places, len(layout.methods))
    figure.colorbar(mesh, ax=axes, fraction=0.03, pad=0.02, label="SPI").outline.set_visible(False)
    figure.supxlabel(KEY, fontsize=8, color=GREY)
    return figure


def _score(layout: Layout, place: Place, method: str) -> float:
    cell = layout.cell(*place, method)
    return float("nan") if cell is None or cell["status"] != "done" else float(cell["spi"])


def _write(axes: Axes, layout: Layout, place: Place, method: str, corner: tuple[int, int], limit: float) -> None:
    """Writes what a cell holds: the SPI, its mark, and its interval below."""
    cell = layout.cell(*place, method)
    if cell is None:
        return
    x, y = corner[0] + 0.5, corner[1] + 0.5
    if cell["status"] != "done":
        axes.text(x, y, "failed", ha="center", va="center", color=GREY, fontstyle="italic", fontsize=8)
        return
    if cell["decision"] == "abstained":
        axes.text(x, y, "–", ha="center", va="center", fontsize=11)
        return
    low, high = cell["spi_interval"]
    colour = "white" if abs(cell["spi"]) > DARK * limit else "black"
    mark = MARKS.get(cell["decision"], "")
    for text, points, size in ((number(cell["spi"]) + mark, 4, 9), (f"{number(low)} to {number(high)}", -7, 6)):
        axes.annotate(text, (x, y), xytext=(0, points), textcoords="offset points", ha="center", va="center",
                      color=colour, fontsize=size)  # fmt: skip


def _name_models(axes: Axes, places: Sequence[Place], bottom: int) -> None:
    """Writes each model's name below its columns, under a line as long as they are."""
    for model in dict.fromkeys(place.model for place in places):
        at = [x for x, place in enumerate(places) if place.model == model]
        axes.plot([at[0] + 0.05, at[-1] + 0.95], [bottom + 0.15] * 2, color=GREY, clip_on=False, linewidth=1)
        name = "\n".join(textwrap.wrap(model, CHARACTERS * len(at)))
        axes.text((at[0] + at[-1] + 1) / 2, bottom + 0.35, name, ha="center", va="top", fontsize=8)
