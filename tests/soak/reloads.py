"""Artifacts that come and go while the server runs, and which of them may have answered a request."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from safetensors.torch import load_file

from merasteer import demo
from merasteer.engine import Engine, LoadedModel, load_model
from merasteer.pipeline import Bars
from merasteer.pipeline.canaries import measured
from merasteer.store import collect, load, publish
from merasteer.tasks import Prompter

from .asks import DESK_A, SPAM

TASKS = (SPAM, DESK_A)
SHIFTS = (0.0, 0.4, -0.3, 0.8, -0.6)  # of a version's readouts; 0 is the demo's own artifact


@dataclass(frozen=True)
class Version:
    """An artifact: its digest, and what `publish` takes."""

    digest: str
    parts: Mapping[str, Any]


def versions(scratch: Path) -> dict[str, list[Version]]:
    """For each task the demo's own artifact and others that read another error, the demo's first. Fills the store `scratch`."""
    loaded = load_model(demo.model_dir())
    with Engine(loaded) as engine:
        return {task: [_version(scratch, task, shift, loaded, engine) for shift in SHIFTS] for task in TASKS}


def _version(scratch: Path, task: str, shift: float, loaded: LoadedModel, engine: Engine) -> Version:
    own = next(demo.store_dir().glob(f"*/{task}/*/manifest.json")).parent
    artifact, tensors = load(own), load_file(own / "probe.safetensors")
    tensors["bias"] = tensors["bias"] + shift
    calibration = dict(artifact.calibration)
    if artifact.certified:  # with the canaries that a run which certified it would have left behind
        key = f"{task} {shift}"
        engine.register(key, replace(artifact.vectors, bias=tensors["bias"]))
        prompter, correction = Prompter(artifact.task, loaded.tokenizer), artifact.correction.under(key)
        with Bars().bar("canaries", 1) as bar:
            calibration["canaries"] = measured(engine, prompter, correction, loaded.dtype, bar).to_json()
    parts = {"manifest": artifact.manifest, "calibration": calibration, "tensors": tensors}
    return Version(load(publish(scratch, **parts)).digest, parts)


@dataclass
class Served:
    """A task's default artifact, from some moment behind `since` to some moment before `until`."""

    digest: str
    since: float
    until: float = math.inf


@dataclass
class Defaults:
    """The default artifact of each task over time."""

    _served: dict[str, list[Served]] = field(default_factory=dict)

    def switch(self, task: str, digest: str) -> Callable[[], None]:
        """It may be the default from now on; behind a call of what comes back, the one before cannot be."""
        before = self._served.setdefault(task, [])
        gone = before[-1] if before else Served("", 0.0)
        before.append(Served(digest, time.monotonic()))

        def done() -> None:
            gone.until = time.monotonic()

        return done

    def now(self, task: str) -> str:
        """The digest, empty for a task that is never reloaded."""
        return self._served[task][-1].digest if task in self._served else ""

    def between(self, task: str, begun: float, done: float) -> list[str]:
        """Those that may answer a request that was planned between these moments."""
        if task not in self._served:
            return [""]
        return sorted({one.digest for one in self._served[task] if one.since <= done and begun <= one.until})


class Publisher:
    """Publishes into `store` and removes from it what is superseded; the server is told, or finds out."""

    def __init__(
        self, http: httpx.AsyncClient, store: Path, defaults: Defaults, known: Mapping[str, list[Version]]
    ) -> None:
        self.reloads = 0
        self._http, self._store, self._defaults, self._known = http, store, defaults, known

    async def publish(self, task: str, version: int, *, tell: bool = True) -> None:
        """Makes it the default. Returns when the server serves it."""
        new = self._known[task][version % len(SHIFTS)]
        done = self._defaults.switch(task, new.digest)
        await asyncio.to_thread(publish, self._store, **new.parts)
        if tell:
            assert (await self._tell())["latest"][task] == new.digest
        await self._until("/tasks", lambda told: new.digest in [one["probe"] for one in told["tasks"]])
        done()

    async def collect(self, *, tell: bool) -> None:
        """Removes all but the defaults from the store. The demo's own are still served: the server has them elsewhere, too."""
        removed = [one.path.name for one in await asyncio.to_thread(collect, self._store, keep=0, age=0) if one.removed]
        if tell:
            await self._tell()
        own = {known[0].digest for known in self._known.values()}
        gone = {one.digest for known in self._known.values() for one in known if one.digest[:12] in removed} - own
        await self._until("/probes", lambda told: not gone & {one["digest"] for one in told["probes"]})

    async def run(self, every: float) -> None:
        """Publish and collect in turn, for ever, the tasks in turn, too. The server is told of every second pair."""
        for turn in count():
            await asyncio.sleep(every)
            tell = turn % 8 in (0, 1, 6, 7)
            if turn % 2:
                await self.collect(tell=tell)
            else:
                await self.publish(TASKS[turn // 2 % 2], 1 + turn // 4, tell=tell)
            self.reloads += 1

    async def _tell(self) -> dict[str, Any]:
        response = await self._http.post("/probes/reload")
        assert response.status_code == 200, response.text
        told: dict[str, Any] = response.json()
        assert told["rejected"] == 0, told
        return told

    async def _until(self, path: str, holds: Callable[[Any], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds((await self._http.get(path)).json()):
                await asyncio.sleep(0.1)
