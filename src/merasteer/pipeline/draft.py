"""Work under way inside a stage, so that a run that was killed goes on there: a file that fills up, and a journal of finished parts.

<work folder>/.collect.draft      the stage's file as far as it is written, with the number of finished parts in its head
<work folder>/.calibrate.draft    the journal, one line of JSON for each finished part

A part counts once its bytes are on the disk; what was begun is done again. Whoever works on a draft holds a lock on it; a second run
over the same inputs works on a private one that nobody takes up again.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch

from merasteer.errors import InvalidInput
from merasteer.pipeline.stored import BYTES, DTYPES, Layout

__all__ = ["Draft", "Journal", "discard", "draft_of", "draft_path", "journal_of"]

DONE = "done"  # metadata: number of finished parts


class Draft:
    """A file of a known layout that is written part by part. Mutates the file; nothing of it stays in memory."""

    def __init__(self, handle: int, path: Path, layout: Layout) -> None:
        self._handle, self.path, self._layout = handle, path, layout
        self._start = len(layout.head({}))
        self._offsets = layout.offsets
        self.done = self._taken_up()

    def _taken_up(self) -> int:
        """Parts that an earlier run has finished; 0 where the file is new, or another's."""
        try:
            head = json.loads(os.pread(self._handle, self._start, 0)[8:])
            done = int(head.pop("__metadata__")[DONE])
            wanted = json.loads(self._layout.head({})[8:])
            if {"__metadata__": wanted["__metadata__"], **head} == wanted:
                return done
        except (ValueError, KeyError, TypeError, AttributeError):
            pass
        os.ftruncate(self._handle, 0)
        os.ftruncate(self._handle, self._start + self._layout.size)
        self._say(0)
        return 0

    def _say(self, done: int, **metadata: str) -> None:
        os.pwrite(self._handle, self._layout.head({DONE: str(done), **metadata}), 0)

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor is stored in."""
        return DTYPES[self._layout.tensors[name][0]]

    def write(self, name: str, row: int, values: torch.Tensor) -> None:
        """Rows from `row` on. values (n, ...), or (L, n, d) of a tensor that is laid out by layer."""
        dtype, shape = self._layout.tensors[name]
        size = BYTES[dtype] * prod(shape[2:] if len(shape) == 3 else shape[1:])
        begin, stride = self._start + self._offsets[name] + row * size, shape[1] * size if len(shape) == 3 else 0
        for layer, rows in enumerate(values if stride else values[None]):
            os.pwrite(self._handle, rows.contiguous().view(torch.uint8).numpy().tobytes(), begin + layer * stride)

    def finish(self, parts: int) -> None:
        """From now on so many parts count."""
        os.fsync(self._handle)
        self._say(parts)
        self.done = parts

    def close(self, facts: dict[str, Any], path: Path) -> None:
        """Makes the whole file the stage's output at `path`."""
        self._say(self.done, facts=json.dumps(facts, allow_nan=False))
        os.fsync(self._handle)
        os.replace(self.path, path)  # noqa: PTH105, tests count the calls


class Journal:
    """What finished parts came to, by name. Values are plain JSON."""

    def __init__(self, handle: int, path: Path) -> None:
        self._handle, self.path = handle, path
        self._found: dict[str, Any] = {}
        whole = 0
        data = path.read_bytes()
        for line in data.splitlines(keepends=True):
            try:
                name, value = json.loads(line)
                if not line.endswith(b"\n"):
                    break
            except (ValueError, TypeError):
                break  # it was being written
            self._found[name] = value
            whole += len(line)
        os.ftruncate(handle, whole)

    def get(self, name: str) -> Any:
        """What this part came to; None where it has not finished."""
        return self._found.get(name)

    def add(self, name: str, value: Any) -> None:
        """Keeps what a part came to."""
        line = json.dumps([name, value], allow_nan=False) + "\n"
        os.lseek(self._handle, 0, os.SEEK_END)
        os.write(self._handle, line.encode())
        os.fsync(self._handle)
        self._found[name] = value


@contextmanager
def draft_of(folder: Path, stage: str, layout: Layout) -> Iterator[Draft]:
    """The stage's draft, taken up where an earlier run left it. Raises InvalidInput where it cannot be written."""
    with _locked(folder, stage) as (handle, path):
        yield Draft(handle, path, layout)


@contextmanager
def journal_of(folder: Path, stage: str) -> Iterator[Journal]:
    """The stage's journal. Raises InvalidInput where it cannot be written."""
    with _locked(folder, stage) as (handle, path):
        yield Journal(handle, path)


def draft_path(folder: Path, stage: str) -> Path:
    """Where a stage's draft lies while there is one."""
    return folder / f".{stage}.draft"


def discard(folder: Path, stage: str) -> None:
    """Forgets a draft whose stage has its output."""
    draft_path(folder, stage).unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path, stage: str) -> Iterator[tuple[int, Path]]:
    path, private = draft_path(folder, stage), False
    handle = -1
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(handle, path):
            os.close(handle)
            path, private = folder / f".{stage}.{secrets.token_hex(4)}.tmp", True
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        yield handle, path
    except OSError as error:
        raise InvalidInput(
            f"{path.name}: cannot be written to {folder} ({error.strerror}); give a folder that can"
        ) from error
    finally:
        if handle >= 0:
            os.close(handle)
        if private:
            path.unlink(missing_ok=True)


def _lock(handle: int, path: Path) -> bool:
    """Whether the draft is ours now. One that was finished and renamed meanwhile is not."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.exists() and os.fstat(handle).st_ino == path.stat().st_ino
    except BlockingIOError:
        return False
