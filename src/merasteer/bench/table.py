"""The results as Markdown: a table of SPI per model as in the paper, and one of details per model and task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from merasteer.bench.cells import Cell
from merasteer.bench.layout import Column, Layout
from merasteer.pipeline.telling import level_of, number

__all__ = ["MARKS", "details", "markdown", "number"]

CONTEXT = {
    "unsteered": "*unsteered accuracy*",
    "majority": "*majority accuracy*",
    "logit_bias": "*logit bias accuracy*",
    "label_probe": "*label probe accuracy*",
    "text_classifier": "*text classifier accuracy*",
}
LEGEND = (
    "SPI on the test split: the share of what could be won that was won, or, below 0, of what could be lost that was lost. "
    "In brackets its {level}interval. ✓ certified at the level of its column: the rows of one model and task that are tested share the "
    "level of one attempt, so all ✓ of a column hold together with probability 1 − δ. (✓) passes at δ alone, as if no other row had been "
    "tested on these items: one in twenty that do nothing would, at δ = 0.05. – abstained: the model answers as if unsteered, SPI 0. "
    "Without a mark: a baseline that is always on and has no certificate. failed: the details say why. Empty: not run. "
    "Bold: the best SPI of its column, where above 0. Logit bias: a constant per class, fitted to the calibration labels; "
    "the trivial fix that steering has to beat. Label probe: a linear classifier on the activations, what the model knows. Text "
    "classifier: TF-IDF and logistic regression on the rows, what needs no model."
)
MARKS = {"certified": " ✓", "alone": " (✓)"}
DETAILS = (
    "method", "decision", "correction", "α", "hook point", "direction", "accuracy", "balanced", "recall",
    "kept right / repaired / broken / kept wrong", "p", "on the calibration split",
)  # fmt: skip


def markdown(cells: Sequence[Cell], methods: Sequence[str]) -> str:
    """One table per model, a column per task and a row per method in the given order, and the legend.

    Raises InvalidInput where two cells would share a place.
    """
    layout = Layout.of(cells, methods)
    return (
        "\n\n".join([*(f"## {model}\n\n{_spi_table(layout, model)}" for model in layout.models), _legend(cells)]) + "\n"
    )


def details(cells: Sequence[Cell]) -> str:
    """One table per model and task with a row per method: what was decided and chosen, and what the test says.

    Points of accuracy are shown only where their lower bound exceeds ε; a certificate may rest on the test alone.
    """
    layout = Layout.of(cells)
    return "\n".join(
        _details_table(layout, model, column) for model in layout.models for column in layout.columns[model]
    )


def _spi_table(layout: Layout, model: str) -> str:
    columns = layout.columns[model]
    context = [
        [title, *(_context(layout, model, column, name) for column in columns)] for name, title in CONTEXT.items()
    ]
    best = [_best(layout, model, column) for column in columns]
    rows = [
        [method, *(_spi(layout.cell(model, column, method), top) for column, top in zip(columns, best, strict=True))]
        for method in layout.methods
    ]
    return _table(["method", *(column.title for column in columns)], [*context, *rows])


def _context(layout: Layout, model: str, column: Column, name: str) -> str:
    """The accuracy in the column's cells; all of them where they differ, as they do between methods with other splits."""
    values = [cell["accuracy"].get(name) for cell in layout.done(model, column).values()]
    return " / ".join(dict.fromkeys(number(value, 3) for value in values if value is not None))


def _best(layout: Layout, model: str, column: Column) -> float | None:
    scores = [cell["spi"] for cell in layout.done(model, column).values() if cell["decision"] != "abstained"]
    return max((score for score in scores if score > 0), default=None)


def _spi(cell: Cell | None, best: float | None) -> str:
    if cell is None:
        return ""
    if cell["status"] != "done":
        return "failed"
    if cell["decision"] == "abstained":
        return "–"
    low, high = cell["spi_interval"]
    text = f"{number(cell['spi'])} [{number(low)}, {number(high)}]"
    text = f"**{text}**" if cell["spi"] == best else text
    return text + MARKS.get(cell["decision"], "")


