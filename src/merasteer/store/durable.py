"""Files that survive a crash: written, fsynced, and only then renamed from a temporary folder of the store into place."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["sweep", "sync", "temporary", "write"]

STALE = 3600.0  # seconds after which a temporary folder is nobody's
NAME = re.compile(r"\.publish-([0-9a-f]{8})-(\d{1,9})-[0-9a-f]{8}")  # host, process id


@contextmanager
def temporary(store: Path) -> Iterator[Path]:
    """A folder of our own in the store (so that renames stay on one file system), removed at the end."""
    path = store / f".publish-{_host()}-{os.getpid()}-{secrets.token_hex(4)}"
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(store: Path) -> None:
    """Remove what earlier crashes left: temporary folders of this host's dead processes, and any older than an hour."""
    for path in store.glob(".publish-*"):
        if not (match := NAME.fullmatch(path.name)):
            continue
        try:
            stale = time.time() - path.stat().st_mtime > STALE
        except FileNotFoundError:
            continue
        if stale or (match[1] == _host() and not _alive(int(match[2]))):
            shutil.rmtree(path, ignore_errors=True)


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
