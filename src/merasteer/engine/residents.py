"""Steering vectors that are resident: which row of a table each has, who uses it, and the writes that are still to be made.

A row is given and taken on any thread, under the engine's lock; the tables themselves are written between two forward passes only.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from merasteer.engine.tables import VectorTable, movable_layers, moves
from merasteer.errors import InvalidInput
from merasteer.types import GenerationRequest, HookPoint, SteeringVectors

__all__ = ["Resident", "Residents"]


@dataclass(eq=False)
class Resident:
    """Steering vectors in rows of a table, and how many runs use them. Retired ones are removed with their last run."""

    hook_point: HookPoint
    rows: tuple[int, ...]
    vectors: SteeringVectors
    number: int  # of its registration, the same on every rank
    users: int = 0
    retired: bool = False

    @property
    def row(self) -> int:
        """Its own, which slots point to; behind it are those of its class readouts."""
        return self.rows[0]


class Residents:
    """The resident vectors of one engine, by key. Every call but `write` is made under the engine's lock."""

    def __init__(self, tables: Mapping[HookPoint, VectorTable], architecture: str) -> None:
        self._tables, self._architecture = tables, architecture
        self._known: dict[str, Resident] = {}
        self._numbers = itertools.count()
        self._changes: deque[tuple[Resident, SteeringVectors | None]] = deque()  # in order

    def register(self, key: str, vectors: SteeringVectors) -> None:
        """Gives vectors a row, to be written. Raises InvalidInput if the key is taken or the vectors do not fit."""
        if key in self._known:
            raise InvalidInput(f"vectors: {key!r} is registered already; unregister it first")
        if vectors.hook_point not in self._tables:
            known = ", ".join(self._tables)
            raise InvalidInput(f"hook_point: {self._architecture} has no {vectors.hook_point!r}; use one of {known}")
        rows = self._tables[vectors.hook_point].reserve(vectors)
        resident = self._known[key] = Resident(vectors.hook_point, rows, vectors, next(self._numbers))
        self._changes.append((resident, vectors))

    def unregister(self, key: str) -> None:
        """Forgets a key at once; its row is freed when the last request that uses it has ended. Raises InvalidInput if it is unknown."""
        resident = self._known.pop(key, None)
        if resident is None:
            raise InvalidInput(f"vectors: {key!r} is not registered")
        resident.retired = True
        self._drop_if_unused(resident)

    def of(self, request: GenerationRequest) -> Resident | None:
        """The vectors that a request is steered by, if any. Raises InvalidInput where they are not here, or not at its layers."""
        if request.policy is None:
            return None
        resident = self._known.get(request.policy.vectors)
        if resident is None:
            raise InvalidInput(f"policy: no steering vectors are registered as {request.policy.vectors!r}")
        movable_layers(resident.vectors, request.policy)
        _check_classes(resident.vectors, request)
        return resident

    def use(self, resident: Resident | None) -> None:
        """Keeps a request's vectors where they are until `leave`."""
        if resident is not None:
            resident.users += 1

    def leave(self, resident: Resident | None) -> None:
        """A request that used them has ended."""
        if resident is not None:
            resident.users -= 1
            self._drop_if_unused(resident)

    def _drop_if_unused(self, resident: Resident) -> None:
        if resident.retired and resident.users == 0:
            self._tables[resident.hook_point].release(resident.rows)
            self._changes.append((resident, None))

    def write(self) -> None:
        """Makes the tables what was asked for so far: between two passes, before any request that was sent later is taken up."""
        while self._changes:
            resident, vectors = self._changes.popleft()
            self._tables[resident.hook_point].write(resident.rows, vectors)


def _check_classes(vectors: SteeringVectors, request: GenerationRequest) -> None:
    """Raises InvalidInput where a label probe would say a label that the request does not have."""
    if vectors.law != "label_probe" or vectors.classes is None or request.policy is None or not moves(request.policy):
        return
    said, labels = vectors.classes.weight.shape[1], 0 if request.choice is None else len(request.choice.variants)
    if said != labels:
        raise InvalidInput(
            f"policy: {request.policy.vectors!r} is a label probe of {said} classes, and the request chooses among {labels} labels; "
            "give a choice among as many"
        )
