"""The inputs of a run, read and checked before any of its stages starts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from merasteer.conditions import Conditions
from merasteer.engine import LoadedModel, conditions_of, identity_facts, load_model
from merasteer.engine.layers import family_of
from merasteer.errors import BadSplits, InvalidInput
from merasteer.pipeline.batch import Prompts
from merasteer.pipeline.options import Options, check_layers
from merasteer.pipeline.workspace import Workspace
from merasteer.store import ModelIdentity, identify
from merasteer.store.documents import canonical
from merasteer.tasks import Prompter, demonstrations, load_task, read_examples, resolve, split
from merasteer.types import Example, ServedTask, Splits, Task

__all__ = ["MINIMUM_TRAIN", "Column", "Job", "Loading", "prepare"]

MINIMUM_TRAIN = 40  # fewer leave nothing to fit, select and rank on
PACKAGES = ("mera-server", "numpy", "scikit-learn", "scipy", "torch", "transformers")


@dataclass(frozen=True)
class Loading:
    """How a model that is named is loaded; see `merasteer.engine.load_model`."""

    dtype: str = "auto"
    device: str = "auto"
    device_map: str | None = None

    def load(self, model: str | Path) -> LoadedModel:
        """The model of a folder, a GGUF file or a hub id."""
        return load_model(model, dtype=self.dtype, device=self.device, device_map=self.device_map)


@dataclass(frozen=True)
class Column:
    """Rows of a bench on the same model and task: one entry of the ledger, whose level its `parts` tests share.

    test: the entry's name, which follows from all of them.
    """

    test: str = ""
    parts: int = 1


@dataclass(frozen=True, eq=False)
class Job:
    """A model, a task, its splits and the options: all that the outputs follow from. column: of which it is a row, None for a run."""

    loaded: LoadedModel
    identity: ModelIdentity
    conditions: Conditions
    task: Task
    served: ServedTask
    splits: Splits
    options: Options
    store: Path
    column: Column | None = None

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that decide the numbers."""
        return {name: version(name) for name in PACKAGES}

    @cached_property
    def workspace(self) -> Workspace:
        """The folder of stage outputs for exactly these inputs."""
        # A row is decided at its column's level, so a run never takes it for its own; which column is told by its calibration alone.
        return self._workspace({"options": self.options.as_dict()} | ({"column": True} if self.column else {}))

    @cached_property
    def readouts(self) -> Workspace:
        """The folder of what is fit, which rows of a bench share that differ in what may be chosen of it."""
        return self._workspace({"fit": self.options.of_fit()})

    @cached_property
    def ground(self) -> Workspace:
        """The folder of what the model does by itself, which options do not change but for where it is read."""
        return self._workspace({"hook_points": list(self.options.hook_points)})

    def _workspace(self, options: dict[str, Any]) -> Workspace:
        inputs = {
            "model": self.identity.manifest(),
            "runtime": self.conditions.runtime(),
            "task": asdict(self.served),
            "splits": {name: _content(getattr(self.splits, name)) for name in ("train", "calibration", "test")},
            "versions": self.versions,
            **options,
        }
        return Workspace(self.store, self.identity.slug, self.served.name, inputs)

    @cached_property
    def ordering(self) -> npt.NDArray[np.int64]:
        """Indices into the training split that the probes never see, ascending: candidates are ranked on them."""
        n = len(self.splits.train)
        size = min(self.options.ordering, n // 2)
        return np.sort(np.random.default_rng(self.options.seed).permutation(n)[:size])

    @cached_property
    def fitting(self) -> npt.NDArray[np.int64]:
        """The other indices, ascending."""
        return np.setdiff1d(np.arange(len(self.splits.train)), self.ordering)

    @cached_property
    def prompter(self) -> Prompter:
        """Makes the task's prompts for this model."""
        return Prompter(self.served, self.loaded.tokenizer)

    def prompts(self, examples: Sequence[Example]) -> Prompts:
        """The items as the engine takes them."""
        return Prompts.of(self.prompter, examples)


def prepare(
    model: str | Path | LoadedModel,
    task: str | Path | Task,
    store: Path,
    options: Options,
    *,
    data: Path | None = None,
    search: Sequence[Path] = (),
    loading: Loading | None = None,
) -> Job:
    """The job, everything that can be wrong with it found now. The task is read first: a model takes longer to load.

    Raises BadTask, UnknownTask, BadSplits, UnsupportedModel or InvalidInput.
    """
    if isinstance(task, Task):
        if data is not None:
            raise InvalidInput("data: given beside a task that was loaded already; load the task with it")
        described = task
    else:
        described = load_task(task, data=data, search=search)
    examples = read_examples(described)
    splits = split(described, examples)
    if len(splits.train) < MINIMUM_TRAIN:
        raise BadSplits(
            f"task {described.name!r}: splits.train: {len(splits.train)} rows are too few to fit a probe and to rank "
            f"candidates; give {MINIMUM_TRAIN} or more"
        )
    loaded = model if isinstance(model, LoadedModel) else (loading or Loading()).load(model)
    _check_hook_points(loaded, options)
    check_layers(options, loaded.layers)
    served = resolve(described, loaded.tokenizer, demonstrations(described, splits.examples))
    prompter = Prompter(served, loaded.tokenizer)
    splits = split(described, examples, lambda example: prompter.fits(example.prompt, loaded.context))
    if loaded.source is None:
        raise InvalidInput(f"model: {loaded.id!r} lies in no folder, so its weights cannot be named; save it first")
    identity = identify(**identity_facts(loaded))
    return Job(loaded, identity, conditions_of(loaded), described, served, splits, options, Path(store))


def _check_hook_points(loaded: LoadedModel, options: Options) -> None:
    known = family_of(loaded.model).sites
    for point in options.hook_points:
        if point not in known:
            raise InvalidInput(f"hook_points: {loaded.architecture} has no {point!r}; use {', '.join(known)}")


def _content(examples: Sequence[Example]) -> str:
    """Hash of prompts and labels: the content digests alone know neither the labels nor the exact text."""
    rows: list[Any] = [[example.digest, example.prompt, example.label] for example in examples]
    return hashlib.sha256(canonical(rows)).hexdigest()
