"""The figures of a report as inline SVG: text stays text, and colours are the page's, light or dark. Everything shown is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from merasteer.pipeline.telling import Score, number

__all__ = ["accuracy_bars", "candidate_gains"]

WIDTH, LEFT, RIGHT = 640, 130, 60
BAR = 30  # height of a bar with the space below it
HEIGHT, TOP, BOTTOM = 280, 16, 44  # of the plot of gains
LETTER = 14  # height of one, so that no two stand on one another
COLOURS = 4  # classes c0 to c3 of the page
SHAPES = {"residual": "circle", "mlp_input": "square"}
TICKS = (0.001, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999)


def accuracy_bars(rows: Sequence[Score], majority: float) -> str:
    """A bar per row, and a line at the accuracy of always answering the commonest label."""
    height = BAR * len(rows) + 34
    scale = WIDTH - LEFT - RIGHT
    line = LEFT + majority * scale
    parts = []
    for i, row in enumerate(rows):
        share, y = row.accuracy or 0.0, BAR * i + 6
        kind = row.name if row.name in ("unsteered", "steered") else "beside"
        parts += [
            f'<text x="{LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(row.name)}</text>',
            f'<rect class="bar {kind}" x="{LEFT}" y="{y}" width="{share * scale:.1f}" height="20" rx="2"/>',
            f'<text x="{LEFT + share * scale + 6:.1f}" y="{y + 14}">{number(row.accuracy, 3)}</text>',
        ]
    bottom = height - 26
    parts += [
        f'<line class="mark" x1="{line:.1f}" x2="{line:.1f}" y1="0" y2="{bottom}"/>',
        f'<text class="quiet" x="{line:.1f}" y="{height - 8}" text-anchor="middle">majority {number(majority, 3)}</text>',
    ]
    told = ", ".join(f"{row.name} {number(row.accuracy, 3)}" for row in rows)
    return _svg(height, f"Accuracy on the test rows: {told}", parts)


def candidate_gains(candidates: Sequence[Mapping[str, Any]], chosen: str | None) -> str:
    """Gain of every candidate on the ordering subset: steps against α on a logit scale, the bias alone as a line; `chosen` is ringed."""
    steps = [row for row in candidates if row["alpha"] is not None]
    if not candidates:
        return ""
    gains = [row["gain"] for row in candidates]
    low, high = min(0.0, *gains), max(0.0, *gains)
    room = max(high - low, 0.01) * 0.08
    low, high = low - room, high + room
    x, first, last = _across([row["alpha"] for row in steps] or [0.5])

    def y(gain: float) -> float:
        return float(TOP + (high - gain) / (high - low) * (HEIGHT - TOP - BOTTOM))

    parts = [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>',
        *(
            f'<text class="quiet" x="{LEFT - 8}" y="{y(gain) + 4:.1f}" text-anchor="end">{_points(gain)}</text>'
            for gain in (0.0, *(end for end in (max(gains), min(gains)) if abs(y(end) - y(0.0)) > LETTER))
        ),
        *(
            f'<text class="quiet" x="{x(tick):.1f}" y="{HEIGHT - 24}" text-anchor="middle">{number(tick, 3).rstrip("0")}</text>'
            for tick in TICKS
            if first <= _logit(tick) <= last and steps
        ),
        f'<text class="quiet" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">threshold α (logit scale)</text>',
    ]
    directions = list(dict.fromkeys(row["direction"] for row in steps))
    for row in candidates:
        if row["alpha"] is None:
            parts.append(
                f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(row["gain"]):.1f}" y2="{y(row["gain"]):.1f}">'
                f"<title>{escape(row['key'])} {_points(row['gain'])}</title></line>"
            )
    for row in steps:
        colour = f"c{directions.index(row['direction']) % COLOURS}"
        place = (x(row["alpha"]), y(row["gain"]))
        parts.append(_mark(row, place, f"{colour}{' biased' * (row['method'] == 'mera+bias')}"))
    for row in candidates:
        if row["key"] == chosen:
            at = x(row["alpha"]) if row["alpha"] is not None else float(WIDTH - RIGHT)
            parts.append(f'<circle class="ring" cx="{at:.1f}" cy="{y(row["gain"]):.1f}" r="9"/>')
    best = max(candidates, key=lambda row: row["gain"])
    said = f"Gain of {len(candidates)} candidates on training rows held out; the best: {best['key']}, {_points(best['gain'])}"
    return _svg(HEIGHT, said, parts) + _legend(directions, steps, candidates)


def _mark(row: Mapping[str, Any], place: tuple[float, float], classes: str) -> str:
    title = f"<title>{escape(row['key'])} {_points(row['gain'])}</title>"
    x, y = place
    if SHAPES.get(row["hook_point"]) == "square":
        return f'<rect class="{classes}" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8">{title}</rect>'
    return f'<circle class="{classes}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{title}</circle>'


def _legend(directions: Sequence[str], steps: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str:
    entries = [f'<span class="c{i % COLOURS}">■</span> {escape(name)}' for i, name in enumerate(directions)]
    points = dict.fromkeys(row["hook_point"] for row in steps)
    entries += [f"{'□' if SHAPES.get(point) == 'square' else '○'} {escape(point)}" for point in points]
    entries += ["hollow: with a constant per label"] if any(row["method"] == "mera+bias" for row in steps) else []
    entries += ["dashed: a constant per label alone"] if any(row["alpha"] is None for row in rows) else []
    return f'<p class="legend">{" &nbsp; ".join([*entries, "ringed: tested"])}</p>'


def _across(alphas: Sequence[float]) -> tuple[Any, float, float]:
    """α -> x, and the ends of the scale in logits."""
    logits = [_logit(alpha) for alpha in alphas]
    first, last = min(logits) - 0.3, max(logits) + 0.3
    return (lambda alpha: LEFT + (_logit(alpha) - first) / (last - first) * (WIDTH - LEFT - RIGHT)), first, last


def _logit(alpha: float) -> float:
    return math.log(alpha / (1.0 - alpha))


def _points(gain: float) -> str:
    return f"{'+' if gain > 0 else '−' if gain < 0 else ''}{abs(100 * gain):.1f}"


def _svg(height: int, said: str, parts: Sequence[str] | Iterator[str]) -> str:
    inside = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(said)}" xmlns="http://www.w3.org/2000/svg">\n{inside}\n</svg>'
