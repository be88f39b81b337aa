"""Figures of a bench, as PNG and as SVG whose text is text. Equal cells give equal bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merasteer.bench.cells import Cell
from merasteer.bench.layout import Layout
from merasteer.bench.plots import calibration, percentiles, probe_error, recall, spi, transitions
from merasteer.bench.plots.style import save, styled

__all__ = ["draw"]

KINDS = (spi, probe_error, calibration, transitions, recall, percentiles)


def draw(cells: Sequence[Cell], methods: Sequence[str], out: Path) -> list[Path]:
    """The files written to `out`: a PNG and an SVG of each figure for which there is something to show.

    Raises InvalidInput where matplotlib is missing, `out` cannot be written, or two cells would share a place.
    """
    layout = Layout.of(cells, methods)
    with styled():
        return [
            path
            for kind in KINDS
            for name, figure in kind.figures(layout)
            for path in save(figure, out / f"{name}.png")
        ]
