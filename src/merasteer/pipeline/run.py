"""The run: collect → fit → calibrate → evaluate → publish, each stage once, resumable at any point."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from merasteer.engine import LoadedModel
from merasteer.errors import InvalidInput
from merasteer.pipeline.ahead import check_store, tell
from merasteer.pipeline.calibrate import RANKING, calibrate
from merasteer.pipeline.collect import collect
from merasteer.pipeline.draft import discard
from merasteer.pipeline.evaluate import evaluate
from merasteer.pipeline.fit import fit
from merasteer.pipeline.job import Job, Loading, prepare
from merasteer.pipeline.options import STAGES, Options, Stage
from merasteer.pipeline.progress import Bars
from merasteer.pipeline.publish import publish
from merasteer.pipeline.report import Report, complete, write_report
from merasteer.pipeline.workspace import Output, Workspace
from merasteer.types import Task

__all__ = ["run", "run_job", "stages"]


def run(
    model: str | Path | LoadedModel,
    task: str | Path | Task,
    store: Path,
    options: Options | None = None,
    *,
    data: Path | None = None,
    report: Path | None = None,
    search: Sequence[Path] = (),
    until: Stage = "publish",
    bars: Bars | None = None,
    loading: Loading | None = None,
) -> Report | None:
    """The report of the run; None when it was to stop before `evaluate`.

    model: hub id, folder or loaded model. task: name, path or loaded task; `search` are folders to look names up in, `data`
    replaces its rows. loading: dtype and device of a model that is to be loaded. Finished
    stages are taken from `<store>/.work`; `until` names the last one to run. report: a file to
    write the report to. Equal inputs publish an artifact of equal digest on one machine.
    """
    _check_until(until)
    job = prepare(model, task, Path(store), options or Options(), data=data, search=search, loading=loading)
    found = run_job(job, until, bars)
    if found is not None and report is not None:
        write_report(Path(report), found)
    return found


def run_job(job: Job, until: Stage = "publish", bars: Bars | None = None) -> Report | None:
    """The same for inputs that are prepared."""
    _check_until(until)
    check_store(job)
    tell(job)
    done = stages(job, until, bars)
    if "evaluate" not in done:
        return None
    artifact = publish(job, done["fit"], done["calibrate"]) if until == "publish" else None
    seconds: dict[str, float] = {stage: float(output.facts["seconds"]) for stage, output in done.items()}
    return complete(done["evaluate"].facts["report"], artifact, seconds)


def stages(job: Job, until: Stage = "evaluate", bars: Bars | None = None) -> dict[Stage, Output]:
    """The outputs of the stages up to `until`, each computed now or taken from the work folder. Publishes nothing."""
    _check_until(until)
    shown = bars or Bars()
    done: dict[Stage, Output] = {}
    work: dict[Stage, Callable[[], Output]] = {
        "collect": lambda: collect(job, shown),
        "fit": lambda: fit(job, done["collect"], shown),
        "calibrate": lambda: calibrate(job, done["collect"], done["fit"], shown),
        "evaluate": lambda: evaluate(job, done["collect"], done["fit"], done["calibrate"], shown),
    }
    for stage in STAGES[: STAGES.index(until) + 1]:
        if stage in work:
            done[stage] = _stage(job, stage, work[stage], shown)
    return done


def _check_until(until: str) -> None:
    if until not in STAGES:
        raise InvalidInput(f"until: {until!r} is not one of {', '.join(STAGES)}")


def _stage(job: Job, stage: Stage, compute: Callable[[], Output], bars: Bars) -> Output:
    """The stage's output, from the work folder if it is there."""
    workspace = _workspace(job, stage)
    found = workspace.load(stage)
    if found is not None:
        bars.say(f"{stage}: taken from an earlier run")
        _forget(job, stage)
        return found
    start = time.perf_counter()
    output = compute()
    seconds = time.perf_counter() - start
    if not output.stored:  # else it has been written as it came
        output = Output({**output.facts, "seconds": seconds}, output.tensors)
        workspace.save(stage, output)
    _forget(job, stage)
    bars.say(f"{stage}: done in {seconds:.1f} s")
    return output


def _workspace(job: Job, stage: Stage) -> Workspace:
    """Where a stage leaves its output."""
    return {"collect": job.ground, "fit": job.readouts}.get(stage, job.workspace)


def _forget(job: Job, stage: Stage) -> None:
    """Discards what a finished stage had under way; what other rows of a bench go on with stays."""
    discard(_workspace(job, stage).folder, stage)
    if stage == "calibrate" and job.column is None:
        discard(job.readouts.folder, RANKING)
