"""`mera-client classify`: a file through POST /classify, chunk by chunk. Nothing that was answered is lost or asked twice."""

from __future__ import annotations

import hashlib
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mera_client._client import Client
from mera_client._errors import InvalidInput, MeraError, UnknownTask
from mera_client._types import Classified, Inputs, Steering, TaskInfo
from mera_client.cli.journal import Journal
from mera_client.cli.progress import Progress
from mera_client.cli.rows import Row, Table, inputs_of, read, suffix, write
from mera_client.cli.scoring import Score, column_of, score

MAX_CHUNK = 256  # inputs that the server takes at once


@dataclass(frozen=True)
class Job:
    """One command line. columns: as `inputs_of` takes them; none: the fields of the template. label: the column of the true labels."""

    task: str
    file: Path
    out: Path
    columns: tuple[str, ...] = ()
    chunk: int = 64
    steering: Steering | None = None
    fresh: bool = False
    label: str | None = None

    def __post_init__(self) -> None:
        suffix(self.out)
        if not 1 <= self.chunk <= MAX_CHUNK:
            raise InvalidInput(f"--chunk: {self.chunk} is out of range; give 1 to {MAX_CHUNK}")
        if self.out.resolve() == self.file.resolve():
            raise InvalidInput(f"-o {self.out}: is the input itself; give another file")

    @property
    def part(self) -> Path:
        return self.out.with_name(self.out.name + ".part")


def run(client: Client, job: Job, say: Callable[[str], None]) -> Score | None:
    """Writes `job.out`; gives the comparison with the true labels, where the file has them. An error carries a note on what is kept."""
    table = read(job.file)
    truth = column_of(job.file, table, job.label)
    task = _task(client, job.task)
    inputs = inputs_of(job.file, table, _columns(client, job, task))
    names = _names(task, table, job)
    about = {
        "input": hashlib.sha256(job.file.read_bytes()).hexdigest(),
        "task": job.task,
        "model": client.info().get("model"),
        "columns": list(job.columns),
        "steering": None if job.steering is None else job.steering.to_json(),
    }
    with Journal(job.part, about, fresh=job.fresh) as journal:
        if journal.results:
            say(f"{len(journal.results)} of {len(inputs)} rows are answered in {job.part}; going on behind them")
        try:
            _ask(client, job, inputs, journal)
        except (MeraError, KeyboardInterrupt) as error:
            kept = f"{len(journal.results)} of {len(inputs)} rows are kept in {job.part}"
            error.add_note(f"{kept}; the same command goes on behind them")
            raise
        write(job.out, [*table.columns, *names.values()], _answered(table, journal.results, task, names))
    journal.discard()
    say(_summary(journal.results, job.out))
    found = score(table, truth, journal.results, task.labels)
    if found is None and job.label is not None:
        say(f"--label {job.label}: holds none of the task's labels ({', '.join(task.labels)}); nothing is compared")
    return found


def _task(client: Client, name: str) -> TaskInfo:
    known = client.tasks()
    found = next((task for task in known if task.name == name), None)
    if found is None:
        raise UnknownTask(f"--task {name}: not known; this server has {', '.join(task.name for task in known)}")
    return found


def _columns(client: Client, job: Job, task: TaskInfo) -> Sequence[str]:
    """As given; else the fields of the task's template, which its artifact holds; without an artifact all columns."""
    manifest = client.probe(task.probe).raw.get("manifest") if task.probe and not job.columns else None
    if not isinstance(manifest, Mapping):
        return job.columns
    fields = dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(manifest["task"]["template"]) if name)
    return [f"{name}={name}" for name in fields]


def _names(task: TaskInfo, table: Table, job: Job) -> dict[str, str]:
    """Each added value -> its column. A name that the input has already, such as the true label's, gets `mera_` before it."""
    added = ("label", *(f"p_{label}" for label in task.labels))
    added += ("predicted_error_before", "predicted_error_after", "decision", "certified")
    names = {name: f"mera_{name}" if name in table.columns else name for name in added}
    taken = [name for name in names.values() if name in table.columns or list(names.values()).count(name) > 1]
    if taken:
        raise InvalidInput(f"{job.file}: column {taken[0]} is needed for the answers; rename it")
    return names


def _ask(client: Client, job: Job, inputs: Sequence[Inputs], journal: Journal) -> None:
    with Progress(len(inputs), len(journal.results)) as show:
        while (done := len(journal.results)) < len(inputs):
            chunk = inputs[done : done + job.chunk]
            try:
                journal.add(client.classify(job.task, chunk, steering=job.steering))
            except MeraError as error:
                error.add_note(f"in rows {done + 1} to {done + len(chunk)}")
                raise
            show(len(journal.results))


def _answered(table: Table, results: Sequence[Classified], task: TaskInfo, names: Mapping[str, str]) -> Iterator[Row]:
    for row, result in zip(table.rows, results, strict=True):
        error = result.predicted_error
        values = {
            "label": result.label,
            **{f"p_{label}": result.probabilities.get(label) for label in task.labels},
            "predicted_error_before": None if error is None else error.before,
            "predicted_error_after": None if error is None else error.after,
            "decision": result.decision,
            "certified": result.certified,
        }
        yield {**row, **{names[name]: value for name, value in values.items()}}


def _summary(results: Sequence[Classified], out: Path) -> str:
    decisions = Counter(f"{r.decision} ({r.reason})" if r.reason else r.decision for r in results)
    certified = sum(result.certified for result in results)
    counts = ", ".join(f"{count} {decision}" for decision, count in decisions.most_common())
    return f"{len(results)} rows in {out}: {counts}; {certified} certified"
