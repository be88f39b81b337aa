"""What is found out before a run computes anything: whether the store takes its files, and what its owner should be told."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from merasteer.errors import InvalidInput
from merasteer.pipeline.collect import READ
from merasteer.tasks import unevenness
from merasteer.tasks.prompts import literals_of

if TYPE_CHECKING:
    from merasteer.pipeline.job import Job

__all__ = ["check_store", "tell"]

log = logging.getLogger("merasteer.pipeline")
FLOAT = 4  # bytes of an activation
_SPARE = 1.1  # over the activations: readouts, answers, the artifact


def check_store(job: Job) -> None:
    """Raises InvalidInput where the store cannot be written, or its disk has no room for what the stages leave."""
    store = job.store
    try:
        store.mkdir(parents=True, exist_ok=True)
        probe = store / f".{job.workspace.key}.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise InvalidInput(f"store: {store} cannot be written ({error.strerror}); give a folder that can") from error
    wanted, free = int(bytes_wanted(job) * _SPARE), shutil.disk_usage(store).free
    if wanted > free and job.ground.load("collect") is None:
        raise InvalidInput(
            f"store: {store} has {free / 2**30:.1f} GiB free, and this run leaves {wanted / 2**30:.1f} GiB there; "
            "give another folder, fewer rows or one hook point"
        )


def bytes_wanted(job: Job) -> int:
    """Bytes of the activations that `collect` leaves."""
    rows = sum(len(getattr(job.splits, split)) for split in READ)
    return rows * job.loaded.layers * job.loaded.width * FLOAT * len(job.options.hook_points)


def tell(job: Job) -> None:
    """Logs what the task file and the splits give reason to tell, a line each; nothing of it stops the run."""
    task, splits = job.task, job.splits
    for note in task.notes:
        log.warning("%s", note)
    if literals_of(task.template)[-1][-1:].isspace():
        log.warning("prompt.template ends in white space; the answer then lacks the blank that it is written with")
    uneven = unevenness(splits, task.labels)
    if uneven is not None:
        log.warning("%s", uneven)
    if splits.too_long:
        log.warning("%d rows exceed the context and are left out: %s", len(splits.too_long), _few(splits.too_long))
    if splits.examples:
        log.warning(
            "%d rows stand in front of every prompt and are published with the artifact: %s",
            *(len(splits.examples), _few([example.where for example in splits.examples])),
        )
    if job.prompter.system_in_front:
        log.warning("the system text stands in front of the first message: no system turn is taken")


def _few(places: tuple[str, ...] | list[str], most: int = 5) -> str:
    more = f" and {len(places) - most} more" if len(places) > most else ""
    return ", ".join(str(place) for place in places[:most]) + more
