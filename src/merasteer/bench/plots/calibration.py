"""`calibration`: gain on the ordering subset against α, and what the test on the calibration split found; a panel per cell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from merasteer.bench.cells import Cell
from merasteer.bench.layout import Layout
from merasteer.bench.plots.style import COLOURS, GREY, MARKERS, MORE_MARKERS, assign, handle, legend, panels, slugs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["figures"]

DIRECTIONS = dict(zip(("euclidean", "covariance", "contrastive"), COLOURS, strict=False))
TOGETHER = 9  # panels at most in one figure
TICKS = (0.0001, 0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999, 0.9999)
TESTED = "#000000"

Row = Mapping[str, Any]


def figures(layout: Layout) -> Iterator[tuple[str, Figure]]:
    """The figures, each with its file name: one per model, or one per model and method."""
    for model, slug in slugs(layout).items():
        cells = {
            (method, column.title): cell
            for method in layout.methods
            for column in layout.columns[model]
            if (cell := layout.done(model, column).get(method)) and cell.get("curve")
        }
        if not cells:
            continue
        if len(cells) <= TOGETHER:
            titled = {f"{title}: {method}": cell for (method, title), cell in cells.items()}
            yield f"calibration-{slug}", _figure(model, titled, across=min(4, len({title for _, title in cells})))
            continue
        for method in dict.fromkeys(method for method, _ in cells):
            own = {title: cell for (name, title), cell in cells.items() if name == method}
            yield f"calibration-{slug}-{method}", _figure(f"{model}, {method}", own)


def _figure(subject: str, cells: Mapping[str, Cell], across: int = 3) -> Figure:
    title = f"{subject}: gain of each candidate on the ordering subset"
    figure, all_axes = panels(len(cells), title, (3.7, 2.8), across)
    rows = [row for cell in cells.values() for row in cell["curve"] if row["alpha"] is not None]
    colours = assign((row["direction"] for row in rows), DIRECTIONS, COLOURS)
    markers = assign((row["hook_point"] for row in rows), MARKERS, MORE_MARKERS)
    for axes, (title, cell) in zip(all_axes, cells.items(), strict=True):
        axes.set(title=title, xlabel="α (logit scale)", ylabel="gain in accuracy")
        axes.axhline(0, color=GREY, linewidth=1)
        _curves(axes, cell["curve"], colours, markers)
        _tested(axes, cell)
        _ticks(axes, [row["alpha"] for row in cell["curve"] if row["alpha"] is not None])
    handles = [
        *(handle(name, color=colour) for name, colour in colours.items()),
        *(handle(name, marker=marker, linestyle="") for name, marker in markers.items()),
        handle("ordering subset, bound", linestyle=":", linewidth=1),
        handle("calibration split, with bound", marker="D", markersize=6, color=TESTED,
               markerfacecolor="white"),
    ]  # fmt: skip
    methods = {row.get("method") for cell in cells.values() for row in cell["curve"]}
    if "mera+bias" in methods:
        handles.append(
            handle("with the logit bias on top", marker="*", markersize=8, linestyle="", markerfacecolor="none")
        )
    if "logit_bias" in methods:
        handles.append(handle("logit bias alone", color=GREY, linestyle="-."))
    legend(figure, handles)
    return figure


def _curves(axes: Axes, curve: Sequence[Row], colours: Mapping[str, str], markers: Mapping[str, str]) -> None:
    lines: dict[tuple[str, str, str], list[Row]] = {}  # one for each layer and length of a step
    for row in curve:
        if row["alpha"] is None:
            axes.axhline(row["gain"], color=GREY, linestyle="-.")
        elif row.get("method") == "mera+bias":
            axes.plot(_logit(row["alpha"]), row["gain"], "*", markersize=8, markerfacecolor="none",
                      color=colours[row["direction"]])  # fmt: skip
        else:
            place = row["hook_point"], row["direction"], str(row["key"]).rpartition("/")[0]
            lines.setdefault(place, []).append(row)
    for (hook_point, direction, _), rows in lines.items():
        ordered = sorted(rows, key=lambda row: float(row["alpha"]))
        x, colour = [_logit(row["alpha"]) for row in ordered], colours[direction]
        axes.plot(x, [row["gain"] for row in ordered], color=colour, marker=markers[hook_point])
        bounds = [math.nan if row.get("lower_bound") is None else row["lower_bound"] for row in ordered]
        axes.plot(x, bounds, color=colour, linestyle=":", linewidth=1, alpha=0.7)


def _tested(axes: Axes, cell: Cell) -> None:
    """Marks the candidates that were tested, each down to its lower bound; one without an α at the right edge."""
    alphas = {row["key"]: row["alpha"] for row in cell["curve"]}
    for row in cell.get("tested") or []:
        alpha = alphas.get(row["key"])
        x = 0.97 if alpha is None else _logit(alpha)
        transform = axes.get_yaxis_transform() if alpha is None else axes.transData
        axes.plot([x, x], [row["lower_bound"], row["gain"]], color=TESTED, transform=transform, zorder=3)
        axes.plot(
            x, row["gain"], "D", markersize=6, color=TESTED, markerfacecolor="white", transform=transform, zorder=4
        )


def _ticks(axes: Axes, alphas: Sequence[float]) -> None:
    """Labels a few values of α, in the range of those that occur."""
    if not alphas:
        axes.set_xticks([])
        return
    low, high = _logit(min(alphas)) - 0.3, _logit(max(alphas)) + 0.3
    axes.set_xlim(low, high)
    inside = [tick for tick in TICKS if low <= _logit(tick) <= high] or sorted({min(alphas), max(alphas)})
    kept: list[float] = []
    for tick in inside:
        if not kept or _logit(tick) - _logit(kept[-1]) >= (high - low) / 8:
            kept.append(tick)
    axes.set_xticks([_logit(tick) for tick in kept], [f"{tick:.3g}".removeprefix("0") for tick in kept])


def _logit(alpha: float) -> float:
    return math.log(alpha / (1 - alpha))
