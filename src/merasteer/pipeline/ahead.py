"""What is found out before a run computes anything: whether the store takes its files, and what its owner should be told."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

from merasteer.errors import InvalidInput
from merasteer.pipeline.collect import layout_of
from merasteer.pipeline.draft import draft_path
from merasteer.tasks import remarks, unevenness
from merasteer.tasks.prompts import literals_of

if TYPE_CHECKING:
    from merasteer.pipeline.job import Job

__all__ = ["check_store", "tell"]

log = logging.getLogger("merasteer.pipeline")
TOLD = 2**30  # bytes from which on their owner is told even where nothing is wrong
_BLOCK = 512  # bytes, whatever the file system's own
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
    if job.ground.path("collect").is_file():
        return
    wanted, free = int(bytes_wanted(job) * _SPARE) - _begun(job), shutil.disk_usage(store).free
    log.log(
        logging.WARNING if wanted > TOLD else logging.INFO,
        "this run leaves %.1f GiB in %s, where %.1f GiB are free",
        *(wanted / 2**30, store, free / 2**30),
    )
    if wanted > free:
        raise InvalidInput(
            f"store: {store} has {free / 2**30:.1f} GiB free, and this run leaves {wanted / 2**30:.1f} GiB there; "
            "give another folder, fewer rows or one hook point"
        )


def bytes_wanted(job: Job) -> int:
    """Bytes of the file that `collect` leaves."""
    return layout_of(job).size


def _begun(job: Job) -> int:
    """Bytes of it that a run which was stopped has left on the disk."""
    draft = draft_path(job.ground.folder, "collect")
    return draft.stat().st_blocks * _BLOCK if draft.is_file() else 0


def tell(job: Job) -> None:
    """Logs what the task file and the splits give reason to tell, a line each; nothing of it stops the run."""
    task, splits = job.task, job.splits
    for note in (*task.notes, *remarks(task)):
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
