"""`probe_error` and `probe_auroc`: how well each layer's probe reads the error of held-out items.

A panel per task; or per task and answer position, where one panel would be crowded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from merasteer.bench.layout import Column, Layout
from merasteer.bench.plots.style import COLOURS, GREY, MARKERS, MORE_MARKERS, assign, handle, legend, panels, slugs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["figures"]

READOUTS = dict(zip(("error", "logistic", "contrastive", "sae"), COLOURS, strict=False))
LINES = {"last": "-", "exact": "--"}
CROWDED = 8  # lines
WORST = 1.5  # times the mean predictor's error: what lies above is as useless


class Series(NamedTuple):
    """methods: whose probes these are, where methods differ in them; else empty."""

    position: str
    hook_point: str
    readout: str
    methods: str


Point = tuple[int, float, bool]  # layer, score, idle
Scores = Mapping[Series, list[Point]]
Value = Callable[[Mapping[str, Any]], float | None]


def figures(layout: Layout) -> Iterator[tuple[str, Figure]]:
    """The figures, each with its file name: one per model and kind of score."""
    for model, slug in slugs(layout).items():
        if errors := _panels(layout, model, _relative):
            figure = _figure(f"{model}: held-out error of the probes", errors, "RMSE / mean predictor's", 1.0)
            for axes in figure.axes:
                axes.set_ylim(top=min(axes.get_ylim()[1], WORST))
            yield f"probe_error-{slug}", figure
        if areas := _panels(layout, model, lambda row: row.get("auroc")):
            yield f"probe_auroc-{slug}", _figure(f"{model}: held-out AUROC of the probes", areas, "AUROC", 0.5)


def _panels(layout: Layout, model: str, value: Value) -> dict[str, Scores]:
    """The series of each panel that has any, by its title."""
    columns = layout.columns[model]
    tasks = {task: [one for one in columns if one.task == task] for task in dict.fromkeys(one.task for one in columns)}
    found = {task: _series(layout, model, own, value) for task, own in tasks.items()}
    if max(map(len, found.values())) > CROWDED:
        found = {column.title: _series(layout, model, [column], value) for column in columns}
    return {title: scores for title, scores in found.items() if scores}


def _relative(row: Mapping[str, Any]) -> float | None:
    return row["rmse"] / row["dummy_rmse"] if row.get("rmse") is not None and row.get("dummy_rmse") else None


def _series(layout: Layout, model: str, columns: Sequence[Column], value: Value) -> Scores:
    """The points of each series. Probes that all methods share are one."""
    found: dict[tuple[str, str, str], dict[tuple[Point, ...], list[str]]] = {}
    for column in columns:
        for method, cell in layout.done(model, column).items():
            for (hook_point, readout), points in _lines(cell.get("probes") or [], value).items():
                versions = found.setdefault((column.position, hook_point, readout), {})
                versions.setdefault(tuple(sorted(points)), []).append(method)
    return {
        Series(*which, "" if len(versions) == 1 else ", ".join(methods)): list(points)
        for which, versions in found.items()
        for points, methods in versions.items()
    }


def _lines(rows: Sequence[Mapping[str, Any]], value: Value) -> dict[tuple[str, str], list[Point]]:
    """The points by hook point and readout, of the layers that have a value."""
    lines: dict[tuple[str, str], list[Point]] = {}
    for row in rows:
        if (score := value(row)) is not None:
            lines.setdefault((row["hook_point"], row["readout"]), []).append(
                (row["layer"], score, bool(row.get("idle")))
            )
    return lines


def _figure(title: str, by_panel: Mapping[str, Scores], label: str, chance: float) -> Figure:
    figure, all_axes = panels(len(by_panel), title, (3.7, 2.6))
    series = list(dict.fromkeys(itertools.chain.from_iterable(by_panel.values())))
    readouts = assign((_readout(one) for one in series), READOUTS, COLOURS)
    markers = assign((one.hook_point for one in series), MARKERS, MORE_MARKERS)
    lines = assign((one.position for one in series), LINES, (":", "-."))
    for axes, (name, scores) in zip(all_axes, by_panel.items(), strict=True):
        axes.set(title=name, xlabel="layer", ylabel=label)
        axes.axhline(chance, color=GREY, linewidth=1, linestyle=":")
        axes.locator_params(axis="x", integer=True)
        for one, points in scores.items():
            style = {"color": readouts[_readout(one)], "marker": markers[one.hook_point]}
            axes.plot([x for x, *_ in points], [y for _, y, _ in points], linestyle=lines[one.position], **style)
            idle = [(x, y) for x, y, is_idle in points if is_idle]
            axes.plot([x for x, _ in idle], [y for _, y in idle], linestyle="", markerfacecolor="white", **style)
    handles = [
        *(handle(name, color=colour) for name, colour in readouts.items()),
        *(handle(name, marker=marker, linestyle="") for name, marker in markers.items()),
        *(handle(f"answer position {name}", linestyle=line) for name, line in lines.items() if len(lines) > 1),
        handle("hollow: idle layer", marker="o", linestyle="", markerfacecolor="white"),
        handle("mean predictor" if chance == 1.0 else "chance", color=GREY, linewidth=1, linestyle=":"),
    ]
    legend(figure, handles)
    return figure


def _readout(one: Series) -> str:
    return f"{one.readout}: {one.methods}" if one.methods else one.readout
