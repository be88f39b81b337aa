"""The end of a run for people: verdict, table, what was tested and why it passed or failed, and the command that serves it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from merasteer.pipeline.report import Report
from merasteer.pipeline.telling import Score, labels_of, notes, number, scores, trial, verdict

__all__ = ["MANY", "score_table", "summary"]

WIDTH = 100  # characters of a line
MANY = 5  # labels from which on the lowest recall stands for all
NAME = 14  # characters of a label's name


def summary(report: Report) -> str:
    """Several lines of plain text, without one at the end."""
    n = report["n"]
    rows = f"{n['train']:,} training, {n['calibration']:,} calibration, {n['test']:,} test rows"
    parts = [
        f"{report['model']}, {report['task']}: {rows}",
        _wrapped([verdict(report)]),
        "\n".join(_aligned(score_table(report))),
        _wrapped(trial(report)),
        _wrapped(notes(report), "- "),
        "\n".join(_ending(report)),
    ]
    return "\n\n".join(part for part in parts if part)


def score_table(report: Report) -> list[list[str]]:
    """Header and rows: accuracy, balanced accuracy and recall per label on the test split, or the lowest where labels are many."""
    labels, rows = labels_of(report), scores(report)
    few = len(labels) < MANY
    recalls = [f"recall {_short(label)}" for label in labels] if few else ["lowest recall"]
    return [
        ["", "accuracy", "balanced", *recalls],
        *(
            [
                row.name,
                number(row.accuracy, 3),
                number(row.balanced, 3),
                *(_recalls(row, labels) if few else _lowest(row)),
            ]
            for row in rows
        ),
    ]


def _recalls(row: Score, labels: Sequence[str]) -> list[str]:
    return [number(row.recall.get(label), 3) for label in labels]


def _lowest(row: Score) -> list[str]:
    known = [(share, label) for label, share in row.recall.items() if share is not None]
    if not known:
        return [""]
    share, label = min(known)
    return [f"{number(share, 3)} {_short(label)}"]


def _ending(report: Report) -> Iterator[str]:
    if report.get("artifact"):
        yield f"Published as {report['artifact'][:12]}."
    if report.get("serve"):
        yield f"Serve it:  {report['serve']}"


def _wrapped(sentences: Iterator[str] | Sequence[str], mark: str = "") -> str:
    return "\n".join(
        textwrap.fill(one, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark), break_on_hyphens=False)
        for one in sentences
    )


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *rest = zip(row, widths, strict=True)
        yield "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]).rstrip()


def _short(label: str) -> str:
    return label if len(label) <= NAME else label[: NAME - 1] + "…"