def _legend(cells: Sequence[Cell]) -> str:
    done = [cell for cell in cells if cell["status"] == "done"]
    tests = [cell["certificate"] for cell in done if cell.get("certificate")]
    level = _distinct(f"{100 * cell['level']:g} % " for cell in done)
    facts = {
        "Items (train / calibration / test)": _splits(done),
        "Certificates": _distinct(_level(test) for test in tests),
        "Seed": _distinct(str(cell["seed"]) for cell in done),
        "Versions": _distinct(
            ", ".join(f"{name} {version}" for name, version in cell["versions"].items()) for cell in done
        ),
        "Run in": _distinct(f"{cell['runtime'].get('dtype')} on {cell['runtime'].get('device')}" for cell in done),
    }
    lines = [f"- {name}: {value}" for name, value in facts.items() if value]
    return "\n\n".join([LEGEND.format(level=level), "\n".join(lines)]).rstrip()


def _level(test: Mapping[str, Any]) -> str:
    own = (
        f"; attempt {test['attempt']} on these items, level of a row {level_of(test):.2g}"
        if test.get("attempt")
        else ""
    )
    return f"δ = {test['delta']:g}, ε = {test['epsilon']:g}{own}"


def _splits(done: Sequence[Cell]) -> str:
    """The sizes of the splits, with the tasks that have them unless all have the same."""
    tasks: dict[str, dict[str, None]] = {}
    for cell in done:
        n = cell["n"]
        tasks.setdefault(f"{n['train']} / {n['calibration']} / {n['test']}", {})[cell["task"]] = None
    if len(tasks) == 1:
        return next(iter(tasks))
    return "; ".join(f"{', '.join(names)} {sizes}" for sizes, names in tasks.items())


def _details_table(layout: Layout, model: str, column: Column) -> str:
    cells = [layout.cell(model, column, method) for method in layout.methods]
    return f"### {model}: {column.title}\n\n{_table(DETAILS, [_details(cell) for cell in cells if cell])}\n"


def _details(cell: Cell) -> list[str]:
    if cell["status"] != "done":
        return [cell["method"], f"failed: {cell.get('error')}", *[""] * (len(DETAILS) - 2)]
    accuracy, counts, test = cell["accuracy"], cell["transitions"], cell.get("certificate")
    return [
        cell["method"],
        cell["decision"] + _remark(cell, test or {}),
        cell.get("correction") or "",
        "" if cell.get("alpha") is None else number(cell["alpha"], 3),
        cell.get("hook_point") or "",
        cell.get("direction") or "",
        _arrow([accuracy["unsteered"], accuracy["steered"]]),
        _arrow(cell["balanced_accuracy"]),
        ", ".join(f"{label} {_arrow(part['recall'])}" for label, part in cell["classes"].items()),
        " / ".join(str(counts[name]) for name in ("kept_right", "repaired", "broken", "kept_wrong")),
        f"{test['p_value']:.2g}" if test else "",
        _finding(cell["decision"], test),
    ]


def _remark(cell: Cell, test: Mapping[str, Any]) -> str:
    """Why it abstained, or what its gain must not be taken for."""
    caution = "collapse" if test.get("collapse") else "below_majority" if test.get("below_majority") else ""
    said = cell.get("reason") or (caution if cell["decision"] in MARKS else "")
    return f" ({said})" if said else ""


def _arrow(pair: Sequence[float | None]) -> str:
    """ ".600 → .900", or – where a class has no items."""
    return " → ".join("–" if value is None else number(value, 3) for value in pair)


def _finding(decision: str, test: dict[str, Any] | None) -> str:
    """What may be said of the tested candidate (docs/method.md section 6)."""
    if test is None:
        return ""
    if decision == "alone":
        return f"passes at δ = {test['delta']:g} alone, not at the level of its column"
    if decision != "certified":
        return "not shown to help"
    surely = f"with probability {100 * (1 - level_of(test)):.4g} %"
    if test["lower_bound"] > test["epsilon"]:
        return f"{100 * test['gain']:.1f} points gained, at least {100 * test['lower_bound']:.1f} {surely}"
    margin = f" by more than {100 * test['epsilon']:g} points" if test["epsilon"] else ""
    return f"better than not steering{margin}, {surely}"


def _distinct(values: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(values))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '¦') for cell in line)} |" for line in lines)
