"""How the answers to a file compare with the true labels in it: accuracy, and what was said of each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mera_client._errors import InvalidInput
from mera_client._types import Classified
from mera_client.cli.rows import Table

LABEL = "label"  # the column that is looked at unless another is named
_NONE = "(none)"  # an answer without a label


@dataclass(frozen=True)
class Score:
    """pairs: (true, said) -> rows. others: rows whose true label is none of the task's."""

    labels: tuple[str, ...]
    pairs: Counter[tuple[str, str]]
    others: int = 0

    @property
    def text(self) -> str:
        """The accuracy in one line, the confusion in a table."""
        rows, right = self.pairs.total(), sum(self.pairs[label, label] for label in self.labels)
        head = f"accuracy {right / rows:.4f}: {right} of {rows} rows are right"
        if self.others:
            head += f"; {self.others} more hold none of the task's labels"
        said = [*self.labels, *([_NONE] if any(answer == _NONE for _, answer in self.pairs) else [])]
        lines = [["true \\ said", *said]]
        lines += [[label, *(str(self.pairs[label, answer]) for answer in said)] for label in self.labels]
        widths = [max(len(line[i]) for line in lines) for i in range(len(said) + 1)]
        table = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
        ]
        return "\n".join([head, *table])


def column_of(path: Path, table: Table, named: str | None) -> str | None:
    """The column of the true labels: the named one, else `label` where there is one. Raises InvalidInput where the named one is absent."""
    if named is not None and named not in table.columns:
        raise InvalidInput(f"--label {named}: {path} has no such column; there are {', '.join(table.columns)}")
    return named or (LABEL if LABEL in table.columns else None)


def score(table: Table, column: str | None, results: Sequence[Classified], labels: tuple[str, ...]) -> Score | None:
    """The comparison; None without a column, or where it holds no label of the task.

    Labels are told by name. Only where no cell is one, and all are numbers from 0, these are the labels' indices.
    """
    if column is None:
        return None
    true = [str(row.get(column, "")).strip() for row in table.rows]
    indices = {str(index): label for index, label in enumerate(labels)}
    if not set(true) & set(labels) and set(true) <= indices.keys():
        true = [indices[cell] for cell in true]
    pairs = Counter((t, result.label or _NONE) for t, result in zip(true, results, strict=True) if t in labels)
    return Score(labels, pairs, len(true) - pairs.total()) if pairs else None
