"""Writing a task: a TOML file and its rows beside it, byte for byte the same each time."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from merasteer.demo.corpus import LABELS
from merasteer.errors import BadSplits
from merasteer.types import SplitSizes

__all__ = ["write_task"]

TASK = """\
# {about}
name = "{name}"
labels = [{labels}]

[variants]
{variants}

[prompt]
template = {template}

[data]
path = "{rows}"
label = "label"

[splits]
train = {train}
calibration = {calibration}
test = {test}
shuffle = false
"""


def write_task(
    folder: Path,
    name: str,
    about: str,
    template: str,
    rows: Sequence[Mapping[str, Any]],
    splits: SplitSizes,
    compress: bool = True,
    labels: Sequence[str] = LABELS,
) -> Path:
    """The path of `<folder>/<name>.toml`, written with its rows; the label words stand behind a space, one token each."""
    needed = splits.train + splits.calibration + splits.test
    if len(rows) < needed:
        raise BadSplits(
            f"rows: {len(rows)} given, the splits of {name} need {needed}; give more rows or smaller splits"
        )
    folder.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    file = folder / (f"{name}.jsonl.gz" if compress else f"{name}.jsonl")
    file.write_bytes(gzip.compress(data, mtime=0) if compress else data)
    path = folder / f"{name}.toml"
    path.write_text(
        TASK.format(
            about=about,
            name=name,
            labels=", ".join(f'"{label}"' for label in labels),
            variants="\n".join(f'{label} = [" {label}"]' for label in labels),
            template=_quoted(template),
            rows=file.name,
            train=splits.train,
            calibration=splits.calibration,
            test=splits.test,
        ),
        encoding="utf-8",
    )
    return path


def _quoted(template: str) -> str:
    """A TOML string: as it stands where it can, else with the escapes that TOML shares with JSON."""
    return json.dumps(template, ensure_ascii=False) if {"'", "\n"} & set(template) else f"'{template}'"
