"""The tasks of the study on real models, as files that read the data where they lie: `<out>/<task>.toml`.

    python benchmarks/real_tasks.py --data DIR --out DIR

DIR holds four data sets, one folder each, as JSON lines (gzipped or not): sms_spam and sentiment_analysis {text, label}, yes_no_question
{text, label}, mmlu_high_school {question, choices, label}. Prompts and labels are those of the built-in tasks; the rows are fewer, so
that two cores measure a pair in an hour. sms_spam is there three times, under three seeds of its splits.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

from merasteer.errors import InvalidInput, MeraError
from merasteer.tasks import load_task

__all__ = ["STUDY", "Rows", "write_tasks"]


@dataclass(frozen=True)
class Rows:
    """How many rows of a data set are used, by split, and the seeds of the splits; the first is the task's own name."""

    train: int
    calibration: int
    test: int
    seeds: tuple[int, ...] = (0,)


STUDY = {
    "sms_spam": Rows(1000, 250, 500, (0, 1, 2)),
    "sentiment_analysis": Rows(700, 250, 300),
    "yes_no_question": Rows(500, 250, 300),
    "mmlu_high_school": Rows(500, 210, 300),
}


def write_tasks(data: Path, out: Path) -> list[Path]:
    """The files, in the order of the study. Raises InvalidInput where a data set is not there."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, rows in STUDY.items():
        found = [path for suffix in ("jsonl", "jsonl.gz") if (path := data / name / f"{name}.{suffix}").is_file()]
        if not found:
            raise InvalidInput(
                f"--data: no {name}/{name}.jsonl or .jsonl.gz in {data}; give the folder of the data sets"
            )
        for seed in rows.seeds:
            path = out / f"{name}{f'_{seed}' * (seed != rows.seeds[0])}.toml"
            path.write_text(_file(path.stem, name, found[0].resolve(), rows, seed), encoding="utf-8")
            written.append(path)
    return written


def _file(name: str, task: str, rows: Path, wanted: Rows, seed: int) -> str:
    known = load_task(task)
    labels = ", ".join(f'"{label}"' for label in known.labels)
    template = known.template.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return (
        f'name = "{name}"\nlabels = [{labels}]\n\n[prompt]\ntemplate = "{template}"\nchat = "auto"\n\n'
        f'[data]\npath = "{rows}"\n\n'
        f"[splits]\ntrain = {wanted.train}\ncalibration = {wanted.calibration}\ntest = {wanted.test}\nseed = {seed}\n"
    )


def main() -> int:
    """Writes the files and prints their paths."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the task files")
    given = parser.parse_args()
    try:
        written = write_tasks(given.data, given.out)
    except MeraError as error:
        print(f"real_tasks: {error}", file=sys.stderr)
        return 2
    print("\n".join(map(str, written)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
