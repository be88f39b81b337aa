"""Outputs of finished stages, so that a run killed at any point goes on where it was.

<store>/.work/<model-slug>/<task>/<key12>/<stage>.safetensors      tensors, and facts as JSON in the file's metadata

The key is a hash of everything that the outputs follow from; a file is complete or absent. The store passes over hidden folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from merasteer.errors import InvalidInput
from merasteer.pipeline.stored import Stored, stored_in
from merasteer.store.documents import canonical

__all__ = ["Output", "Workspace", "replace_file"]

KEY = 12  # hex digits
STALE = 3600.0  # seconds after which a temporary file is nobody's


@dataclass(frozen=True, eq=False)
class Output:
    """What a stage leaves: plain JSON facts, and tensors on the CPU.

    stored: those of the tensors that lie on the disk layer by layer; in `tensors` they are mapped views (N, L, d).
    """

    facts: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)


class Workspace:
    """The stage outputs of one set of inputs. Several processes may work in it: equal inputs write equal outputs."""

    def __init__(self, store: Path, slug: str, task: str, inputs: Mapping[str, Any]) -> None:
        self.key = hashlib.sha256(canonical(inputs)).hexdigest()[:KEY]
        self.folder = store / ".work" / slug / task / self.key

    def load(self, stage: str) -> Output | None:
        """The stage's output; None when it has not finished, or its file is damaged."""
        path = self.path(stage)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                facts, stored = json.loads(file.metadata()["facts"]), stored_in(path)
                found = {name: file.get_tensor(name) for name in file.keys() if name not in stored}  # noqa: SIM118, not a dict
            return Output(facts, found | {name: one.mapped() for name, one in stored.items()}, stored)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError):
            return None

    def save(self, stage: str, output: Output) -> None:
        """Writes the stage's output durably. Raises InvalidInput where the store cannot be written."""
        tensors = {name: tensor.contiguous() for name, tensor in output.tensors.items()}
        metadata = {"facts": json.dumps(output.facts, allow_nan=False)}
        replace_file(self.path(stage), lambda path: save_file(tensors, path, metadata))

    def path(self, stage: str) -> Path:
        """The file of a stage that has finished."""
        return self.folder / f"{stage}.safetensors"


def replace_file(path: Path, write: Any) -> None:
    """`path` with what `write(temporary path)` wrote: the old file or the new one, whenever the process dies.

    Raises InvalidInput where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)  # noqa: PTH105, tests count the calls
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidInput(
            f"{path.name}: cannot be written to {path.parent} ({why}); give a folder that can"
        ) from error
    finally:
        with suppress(OSError):  # where the folder is none, there is nothing to remove either
            temporary.unlink()


def _sweep(folder: Path) -> None:
    """Removes what runs that were killed left behind an hour ago or earlier."""
    for path in folder.glob(".*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > STALE:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue


def _sync(folder: Path) -> None:
    """Makes the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
