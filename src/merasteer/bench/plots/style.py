"""What all figures share: matplotlib itself, colours, panels, legends and files."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merasteer.bench.layout import Layout
from merasteer.errors import InvalidInput
from merasteer.pipeline.workspace import replace_file
from merasteer.store.identity import model_slug

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLOURS",
    "GREY",
    "MARKERS",
    "MORE_MARKERS",
    "assign",
    "handle",
    "legend",
    "panels",
    "save",
    "slugs",
    "styled",
]

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
)  # Okabe and Ito, colour-blind safe
GREY = "#808080"
MARKERS = {"residual": "o", "mlp_input": "s", "reference": "^"}  # of hook points
MORE_MARKERS = ("v", "P", "X")
SETTINGS = {
    "font.size": 9, "axes.titlesize": 9, "figure.titlesize": 11, "legend.fontsize": 8, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6", "axes.axisbelow": True, "lines.linewidth": 1.2,
    "lines.markersize": 3.5, "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06, "svg.fonttype": "none", "svg.hashsalt": "mera",
}  # fmt: skip
DPI = 120
ROW = 0.17  # inches of height that a row of the legend takes
LETTER, LINE = 0.066, 0.55  # inches that a letter of the legend takes, and its sample with the space around it


@contextmanager
def styled() -> Iterator[None]:
    """Our settings over matplotlib's own, whatever the user's are. Raises InvalidInput where matplotlib is missing."""
    try:
        style = importlib.import_module("matplotlib.style")
    except ImportError as error:
        raise InvalidInput("plots: they need the package matplotlib; install mera-server[pipeline]") from error
    with style.context(["default", SETTINGS]):
        yield


def panels(count: int, title: str, size: tuple[float, float], across: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of `count` equal panels, `across` of them side by side. size: of one, in inches."""
    across = min(count, across)
    down = math.ceil(count / across)
    # No pyplot: nothing global is opened, so nothing has to be closed.
    figure: Figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(max(across * size[0], 5.0), down * size[1] + 0.8), layout="constrained"
    )
    figure.suptitle(title)
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(count)]


def handle(label: str, **style: Any) -> Any:
    """A legend entry."""
    return importlib.import_module("matplotlib.lines").Line2D([], [], label=label, **{"color": "#404040", **style})


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """Puts one legend below all panels, in as many columns as fit. Makes `figure` higher where it has several rows."""
    widest = LETTER * max(len(entry.get_label()) for entry in handles) + LINE
    across = min(max(1, int(figure.get_figwidth() / widest)), len(handles))
    rows = math.ceil(len(handles) / across)
    figure.set_figheight(figure.get_figheight() + ROW * (rows - 1))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=across, frameon=False)


def assign(names: Iterable[str], own: Mapping[str, Any], spare: Sequence[Any]) -> dict[str, Any]:
    """A style for each name: its own where it has one, else the next spare one that no name owns, over and over."""
    unique = list(dict.fromkeys(names))
    free = [style for style in spare if style not in [own.get(name) for name in unique]]
    others = iter(itertools.cycle(free))
    return {name: own[name] if name in own else next(others) for name in unique}


def slugs(layout: Layout) -> dict[str, str]:
    """A file name for each model, unlike all others."""
    found: dict[str, str] = {}
    for model in layout.models:
        slug = model_slug(model)
        found[model] = slug if slug not in found.values() else f"{slug}-{len(found)}"
    return found


def save(figure: Figure, path: Path) -> list[Path]:
    """The PNG at `path` and the SVG beside it, each the old file or the new one; without dates."""
    png, svg = path, path.with_suffix(".svg")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it has done its work: laying out again takes most of the time
    replace_file(png, lambda to: figure.savefig(to, format="png", dpi=DPI, metadata={"Software": None}))
    replace_file(svg, lambda to: figure.savefig(to, format="svg", metadata={"Date": None}))
    return [png, svg]
