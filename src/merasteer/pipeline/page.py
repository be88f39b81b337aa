"""A report as one page for whoever decides: self-contained HTML, nothing is loaded from anywhere, readable light and dark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from merasteer.pipeline.figures import accuracy_bars, candidate_gains
from merasteer.pipeline.report import Report
from merasteer.pipeline.summary import score_table
from merasteer.pipeline.telling import labels_of, notes, number, scores, trial, verdict
from merasteer.pipeline.workspace import replace_file

__all__ = ["page", "write_page"]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --quiet: #5c6470; --paper: #fff; --line: #d5d9e0; --soft: #f2f4f7; --good: #0b6e4f;
  --wait: #8a5a00; --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #b0568f; --beside: #a9b3c1; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --quiet: #a2abb9; --paper: #14171c; --line: #343b46; --soft: #1e232b;
  --good: #5fd0a5; --wait: #e6b450; --c0: #56b4e9; --c1: #ff9a52; --c2: #4cd3a7; --c3: #e79fcb; --beside: #5a6676; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 46rem;
  padding: 2rem 1rem; }
h1 { font-size: 1.4rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; } p { margin: .4rem 0; }
.quiet, .legend { color: var(--quiet); } .legend { font-size: .85rem; }
.verdict { border-left: .3rem solid var(--wait); background: var(--soft); padding: .7rem 1rem; margin: 1rem 0; font-size: 1.05rem; }
.verdict.certified { border-color: var(--good); }
.wide { overflow-x: auto; } .pair { display: flex; flex-wrap: wrap; gap: 1.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } caption { text-align: left; color: var(--quiet); }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line); } th { font-weight: 600; }
tr > :first-child { text-align: left; }
td.right { font-weight: 700; } td.share { background: color-mix(in srgb, var(--c0) var(--share), transparent); }
pre { background: var(--soft); padding: .6rem .8rem; overflow-x: auto; }
svg { width: 100%; height: auto; font: 13px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg text.quiet { fill: var(--quiet); }
.bar { fill: var(--beside); } .bar.unsteered { fill: var(--c1); } .bar.steered { fill: var(--c0); }
.mark { stroke: var(--ink); stroke-dasharray: 4 4; }
.axis { stroke: var(--line); } .ring { fill: none; stroke: var(--ink); stroke-width: 2; }
.c0 { fill: var(--c0); color: var(--c0); stroke: var(--c0); } .c1 { fill: var(--c1); color: var(--c1); stroke: var(--c1); }
.c2 { fill: var(--c2); color: var(--c2); stroke: var(--c2); } .c3 { fill: var(--c3); color: var(--c3); stroke: var(--c3); }
.biased { fill: none; }
"""
MAJORITY = 2  # its row: in the figure it is the line
STRONGEST = 55  # percent of colour of a full cell of a confusion matrix: text stays readable on it


def page(report: Report) -> str:
    """The whole document."""
    title = escape(f"{report['model']} · {report['task']}")
    body = "\n".join(_sections(report))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def write_page(path: Path, report: Report) -> None:
    """Writes the document: the old file or the new one, never half."""
    text = page(report)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _sections(report: Report) -> Iterator[str]:
    n = report["n"]
    yield f"<h1>{escape(report['model'])} · {escape(report['task'])}</h1>"
    yield f'<p class="verdict {escape(report["decision"])}">{escape(verdict(report))}</p>'
    yield "".join(f"<p>{escape(note)}</p>" for note in notes(report))
    bars = [row for i, row in enumerate(scores(report)) if i != MAJORITY]
    yield f"<h2>Accuracy on {n['test']:,} test rows</h2>\n{accuracy_bars(bars, report['accuracy']['majority'])}"
    yield f'<div class="wide">{_table(score_table(report))}</div>'
    yield _explained()
    if "confusion" in report:
        yield f'<h2>Confusion</h2>\n<div class="pair">{"".join(_confusions(report))}</div>'
    yield "<h2>What was tested</h2>\n" + "".join(f"<p>{escape(line)}</p>" for line in trial(report))
    if report.get("candidates"):
        chosen = (report["certificate"] or {}).get("candidate")
        yield f"<p>Gain of every candidate, in points, where they were ranked:</p>\n{candidate_gains(report['candidates'], chosen)}"
    yield "<h2>Set-up</h2>\n" + "".join(f"<p>{escape(line)}</p>" for line in _setup(report))
    if report.get("serve"):
        yield f"<h2>Serve it</h2>\n<pre>{escape(report['serve'])}</pre>"


def _explained() -> str:
    return (
        '<p class="quiet">Balanced: the mean of the labels’ recalls. Logit bias: a constant per label, fitted to the calibration '
        "labels, the trivial fix. Label probe: a linear classifier on the activations, what the model knows. Text classifier: "
        "word and character counts, what needs no model.</p>"
    )


def _confusions(report: Report) -> Iterator[str]:
    labels = [escape(label) for label in labels_of(report)]
    for name, counts in report["confusion"].items():
        answers = [*labels, "<em>none</em>"][: len(counts[0])]
        head = "".join(f'<th scope="col">{answer}</th>' for answer in answers)
        rows = "".join(
            f'<tr><th scope="row">{label}</th>{"".join(_cells(row, i))}</tr>'
            for i, (label, row) in enumerate(zip(labels, counts, strict=True))
        )
        yield (
            f'<div class="wide"><table><caption>{escape(name)}: rows are true labels, columns answers</caption>'
            f"<tr><th></th>{head}</tr>{rows}</table></div>"
        )


def _cells(row: Sequence[int], own: int) -> Iterator[str]:
    total = max(1, sum(row))
    for i, count in enumerate(row):
        share = f"--share: {STRONGEST * count / total:.0f}%"
        yield f'<td class="share{" right" * (i == own)}" style="{share}">{count:,}</td>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows[1:]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _setup(report: Report) -> Iterator[str]:
    n, found = report["n"], report["certificate"]
    yield f"{n['train']:,} training, {n['calibration']:,} calibration and {n['test']:,} test rows, disjoint by content."
    if found is not None:
        yield (
            f"A certificate speaks of the average over rows like the calibration rows, answered greedily; δ = {found['delta']:g}, "
            f"ε = {found['epsilon']:g}."
        )
    low, high = report["spi_interval"]
    interval = f"{100 * report['level']:g} % interval {number(low)} to {number(high)}"
    yield f"SPI {number(report['spi'])}, {interval}: the share of the errors that was repaired."
    if report.get("seconds"):
        yield "Seconds: " + ", ".join(f"{name} {value:,.0f}" for name, value in report["seconds"].items()) + "."
    if report.get("artifact"):
        yield f"Artifact {report['artifact']}."
