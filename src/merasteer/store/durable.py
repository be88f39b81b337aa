"""Files that survive a crash: written, fsynced, and only then renamed from a temporary folder of the store into place.

Whoever publishes shares the store with other publishers; whoever removes artifacts has it alone (`lock`).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["abandoned", "lock", "sweep", "sync", "temporary", "write"]

STALE = 3600.0  # seconds after which a temporary folder that nobody holds is nobody's
NAME = re.compile(r"\.publish-([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}")  # host, process id


@contextmanager
def lock(store: Path, *, alone: bool) -> Iterator[None]:
    """Holds the store (a folder that is there), shared or alone; waits for whoever holds it otherwise.

    The lock is on the folder itself and goes with the process, however that ends. Where the file system has no locks,
    sharing succeeds all the same, and having it alone is an OSError.
    """
    handle = os.open(store, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        except OSError:
            if alone:
                raise
        yield
    finally:
        os.close(handle)


@contextmanager
def temporary(store: Path) -> Iterator[Path]:
    """A folder of our own in the store (so that renames stay on one file system), held until it is removed at the end."""
    path = store / f".publish-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    path.mkdir(parents=True)
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # where there are no locks its age alone protects it
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def sweep(store: Path) -> None:
    """Remove what earlier crashes left."""
    for path in abandoned(store):
        shutil.rmtree(path, ignore_errors=True)


def abandoned(store: Path) -> Iterator[Path]:
    """Temporary folders that nobody holds: of this host's dead processes, and any older than an hour (clocks may jump)."""
    for path in sorted(store.glob(".publish-*")):
        if not (match := NAME.fullmatch(path.name)):
            continue
        try:
            stale = time.time() - path.stat().st_mtime > STALE
            left = (stale or (match[1] == _host() and not _alive(int(match[2])))) and not _held(path)
        except FileNotFoundError:
            continue
        if left:
            yield path


def _held(path: Path) -> bool:
    """Whether a process holds a folder, as far as the file system has locks."""
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def _host() -> str:
    """A short name of this machine or container: process ids mean nothing elsewhere."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
